"""A small Wan whose latents are components of patches: grouped like the causal VAE's, fitted, stored, exported."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import retrieve_latents

from conditions import RegionWise
from lightning_modules import BaseModule, MotionControlModule, embedded
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.bases.wan.components import ClipPCA
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from remoco.cli import main
from remoco.common.errors import UserError
from tests.support.modules import data, draw, trainer, written
from tests.support.same import same

FRAMES = 9
CLIPS = {"frames": 5, "clips": 4, "val_clips": 2}


def low_rank(rank: int, size: int, seed: int = 0) -> torch.Tensor:
    """(4, 9, 3, 16, 24) clips: frame 1 and each group of four have patches in spaces of so many dimensions."""
    first, rest = draw(rank, 3, 8, 8, seed=98), draw(rank, 4, 3, 8, 8, seed=99)
    weights = draw(size, 3, 2, 3, rank, seed=seed)
    one = torch.einsum("bhwr,rcij->bchiwj", weights[:, 0], first).reshape(size, 1, 3, 16, 24)
    more = torch.einsum("bfhwr,rtcij->bftchiwj", weights[:, 1:], rest).reshape(size, 8, 3, 16, 24)
    return torch.cat([one, more], 1) + 0.1


def test_latents_group_frames_as_the_causal_autoencoder_does():
    """Exact where the data have no more dimensions; latent f is of frames 4 f - 3 to 4 f alone, latent 0 of frame 0."""
    clips = low_rank(3, 4).double()
    vae = ClipPCA(3).double()
    assert not vae.fitted
    vae.fit(clips)
    assert vae.fitted
    latents = vae.encode(clips.transpose(1, 2)).latent_dist.mode()
    assert latents.shape == (4, 3, 3, 2, 3)
    assert (vae.decode(latents).sample.transpose(1, 2) - clips).abs().max() < 1e-9
    assert (latents.movedim(2, 0)[1:].mean((0, 1, 3, 4))).abs().max() < 1e-9  # as `latents_mean` says
    for frame in range(FRAMES):
        other = clips.clone()
        other[:, frame] += 1
        moved = (vae.encode(other.transpose(1, 2)).latent_dist.mode() - latents).abs().amax((0, 1, 3, 4)) > 1e-9
        assert moved.tolist() == [f == (frame + 3) // 4 for f in range(3)]


def test_one_clip_is_in_memory_while_they_are_fitted():
    alive = []

    def clips():
        for seed in range(5):
            assert sum(one() is not None for one in alive) <= 1  # the one before
            clip = low_rank(3, 1, seed)[0].clone()
            alive.append(weakref.ref(clip))
            yield clip
            del clip

    ClipPCA(3).fit(clips())
    assert len(alive) == 5


def test_clips_of_the_host_are_fitted_by_a_base_on_another_device():
    """`meta` stands for a GPU here."""
    ClipPCA(3).to("meta").fit(low_rank(3, 2))


def module(kind=MotionControlModule, **base):
    control = {"control": Control(["modulation"], None, flow_scale=0.1)} if kind is MotionControlModule else {}
    made = kind(
        RandomWan("micro_i2v", trained=True, **base), RegionWise(min_mask_ratio=0.5), noise=Noise(dropout=0.0),
        sampling=Sampling(2, guidance=(1.0, 1.0)), **control,
    )  # fmt: skip
    made.plan = Plan(adamw(lr=1e-3))
    return made


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    return written(tmp_path_factory.mktemp("clips"), **CLIPS)[0]


def test_components_are_fitted_once_and_a_resume_has_the_same_bits(sprites, tmp_path, monkeypatch):
    for folder, cuts in (("whole", [2]), ("parts", [1, 2])):
        (tmp_path / folder).mkdir()
        for steps in cuts:
            path = tmp_path / folder / "last.ckpt"
            again = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
            with monkeypatch.context() as patch:
                if again:
                    patch.setattr(ClipPCA, "fit", lambda *_: pytest.fail("fitted again"))
                trainer(tmp_path / folder, steps).fit(module(), data(sprites, **CLIPS), **again)
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    parts = {f"base.vae.{part}.{name}" for part in ("first", "rest") for name in ("mean", "basis", "scale")}
    assert {name for name in one["state_dict"] if name.startswith("base.vae.")} == parts
    halves = embedded.tensors(one["state_dict"])
    assert {name for name, value in halves.items() if value.dtype == torch.float32} == parts
    pipe = MotionControlPipeline.from_checkpoint(tmp_path / "whole" / "last.ckpt")
    assert same(pipe.module.base.vae.state_dict(), {name[9:]: one["state_dict"][name] for name in parts})
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert pipe(image, [[(9, 9), (30, 9)]], num_frames=5, output_type="pt").frames.shape == (1, 5, 3, 64, 64)


def test_an_exported_base_is_one_that_wan_loads(sprites, tmp_path):
    trainer(tmp_path, 1).fit(module(BaseModule), data(sprites, **CLIPS))
    folder = tmp_path / "base"
    assert main(["export-base", str(tmp_path / "last.ckpt"), str(folder)]) in (0, None)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    base = Wan(folder).build()
    assert isinstance(base.vae, ClipPCA) and not base.to_fit() and base.hashes.keys() >= {"vae", "transformer"}
    assert all(torch.equal(base.get_parameter(n[5:]), v) for n, v in stored.items() if ".transformer." in n)
    assert all(torch.equal(base.get_buffer(n[5:]), v) for n, v in stored.items() if ".vae." in n)
    shapes = {name: value.shape for name, value in Wan(folder).layout().state_dict().items()}
    assert shapes == {name: value.shape for name, value in base.state_dict().items()}

    net = MotionControlModule(Wan(folder), RegionWise(), Control(["modulation"], "attention", 2), Noise(dropout=0.0))
    net.plan = Plan(adamw(lr=1e-3))
    trainer(tmp_path, 2).fit(net, data(sprites, **CLIPS))
    assert net.stored().keys() == {k for k in net.stored() if "lora" in k or not k.startswith("base.transformer")}
    pipe = MotionControlPipeline.from_checkpoint(tmp_path / "last.ckpt")
    assert pipe.module.base.identity == base.identity


def test_diffusers_own_function_reads_its_latents():
    base = RandomWan("micro_i2v").build()
    base.fit(low_rank(16, 8, seed=4).float())
    clips = low_rank(16, 1).float()
    mode = retrieve_latents(base.vae.encode(clips.transpose(1, 2)), sample_mode="argmax")
    assert torch.equal(mode.transpose(1, 2), base.encode(clips).mean)


def test_a_folder_of_other_components_is_one_line(tmp_path):
    base = RandomWan("micro_i2v").build()
    base.fit(low_rank(16, 8, seed=4).float())
    base.export(tmp_path / "base")
    config = tmp_path / "base" / "vae" / "config.json"
    stated = json.loads(config.read_text())
    assert stated["_class_name"] == "ClipPCA" and stated["z_dim"] == 16
    for changes, reason in (
        ({"z_dim": 10**6}, "vae"), ({"z_dim": 8}, "vae"), ({"scale_factor_temporal": 2}, "vae"),
        ({"scale_factor_spatial": 16}, "vae.*scale_factor_spatial is 16, expected 8"),
        ({"latents_mean": [0.0] * 3}, "vae: latents_mean is .*, expected 16 finite numbers$"),
        ({"latents_mean": ["0"] * 16}, "vae: latents_mean is .*, expected 16 finite numbers$"),
        ({"latents_std": [1.0] * 15 + [0.0]}, "vae: latents_std is .*, expected 16 finite numbers above 0$"),
    ):  # fmt: skip
        config.write_text(json.dumps(stated | changes))
        with pytest.raises(UserError, match=reason) as caught:
            Wan(tmp_path / "base").build()
        assert "\n" not in str(caught.value)
