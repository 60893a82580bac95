"""Folders of `save_pretrained`: variants, `model_index.json`, and hub ids from the hub's cache without a network."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import load_file

from datamodules.trackers.weights import existing
from lightning_modules.bases import SVD, Wan
from lightning_modules.control.lora_files import read_lora
from lightning_modules.expected import named_base
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.systems.files import released_file
from remoco.common.errors import UserError
from tests.support.modules import perturb
from tests.support.nets import motion_control, random_svd

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SHORT = {"num_frames": 3, "num_inference_steps": 1, "output_type": "pt"}


def clip(pipe):
    return pipe(IMAGE, [[(20, 20), (40, 30)]], **SHORT).frames


def made(base=None, **changes) -> MotionControlPipeline:
    module = motion_control(path=base, rank=2, **({} if base else {"size": "micro", "latents": "space_to_depth"}))
    module.configure_model(torch.float32)
    return MotionControlPipeline(perturb(module), {"num_frames": 3, "height": 64, "width": 64})


@pytest.fixture(scope="module")
def pipe():
    return made()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An SVD with the full weights and with those of fp16, which differ, each in its files."""
    folder = tmp_path_factory.mktemp("base")
    for part in ("unet", "vae", "image_encoder"):
        network = getattr(random_svd("micro", seed=3), part)
        network.save_pretrained(folder / part)
        network.half().save_pretrained(folder / part, variant="fp16")
    return folder


def test_the_folder_is_one_of_diffusers(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "motion_control.safetensors", "motion_control.json", "model_index.json",
    }  # fmt: skip
    index = DiffusionPipeline.load_config(tmp_path, local_files_only=True)
    assert index["_class_name"] == "MotionControlPipeline" and index["_diffusers_version"]
    assert {name: tuple(each) for name, each in index.items() if name[0] != "_"} == {
        "unet": ("diffusers", "UNetSpatioTemporalConditionModel"), "vae": (None, None),
        "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
        "motion_encoder": ("lightning_modules", "MotionEncoder"), "injections": ("torch", "ModuleList"),
        "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    }  # fmt: skip
    # what another tool writes into it is not followed
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["os", "system"], "unet": ["owner/x", "Y"]}))
    assert torch.equal(clip(MotionControlPipeline.from_pretrained(tmp_path)), clip(pipe))


@pytest.mark.parametrize("variant, kind", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("ema", torch.float32)])
def test_variants_of_the_weights(pipe, tmp_path, variant, kind):
    pipe.save_pretrained(tmp_path, variant=variant)
    pipe.save_pretrained(tmp_path)
    stored, full = (load_file(tmp_path / f"motion_control{end}.safetensors") for end in (f".{variant}", ""))
    assert {tensor.dtype for tensor in stored.values()} == {kind}
    assert all(torch.equal(stored[name], tensor.to(kind)) for name, tensor in full.items())
    loaded = dict(MotionControlPipeline.from_pretrained(tmp_path, variant=variant).module.named_parameters())
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)
    (tmp_path / f"motion_control.{variant}.safetensors").unlink()
    with pytest.raises(UserError, match=f"holds no motion_control.{variant}.safetensors"):
        MotionControlPipeline.from_pretrained(tmp_path, variant=variant)


def test_components_of_patches_keep_their_precision(tmp_path):
    pipe = MotionControlPipeline.from_pretrained("embedded-sprites")
    pipe.save_pretrained(tmp_path, variant="fp16")
    kinds = {(name.startswith("base.pca."), tensor.dtype) for name, tensor in
             load_file(tmp_path / "motion_control.fp16.safetensors").items()}  # fmt: skip
    assert kinds == {(True, torch.float32), (False, torch.float16)}
    assert torch.equal(clip(MotionControlPipeline.from_pretrained(tmp_path, variant="fp16")), clip(pipe))


