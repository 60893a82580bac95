"""Wan 2.1 is trained: LoRA, recomputed blocks, resumes, samples of a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conditions import RegionWise
from lightning_modules import BaseModule, MotionControlModule
from lightning_modules.bases import RandomWan
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process import FlowMatching
from remoco.common.errors import UserError
from tests.support.modules import data, perturb, trainer, written
from tests.support.same import same


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 5 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), frames=5, clips=4, val_clips=2)


def test_lora_goes_around_the_blocks_linear_layers():
    base = RandomWan().build()
    targets = {kind: base.lora_targets(kind)["transformer"] for kind in ("attention", "linear")}
    assert len(targets["attention"]) == 2 * 8 and "blocks.1.attn2.to_out.0" in targets["attention"]
    assert set(targets["linear"]) - set(targets["attention"]) == {
        f"blocks.{n}.{name}"
        for n in range(2)
        for name in ("attn2.add_k_proj", "attn2.add_v_proj", "ffn.net.0.proj", "ffn.net.2")
    }


def test_fusing_projections_is_refused():
    base = RandomWan().build()
    with pytest.raises(UserError, match="^fuse_qkv_projections .*drops LoRA") as error:
        base.transformer.fuse_qkv_projections()
    assert "\n" not in str(error.value)


def test_recomputed_and_compiled_by_blocks_it_computes_the_same(clips):
    found = []
    for options in ({}, {"recompute": "all"}, {"compiled": True}):
        compiled = options.pop("compiled", False)
        made = MotionControlModule(RandomWan(**options), RegionWise(), Control([], "attention", 2), Noise(dropout=0))
        made.log = lambda *args, **kwargs: None
        made.configure_model()
        if compiled:
            made.base.compile(backend="eager", fullgraph=True)
        perturb(made)
        made.training_step(clips[1], 0).backward()
        found.append({name: p.grad for name, p in made.optimized().items()})
    assert len(found[0]) == 2 * 16 and all(grad.any() for grad in found[0].values())
    assert same(found[0], found[1]) and same(found[0], found[2])
    with pytest.raises(UserError, match="recompute is 'top', expected one of none, all"):
        RandomWan(recompute="top")


# Training and samples


def module(base=None, kind=MotionControlModule, **noise):
    control = {"control": Control([], "attention", 2)} if kind is MotionControlModule else {}
    made = kind(
        base or RandomWan(init_seed=3), RegionWise(min_mask_ratio=0.5), **control,
        noise=Noise(FlowMatching(5.0), **noise), sampling=Sampling(2, guidance=(3.0, 3.0)),
    )  # fmt: skip
    made.plan = Plan(adamw(lr=1e-3))
    return made


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    """A run of four steps, and the same in two parts."""
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    options = {"frames": 5, "clips": 4, "val_clips": 2}
    trainer(whole, 4).fit(module(dropout=0.5), data(clips[0], **options))
    trainer(parts, 2).fit(module(dropout=0.5), data(clips[0], **options))
    again = str(parts / "last.ckpt")
    trainer(parts, 4).fit(module(dropout=0.5), data(clips[0], **options), ckpt_path=again, weights_only=True)
    return whole / "last.ckpt", parts / "last.ckpt"


def test_it_trains_and_a_resume_has_the_same_bits(run):
    one, other = (torch.load(path, weights_only=True) for path in run)
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    names = list(one["state_dict"])
    assert len(names) == 2 * 16 and all(name.startswith("base.transformer.blocks.") for name in names)
    assert any(one["state_dict"][name].any() for name in names if ".lora_B." in name)
    assert one["remoco"]["base"]["class_path"] == "lightning_modules.bases.RandomWan"


def test_its_checkpoint_is_sampled(run):
    pipe = MotionControlPipeline.from_checkpoint(run[0])
    assert pipe.module.process.record()["init_args"]["shift"] == 5.0
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    call = {"height": 32, "width": 48, "output_type": "pt"}
    frames = [pipe(image, [[(9, 9), (30, 9)]], seed=seed, **call).frames for seed in (1, 1, 2)]
    assert frames[0].shape == (1, 5, 3, 32, 48)
    assert torch.equal(frames[0], frames[1]) and not torch.equal(frames[0], frames[2])
    with pytest.raises(UserError, match="frames is 16, .* the nearest 13 and 17"):
        pipe(image, [[(9, 9), (30, 9)]], num_frames=16)
    with pytest.raises(UserError, match="^fps: unknown, the inputs of this base are none"):
        pipe(image, [[(9, 9), (30, 9)]], fps=8)


def test_another_base_is_refused(run, clips, tmp_path):
    with pytest.raises(UserError, match="trained over another base.*init_seed"):
        trainer(tmp_path, 5).fit(
            module(RandomWan(init_seed=4)), data(clips[0], frames=5), ckpt_path=str(run[0]), weights_only=True
        )


def test_an_injection_that_needs_a_frame_for_each_latent_is_one_line():
    with pytest.raises(UserError, match="warp needs a base whose first-frame latent"):
        MotionControlModule(RandomWan("tiny_ti2v"), RegionWise(), Control(["warp"], None))


def test_its_weights_are_trained_too(clips, tmp_path):
    net = module(RandomWan(trained=True), BaseModule)
    trainer(tmp_path, 1).fit(net, data(clips[0], frames=5, clips=4, val_clips=2))
    fresh = RandomWan(trained=True).build()
    moved = [n for n, p in net.base.named_parameters() if not torch.equal(p, fresh.get_parameter(n))]
    assert moved and all(name.startswith("transformer.") for name in moved)
    assert len(moved) == len(list(fresh.transformer.parameters()))
