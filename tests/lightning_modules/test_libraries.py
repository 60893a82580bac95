"""diffusers, peft and transformers still have the names inside them that we use, and are of the tested range."""

import inspect
import re
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import version

import pytest
import torch
from packaging.requirements import Requirement

from lightning_modules.control.lora import add_lora, lora_layers
from lightning_modules.released.encoders import CLIP_LAYER, CLIP_TOP
from tests.support.nets import lora_targets, random_svd

BLOCK = ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")
FRAME = "transformer_blocks.0"
UNET = {
    "": ("conv_in", "time_proj", "time_embedding", "add_time_proj", "add_embedding", "down_blocks", "mid_block",
         "up_blocks", "enable_gradient_checkpointing"),
    "config": ("block_out_channels", "out_channels", "num_frames", "cross_attention_dim"),
    "down_blocks.0": ("resnets", "downsamplers", "attentions", "has_cross_attention", "gradient_checkpointing"),
    "up_blocks.0": ("resnets", "gradient_checkpointing"),
    "down_blocks.0.resnets.0": ("spatial_res_block", "temporal_res_block", "time_mixer"),
    "down_blocks.0.resnets.0.spatial_res_block": ("norm1", "norm2", "conv1", "conv2"),
    "down_blocks.0.resnets.0.temporal_res_block": ("norm1", "norm2"),
    "down_blocks.0.resnets.0.time_mixer": ("get_alpha", "switch_spatial_to_temporal_mix", "mix_factor"),
    "down_blocks.0.attentions.0": ("transformer_blocks", "temporal_transformer_blocks", "time_mixer"),
    f"down_blocks.0.attentions.0.{FRAME}": BLOCK,
    f"down_blocks.0.attentions.0.temporal_{FRAME}": (*BLOCK, "norm_in", "ff_in", "is_res"),
    f"down_blocks.0.attentions.0.{FRAME}.attn1": (
        "to_q", "to_k", "to_v", "to_out", "heads", "set_processor", "processor",
    ),
}  # fmt: skip
"""Part of diffusers' UNet -> what we take of it beyond its documented call."""

CALLED = {
    "models.attention.BasicTransformerBlock": ("hidden_states", "attention_mask", "encoder_hidden_states"),
    "models.attention.TemporalBasicTransformerBlock": ("hidden_states", "num_frames", "encoder_hidden_states"),
    "models.resnet.AlphaBlender": ("x_spatial", "x_temporal", "image_only_indicator"),
    "models.resnet.ResnetBlock2D": ("input_tensor", "temb"),
    "models.resnet.TemporalResnetBlock": ("input_tensor", "temb"),
    "models.attention_processor.Attention": ("hidden_states", "encoder_hidden_states", "attention_mask"),
    "models.embeddings.Timesteps": ("timesteps",),
    "models.unets.unet_3d_blocks.UpBlockSpatioTemporal": ("hidden_states", "res_hidden_states_tuple"),
    "models.unets.unet_3d_blocks.DownBlockSpatioTemporal": ("hidden_states", "temb", "image_only_indicator"),
}
"""Class in diffusers whose forward we replace, hook or call -> arguments by name."""


def moved(library: str, name: str) -> str:
    """The one line that whoever raises a bound reads."""
    return f"{library} {version(library)} moved {name}"


def has(library: str, root: object, where: str, names: tuple[str, ...]) -> object:
    """What is at a dotted place, once it has all the names."""
    found = root
    for part in filter(None, where.split(".")):
        found = found[int(part)] if part.isdecimal() else getattr(found, part, None)
        assert found is not None, moved(library, where)
    for name in names:
        assert hasattr(found, name), moved(library, f"{where}.{name}".lstrip("."))
    return found


def of_module(library: str, dotted: str) -> object:
    place, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(f"{library}.{place}".rstrip(".")), name)
    except (ImportError, AttributeError):
        raise AssertionError(moved(library, dotted)) from None