def test_a_variant_of_the_base(base, tmp_path):
    full, half = (SVD(str(base), variant=variant).build().identity for variant in (None, "fp16"))
    assert full["hash"] != half["hash"] and "variant" not in full["init_args"]
    assert half["init_args"]["variant"] == "fp16"
    assert SVD(str(base), variant="fp16").layout().identity["init_args"] == half["init_args"]
    with pytest.raises(UserError, match=r"no model.bf16.safetensors in .*image_encoder") as caught:
        SVD(str(base), variant="bf16").build()
    assert "\n" not in str(caught.value)
    module = motion_control(path=str(base), rank=2)
    module.base = SVD(str(base), variant="fp16")
    module.denoiser.base = module.base
    module.configure_model(torch.float32)
    MotionControlPipeline(perturb(module)).save_pretrained(tmp_path)
    # the record says which variant; the user's word goes before it
    for arguments in ({}, {"svd": str(base)}, {"svd": str(base), "variant": "fp16"}):
        again = MotionControlPipeline.from_pretrained(tmp_path, **arguments)
        assert again.module.base.identity["hash"] == half["hash"]
    made(str(base)).save_pretrained(tmp_path / "full")
    with pytest.raises(UserError, match="trained over other base weights"):
        MotionControlPipeline.from_pretrained(tmp_path / "full", svd=str(base), variant="fp16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_torch_dtype_is_dtype(pipe, tmp_path, dtype):
    pipe.save_pretrained(tmp_path)
    for name in ("dtype", "torch_dtype"):
        loaded = MotionControlPipeline.from_pretrained(tmp_path, **{name: dtype})
        trained = {parameter.dtype for parameter in loaded.motion_encoder.parameters()}
        assert loaded.dtype == loaded.unet.dtype == dtype and trained == {torch.float32}


@pytest.mark.parametrize("arguments, said", [
    ({"torch_dtype": "float16"}, "torch_dtype is float16, expected one of torch.float32"),
    ({"torch_dtype": torch.int8}, "torch_dtype is torch.int8"), ({"torch_dtype": {}}, "torch_dtype is {}"),
    ({"torch_dtype": torch.half, "dtype": torch.float32}, "expected one of the two"),
    ({"variant": "../fp16"}, "variant is '../fp16', expected letters"), ({"variant": "fp16"}, "no motion_control.fp16"),
    ({"use_safetensors": False}, "pickles are never opened"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_one_line(pipe, tmp_path, arguments, said):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        MotionControlPipeline.from_pretrained(tmp_path, **arguments)
    assert "\n" not in str(caught.value)


def test_saving_refuses_in_one_line(pipe, tmp_path):
    (tmp_path / "file").touch()
    for folder, options, said in (
        (tmp_path / "file", {}, "is a file, expected a folder"),
        (tmp_path / "x", {"variant": "a/b"}, "variant is 'a/b'"),
        (tmp_path / "x", {"safe_serialization": False}, "no pickle is ever written"),
    ):
        with pytest.raises(UserError, match=said):
            pipe.save_pretrained(folder, **options)
    assert not (tmp_path / "x").exists()


# The hub


@pytest.fixture
def cache(pipe, base, tmp_path, monkeypatch):
    """A hub's cache, out of reach of the hub: of a pipeline, of its base, and of what else one may take for one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def kept(name):
        repository = tmp_path / f"models--owner--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(COMMIT)
        return repository / "snapshots" / COMMIT

    pipe.save_pretrained(kept("mine"))
    shutil.copytree(base, kept("base"))
    (kept("other") / "x").mkdir(parents=True)
    return kept


def test_a_hub_id_is_read_from_the_cache(cache, pipe):
    expected = clip(pipe)
    for revision in (None, "main", COMMIT):
        loaded = MotionControlPipeline.from_pretrained("owner/mine", revision=revision)
        assert torch.equal(clip(loaded), expected)


def test_a_variant_of_a_base_of_the_hub(cache, base):
    local = SVD(str(base), variant="fp16").build().identity["hash"]
    assert SVD("owner/base", variant="fp16").build().identity["hash"] == local
    assert SVD("owner/base").build().identity["hash"] == SVD(str(base)).build().identity["hash"] != local


def test_a_base_of_the_hub_is_read_where_the_user_names_it(cache, base):
    own = made(str(base))
    folder = cache("controller")
    own.save_pretrained(folder)
    record = folder / "motion_control.json"
    record.write_text(record.read_text().replace(str(base), "owner/base"))
    with pytest.raises(UserError, match=r"its base is owner/base, which is not on this disk, .*svd= in Python"):
        MotionControlPipeline.from_pretrained("owner/controller")
    assert torch.equal(clip(MotionControlPipeline.from_pretrained("owner/controller", svd="owner/base")), clip(own))


@pytest.mark.parametrize("name, said", [
    ("owner/never", "owner/never: revision main is not whole in the cache .* the hub was not reached"),
    ("owner/base", "owner/base: revision .* not whole in the cache"), ("owner/other", "owner/other: .* not whole"),
    ("runs/last.ckpt", "checkpoint runs/last.ckpt: no such file"),
    ("nowhere", "nowhere: no such folder, expected one of save_pretrained, or a hub id owner/name"),
])  # fmt: skip
def test_what_is_not_there_is_one_line(cache, name, said):
    with pytest.raises(UserError, match=said) as caught:
        MotionControlPipeline.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_a_folder_of_a_base_is_told_apart(base, tmp_path):
    with pytest.raises(UserError, match="is a base without a controller, .* svd="):
        MotionControlPipeline.from_pretrained(base)
    with pytest.raises(UserError, match="holds no motion_control.json"):
        MotionControlPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "opened",
    [
        MotionControlPipeline.from_pretrained,
        lambda path: SVD(path).build(),
        lambda path: Wan(path).build(),
        lambda path: named_base({"class_path": "lightning_modules.bases.SVD", "init_args": {"path": path}}, None),
        lambda path: read_lora(path, None, None),
        released_file,
        lambda path: existing(path, "--weights", "a file"),
    ],
)
def test_the_home_of_nobody_is_one_line(opened):
    """A record may name such a path, too."""
    with pytest.raises(UserError, match="~nobody-of-this-name/x") as error:
        opened("~nobody-of-this-name/x")
    assert "\n" not in str(error.value)
