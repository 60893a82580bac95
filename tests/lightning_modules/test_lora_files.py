"""LoRA of others in a pipeline's network, against diffusers' and peft's own loading, in float64."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.loaders import PeftAdapterMixin, StableDiffusionLoraLoaderMixin
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lightning_modules.bases.svd.norms import set_res_block_eps
from lightning_modules.layers import seeded
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from tests.support.modules import perturb
from tests.support.nets import motion_control

RANK, ALPHA = 4, 6
LAYERS = ["to_q", "to_v", "to_out.0", "conv1", "proj_in", "linear_1"]  # linear, 1 x 1, 3 x 3 and 3 x 1 x 1
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
TRACK = [[(20, 20), (40, 30)]]


class Theirs(PeftAdapterMixin, UNetSpatioTemporalConditionModel):
    """The network with the loader that diffusers' other networks have."""


def made() -> MotionControlPipeline:
    module = motion_control(size="micro", latents="space_to_depth", steps=2, rank=2)
    module.configure_model(torch.float32)
    return MotionControlPipeline(module).to(torch.float64)


@pytest.fixture
def pipe():
    pipe = made()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def stock():
    """A function: the same network as diffusers makes it."""
    unet = made().unet
    names = [(name, name.replace(".base_layer.", ".")) for name in unet.state_dict() if ".lora_" not in name]
    weights = {theirs: unet.state_dict()[ours] for ours, theirs in names}

    def fresh():
        network = Theirs.from_config(dict(unet.config)).double().eval()
        network.load_state_dict(weights)
        set_res_block_eps(network)
        return network

    return fresh


@pytest.fixture(scope="module")
def files(stock, tmp_path_factory):
    """Format -> what is loaded; and what its own library makes of it."""
    root, config = tmp_path_factory.mktemp("lora"), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS,
        rank_pattern={"conv1": 2}, alpha_pattern={"to_v": 3.0}, init_lora_weights=False)  # fmt: skip
    with seeded(3):
        trained = get_peft_model(stock(), config)
    trained.save_pretrained(root / "peft")
    state = get_peft_model_state_dict(trained)
    state = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    about = trained.peft_config["default"].to_dict() | {"target_modules": LAYERS}
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        root / "diffusers", unet_lora_layers=state, unet_lora_adapter_metadata=about
    )
    plain = {f"unet.{name}": tensor for name, tensor in state.items()}
    save_file(plain, root / "plain.safetensors")
    old = {name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): t for name, t in plain.items()}
    save_file({k.replace(".to_q.lora.", ".processor.to_q_lora."): t for k, t in old.items()}, root / "old.safetensors")
    alphas = {f"{name.split('.lora_')[0]}.alpha": torch.tensor(ALPHA * 2.0) for name in plain}
    save_file(plain | alphas, root / "alphas.safetensors")
    return {
        "peft": (root / "peft", lambda: PeftModel.from_pretrained(stock(), str(root / "peft"))),
        "diffusers": (root / "diffusers", lambda: loaded(stock(), str(root / "diffusers"))),
        "plain": (root / "plain.safetensors", lambda: loaded(stock(), plain)),
        "old": (root / "old.safetensors", lambda: loaded(stock(), str(root / "old.safetensors"))),
        "alphas": (
            root / "alphas.safetensors",
            lambda: loaded(stock(), plain, network_alphas={name: float(alpha) for name, alpha in alphas.items()}),
        ),  # fmt: skip
    }


def loaded(network, source, network_alphas=None):
    network.load_lora_adapter(source, prefix="unet", network_alphas=network_alphas, use_safetensors=True)
    return network


def output(network):
    with seeded(1), torch.no_grad():
        channels = network.config.in_channels
        x, embedding = torch.randn(2, 3, channels, 8, 8).double(), torch.randn(2, 1, 32).double()
        ids = torch.tensor([[8.0, 17, 0.02], [7, 5, 0]]).double()
        return network(x, torch.tensor([0.5, 1.5]).double(), embedding, ids, return_dict=False)[0]


@pytest.mark.parametrize("kind", ["peft", "diffusers", "plain", "old", "alphas"])
def test_it_is_what_its_library_loads(pipe, stock, files, kind):
    source, reference = files[kind]
    before, bare = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}, output(pipe.unet)
    torch.testing.assert_close(bare, output(stock()), rtol=0, atol=1e-10)
    pipe.load_lora_weights(source)
    expected = output(reference())
    assert (expected - bare).abs().mean() > 0.01
    torch.testing.assert_close(output(pipe.unet), expected, rtol=0, atol=1e-9)
    pipe.unload_lora_weights()
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.unet.state_dict().items())