def test_diffusers_has_what_our_blocks_lean_on():
    for dotted, names in CALLED.items():
        known = inspect.signature(of_module("diffusers", dotted).forward).parameters
        for name in names:
            assert name in known, moved("diffusers", f"{dotted}.forward's {name}")
    for dotted in ("utils.torch_utils.randn_tensor", "utils.BaseOutput"):
        of_module("diffusers", dotted)
    svd = random_svd("tiny", seed=0)
    for where, names in UNET.items():
        has("diffusers", svd.unet, where, names)
    attention = svd.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert callable(attention.processor), moved("diffusers", "Attention.processor")
    has("diffusers", svd.vae, "config", ("latent_channels", "scaling_factor"))


def test_peft_has_what_our_lora_leans_on():
    for dotted in ("tuners.lora.Linear", "tuners.lora.LoraLayer", "LoraConfig", "inject_adapter_in_model"):
        of_module("peft", dotted)
    unet = random_svd("tiny", seed=0).unet
    add_lora(unet, lora_targets(unet, "attention"), rank=2)
    layer = next(iter(lora_layers(unet).values()))
    has("peft", layer, "", ("base_layer", "lora_A", "lora_B", "merge", "merged", "merged_adapters"))
    has("peft", layer, "", ("disable_adapters", "enable_adapters"))
    for part in ("lora_A", "lora_B"):
        assert list(getattr(layer, part)) == ["default"], moved("peft", f"LoraLayer.{part}'s adapter `default`")
    assert isinstance(layer.merged_adapters, list), moved("peft", "LoraLayer.merged_adapters, a list")
    layer.merge(), layer.merged_adapters.clear()
    assert not layer.merged, moved("peft", "LoraLayer.merged, which follows merged_adapters")


def test_transformers_has_what_the_image_encoders_lean_on():
    processor = of_module("transformers", "models.clip.image_processing_pil_clip.CLIPImageProcessorPil")()
    has("transformers", processor, "", ("do_center_crop", "crop_size"))
    config = of_module("transformers", "CLIPVisionConfig")(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4,
        projection_dim=4,
    )  # fmt: skip
    with torch.device("meta"):
        state = of_module("transformers", "CLIPVisionModelWithProjection")(config).state_dict()
    layer = "encoder.layers.0"
    known = {name.removeprefix("vision_model.") for name in state}
    inside = [*CLIP_LAYER, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    for name in ("visual_projection.weight", *CLIP_TOP, *(f"{layer}.{each}.weight" for each in inside)):
        assert name in known, moved("transformers", f"CLIPVisionModelWithProjection's {name}")


@pytest.mark.parametrize("library", ["diffusers", "peft", "transformers"])
def test_what_is_installed_is_in_the_tested_range(repo, library):
    settings = ConfigParser()
    settings.read(repo / "setup.cfg")
    lines = [line.split(";")[0] for line in settings["options"]["install_requires"].split("\n") if line]
    allowed = next(each for each in map(Requirement, lines) if each.name == library).specifier
    assert any("<" in str(bound) for bound in allowed), f"setup.cfg caps {library} at what was tested"
    assert allowed.contains(version(library), prereleases=True)


@pytest.mark.parametrize(
    "place, name, line",
    [
        (lambda: UNET, "down_blocks.0.resnets.0.time_mixer", "moved down_blocks.0.resnets.0.time_mixer.gone"),
        (lambda: CALLED, "models.resnet.AlphaBlender", "moved models.resnet.AlphaBlender.forward's gone"),
        (lambda: CALLED, "models.resnet.Gone", "moved models.resnet.Gone"),
    ],
)
def test_a_name_that_is_gone_is_one_line(monkeypatch, place, name, line):
    monkeypatch.setitem(place(), name, ("gone",))
    with pytest.raises(AssertionError, match=line) as error:
        test_diffusers_has_what_our_blocks_lean_on()
    assert re.fullmatch(rf"diffusers {version('diffusers')} .*", str(error.value).splitlines()[0])