def test_the_newest_is_active_and_several_add_up(pipe, stock, files):
    network = stock()
    for name, kind in (("a", "plain"), ("b", "alphas")):
        pipe.load_lora_weights(files[kind][0], adapter_name=name)
        network.load_lora_adapter(load_file(files["plain"][0]), prefix="unet", adapter_name=name, network_alphas={
            each: float(alpha) for each, alpha in load_file(files[kind][0]).items() if each.endswith(".alpha")
        } or None)  # fmt: skip
    assert pipe.get_active_adapters() == network.active_adapters() == ["b"]
    torch.testing.assert_close(output(pipe.unet), output(network), rtol=0, atol=1e-9)
    network.set_adapters(["a", "b"], [0.5, 0.25])
    pipe.set_adapters(["a", "b"], [0.5, 0.25])
    torch.testing.assert_close(output(pipe.unet), output(network), rtol=0, atol=1e-9)
    pipe.set_adapters("a", 0.5)
    assert "a x 0.5, b (off)" in repr(pipe)
    for wrong, said in (
        (("c",), "'c' is not loaded, expected some of a, b"), ((["a"], [1, 2]), "one for each of 1"),
        (("a", float("nan")), "expected a finite number"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            pipe.set_adapters(*wrong)
    with pytest.raises(UserError, match="'a' is loaded already"):
        pipe.load_lora_weights(files["plain"][0], adapter_name="a")


def test_it_changes_the_clip_beside_the_controller_and_is_not_saved_with_it(pipe, files, tmp_path):
    perturb(pipe.module)

    def clip(pipeline):
        return pipeline(IMAGE, TRACK, num_frames=3, output_type="pt").frames

    pipe.save_pretrained(tmp_path / "before")
    before = clip(pipe)
    pipe.load_lora_weights(files["diffusers"][0])
    changed = clip(pipe)
    assert (changed - before).abs().mean() > 1e-3
    assert torch.equal(clip(pipe), changed)  # merging the controller's leaves it in the weights
    pipe.save_pretrained(tmp_path / "after")
    name = "motion_control.safetensors"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert torch.equal(clip(pipe), changed)
    pipe.unload_lora_weights()
    assert torch.equal(clip(pipe), before)


def test_another_dtype_rounds_the_sum_once(pipe, files):
    pipe.load_lora_weights(files["plain"][0])
    layer = pipe.unet.down_blocks[0].resnets[0].spatial_res_block.conv1
    plain = made().unet.down_blocks[0].resnets[0].spatial_res_block.conv1.weight.bfloat16()
    with_lora = layer.weight.clone()
    pipe.to(torch.bfloat16)
    torch.testing.assert_close(layer.weight.double(), with_lora, rtol=2**-8, atol=2**-8 * float(plain.abs().max()))
    assert not torch.equal(layer.weight, plain)
    pipe.unload_lora_weights()
    assert torch.equal(layer.weight, plain)


def test_a_file_of_the_hub_in_the_cache(pipe, files, tmp_path, monkeypatch):
    commit = "0" * 40
    for name in ("diffusers", "peft"):
        repository = tmp_path / f"models--owner--{name}"
        shutil.copytree(files[name][0], repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("diffusers", "peft"):
        pipe.load_lora_weights(files[name][0])
        expected = output(pipe.unet)
        pipe.load_lora_weights(f"owner/{name}")
        assert torch.equal(output(pipe.unet), expected)
    with pytest.raises(UserError, match="owner/none: .*not reached") as caught:
        pipe.load_lora_weights("owner/none")
    assert "\n" not in str(caught.value)


def wrong(state, **tensors):
    return dict(state) | tensors


TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
WRONG = {
    "unknown layer": (lambda s: wrong(s, **{"unet.nowhere.lora_A.weight": torch.ones(4, 3)}), "unet.nowhere: this"),
    "text": (lambda s: {"text_encoder.a.to_q.lora_A.weight": torch.ones(4, 3)}, "text_encoder.a.to_q: this base"),
    "shape": (lambda s: wrong(s, **{f"{TO_Q}.lora_A.weight": torch.ones(4, 3)}), r"are \(4, 3\) and .* expected \(4"),
    "alphas": (lambda s: wrong(s, **{f"{TO_Q}.alpha": torch.ones(2)}), r"to_q: alpha is \(2,\), expected one number"),
    "half": (lambda s: {k: v for k, v in s.items() if k != f"{TO_Q}.lora_B.weight"}, "to_q: expected both"),
    "dora": (lambda s: wrong(s, **{f"{TO_Q}.lora_magnitude_vector": torch.ones(64)}), "magnitude_vector: expect"),
    "nan": (lambda s: wrong(s, **{f"{TO_Q}.lora_A.weight": torch.full((4, 64), float("nan"))}), "NaN"),
    "adapter": (lambda s: {"motion_encoder.stem.weight": torch.ones(3, 3)}, "stem.weight: expected LAYER"),
    "empty": (lambda s: {}, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line_and_changes_nothing(pipe, files, tmp_path, case):
    change, said = WRONG[case]
    before = output(pipe.unet)
    save_file(change(load_file(files["plain"][0])), tmp_path / "x.safetensors")
    for source in (tmp_path / "x.safetensors", load_file(tmp_path / "x.safetensors")):
        with pytest.raises(UserError, match=said) as caught:
            pipe.load_lora_weights(source)
        assert "\n" not in str(caught.value) and str(caught.value).startswith("load_lora_weights")
    assert torch.equal(output(pipe.unet), before) and not pipe.lora_files.files


def test_no_pickle_is_opened(pipe, tmp_path):
    for name in ("pytorch_lora_weights.bin", "x.pt"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n")
        with pytest.raises(UserError, match="is a pickle, which could run code and is never opened"):
            pipe.load_lora_weights(tmp_path / name)
    with pytest.raises(UserError, match="holds 0 .safetensors files"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(UserError, match="expected the name of a .safetensors file"):
        pipe.load_lora_weights(tmp_path, weight_name="../x.safetensors")
    with pytest.raises(UserError, match="no such file or folder"):
        pipe.load_lora_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize("change, said", [
    ({"use_dora": True}, "use_dora is True"), ({"lora_alpha": "x"}, "lora_alpha is x"),
    ({"peft_type": "LOHA"}, "peft_type is LOHA"), ([], "no JSON object"),
])  # fmt: skip
def test_settings_beside_it_are_checked(pipe, files, tmp_path, change, said):
    shutil.copytree(files["peft"][0], tmp_path / "peft")
    config = tmp_path / "peft/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change if change else []))
    with pytest.raises(UserError, match=said) as caught:
        pipe.load_lora_weights(tmp_path / "peft")
    assert "\n" not in str(caught.value)
