"""Wan 2.2 A14B as a base: told by its folder; two experts, each trained at its own noise levels, sampled together."""

from __future__ import annotations

import json
import math
import shutil
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from PIL import Image

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.bases.wan import experts
from lightning_modules.bases.wan.network import KEPT
from lightning_modules.conditioning import to_float
from lightning_modules.config import Control, Noise, Sampling, Speed
from lightning_modules.networks import sample
from lightning_modules.process import FlowMatching
from lightning_modules.process.base import Denoiser
from lightning_modules.process.bounds import bounds_of
from lightning_modules.process.sampler import euler_sample
from lightning_modules.video_module import NOISE
from remoco.common.errors import UserError
from tests.support import wan
from tests.support.modules import draw, perturb, written
from tests.support.wan_a14b import (
    EXPERTS,
    FRAMES,
    HEIGHT,
    SIZE,
    WIDTH,
    conditioned,
    first_frame,
    module,
    pipeline,
    velocity,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan.write(tmp_path_factory.mktemp("wan") / "tiny", SIZE)


@pytest.fixture(scope="module")
def theirs(folder):
    return pipeline(folder)


@pytest.fixture(scope="module")
def nets(folder):
    """A module for each expert in float64, with LoRA at its start."""
    return {expert: module(Wan(folder, expert=expert)) for expert in EXPERTS}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 5 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), frames=5, clips=4, val_clips=2)


def test_it_is_told_by_its_folder(folder, tmp_path):
    built = {expert: Wan(folder, expert=expert).build() for expert in EXPERTS}
    high, low = built.values()
    assert high.hashes == low.hashes and high.hashes.keys() == {*EXPERTS.values(), "vae", "text_encoder"}
    assert high.hashes["transformer"] != high.hashes["transformer_2"]
    assert high.identity["init_args"]["expert"] == "high" and high.identity["hash"] == low.identity["hash"]
    assert not high.same_name(low.identity) and high.same_name(high.identity)
    assert high.grid.step == 16 and high.usual() == (81, 480, 832) and high.process().shift == 5.0
    assert high.image_encoder is None and not high.first_given and high.stages == 2 and high.boundary == 0.9
    assert high.controlled is high.transformer and low.controlled is low.transformer_2
    assert high.settings() == {"boundary": 0.9}
    low.export(tmp_path / "out")
    again = Wan(tmp_path / "out", expert="high").build()
    assert again.hashes == high.hashes and again.boundary == 0.9
    shapes = {name: value.shape for name, value in high.named_parameters()}
    layout = Wan(folder, expert="low").layout()
    assert {name: value.shape for name, value in layout.named_parameters()} == shapes
    drawn = RandomWan(SIZE, 3, expert="low").build()
    assert drawn.hashes["transformer_2"] == high.hashes["transformer_2"] and drawn.boundary == 0.9
    counted = RandomWan("i2v_a14b", expert="low").layout()
    for name in EXPERTS.values():
        assert sum(p.numel() for p in getattr(counted, name).parameters()) == pytest.approx(14.29e9, rel=1e-3)


@pytest.mark.parametrize("expert", EXPERTS)
def test_frozen_in_bfloat16_with_what_stays_in_float32(folder, expert):
    base = Wan(folder, expert=expert, trained=True).build(torch.bfloat16)
    frozen = Wan(folder, expert=expert, recompute="all").build(torch.bfloat16)
    for name in EXPERTS.values():
        theirs = WanTransformer3DModel.from_pretrained(folder, subfolder=name, torch_dtype=torch.bfloat16)
        dtypes = {key: value.dtype for key, value in theirs.named_parameters()}
        assert frozenset(theirs._keep_in_fp32_modules) == KEPT
        for each in (frozen, base):
            trained = each.trained and name == EXPERTS[expert]
            found = {key: value.dtype for key, value in getattr(each, name).named_parameters()}
            assert found == (dict.fromkeys(dtypes, torch.float32) if trained else dtypes)
            assert {value.requires_grad for value in getattr(each, name).parameters()} == {trained}
        assert getattr(frozen, name).gradient_checkpointing == (name == EXPERTS[expert])
        assert getattr(frozen, name).rope.freqs_cos.dtype == torch.float32
    assert {value.dtype for value in frozen.vae.parameters()} == {torch.float32}
    frozen.cast(torch.float32), frozen.cast(torch.bfloat16)
    assert {key: value.dtype for key, value in getattr(frozen, name).named_parameters()} == dtypes


def spoilt(folder, name, **changes):
    path = folder / name / "config.json" if name else folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "spoil, expert, said",
    [
        (
            lambda copy: shutil.rmtree(copy / "transformer_2"),
            "low",
            "transformer_2/config.json not found, expected tra",
        ),
        (
            lambda copy: (copy / "model_index.json").unlink(),
            "low",
            "model_index.json not found, expected it with bound",
        ),
        (
            lambda copy: spoilt(copy, None, boundary_ratio=None),
            "high",
            "boundary_ratio is None, expected a number from",
        ),
        (
            lambda copy: spoilt(copy, None, boundary_ratio=900),
            "high",
            "boundary_ratio is 900, expected a number from 0",
        ),
        (lambda copy: spoilt(copy, None, boundary_ratio=True), "high", "boundary_ratio is True, expected a number"),
        (
            lambda copy: spoilt(copy, "transformer_2", ffn_dim=24),
            "high",
            "transformer_2: ffn_dim is 24, expected 48, as",
        ),
        (lambda copy: None, None, "has two experts, expected expert: high or low"),
    ],
)
def test_a_folder_that_is_wrong_is_one_line_before_weights_are_read(folder, tmp_path, monkeypatch, spoil, expert, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    monkeypatch.setattr(Wan, "build", lambda *args: pytest.fail("it was built"))
    with pytest.raises(UserError, match=said) as error:
        module(Wan(copy, expert=expert))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: RandomWan("tiny_i2v", expert="low").build(), "expert is low, but tiny_i2v has one transformer"),
        (lambda: RandomWan(SIZE).build(), "tiny_a14b has two experts, expected expert: high or low"),
        (lambda: RandomWan(SIZE, expert="middle"), "expert is 'middle', expected high or low"),
        (
            lambda: module(RandomWan(SIZE, expert="low"), speed=Speed(sample_graph=True)),
            "speed.sample_graph: expected false with a base of two experts",
        ),
        (
            lambda: module(RandomWan(), sampling=Sampling(2, guidance_2=(1, 2))),
            "sampling.guidance_2: this base has no second expert",
        ),
        (
            lambda: module(RandomWan(SIZE, expert="low"), noise=Noise(FlowMatching(5.0, low=0.8))),
            "noise.process: low and high are 0.8 and 1, expected some of the 0 to 0.7217 of all draws",
        ),
    ],
)
def test_what_does_not_fit_two_experts_is_one_line(make, said):
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


# Draws


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_each_expert_is_trained_at_its_own_noise_levels(shift, spread):
    """Every draw is on its side of t = 0.9, in float32 and float64, with the distribution that is left there."""
    cut = NormalDist(math.log(shift)).cdf(math.log(9))
    positions = {"position": torch.arange(4000)}
    plain = MotionControlModule(RandomWan(), RegionWise(), Control([], None), Noise(FlowMatching(shift), spread=spread))
    quantiles = torch.special.ndtr(plain.draw_sigma(positions).double().log() - math.log(shift))
    for expert, (low, high) in {"high": (cut, 1.0), "low": (0.0, cut)}.items():
        net = MotionControlModule(
            RandomWan(SIZE, expert=expert), RegionWise(), Control([], None), Noise(FlowMatching(shift), spread=spread)
        )
        sigma = net.draw_sigma(positions)
        assert torch.equal(net.draw_sigma({"position": torch.tensor([7, 3999])}), sigma[[7, 3999]])
        for exact in (sigma, sigma.double()):
            times = net.process.times(exact)
            assert times.ge(900).all() if expert == "high" else times.lt(900).all()
            assert net.base.stage(times) == ("high", "low").index(expert)
        found = torch.special.ndtr(sigma.double().log() - math.log(shift))
        torch.testing.assert_close(found, low + (high - low) * quantiles, rtol=0, atol=1e-5)
        assert all(
            (each >= 9) == (expert == "high")
            for each in net.process.validated(bounds_of(net.process, net.base.trained_levels()))
        )
    with pytest.raises(UserError, match="noise levels of both experts in one batch"):
        net.base.stage(torch.tensor([900.0, 899.9]))
    assert net.base.stage(torch.tensor([900.0])) == 0


@pytest.mark.parametrize("expert, bound", [("high", {"high": 0.8645}), ("low", {"low": 0.8639})])
def test_a_validation_of_levels_at_the_boundary_asks_the_trained_expert(expert, bound):
    """Levels are rounded to three digits, not over the boundary."""
    process, base = FlowMatching(3.0, **bound), RandomWan(SIZE, expert=expert)
    for level in process.validated(bounds_of(process, base.trained_levels())):
        for dtype in (torch.float32, torch.float64):
            assert base.stage(process.times(torch.tensor([level], dtype=dtype))) == ("high", "low").index(expert)


@pytest.mark.parametrize("expert", EXPERTS)
def test_a_prediction_that_is_shown_is_the_trained_experts(clips, expert):
    """Whichever the level that samples are denoised at once from."""
    net = module(RandomWan(SIZE, expert=expert), dtype=torch.float32)
    before = [net.denoise_once(clips[1], sigma) for sigma in (2.0, 30.0)]
    perturb(net)
    for sigma, first in zip((2.0, 30.0), before, strict=True):
        assert not torch.equal(net.denoise_once(clips[1], sigma), first)


# diffusers' own modules, in float64


@pytest.mark.parametrize("expert", EXPERTS)
def test_a_training_step_is_diffusers(nets, clips, theirs, expert):
    net, batch, (other,) = nets[expert], clips[1], [name for name in EXPERTS if name != expert]
    first = to_float(batch["first_frame"], torch.float64)
    video = to_float(batch["video"]).double()  # float32 in the module too
    config = theirs.vae.config
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (config.latents_mean, config.latents_std))
    noise = net.draw_noise(batch, NOISE, (2, 4, 8, 8)).double()
    sigma = net.draw_sigma(batch).double()
    losses = {name: [] for name in EXPERTS}
    net.training_step(batch, 0).backward()
    with wan.lifted(), torch.no_grad():
        ours = net.training_step(batch, 0)
        for index, t in enumerate(sigma / (1 + sigma)):
            cond = net.base.condition({"first_frame": first[index, None], "frames": 5}, {}, None)
            mode = theirs.vae.encode(video[index, None].transpose(1, 2)).latent_dist.mode().transpose(1, 2)
            clean = (mode - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
            noisy = (1 - t) * clean + t * noise[index]
            for name, network in EXPERTS.items():
                out = velocity(getattr(theirs, network), noisy, t, cond, cond.parts["text"])
                losses[name].append((out - (noise[index] - clean)).square().mean())
    torch.testing.assert_close(ours, torch.stack(losses[expert]).mean(), rtol=1e-9, atol=1e-9)
    assert abs(ours - torch.stack(losses[other]).mean()) > 1e-3
    trained = net.optimized()
    assert all(name.startswith(f"base.{EXPERTS[expert]}.blocks.") for name in trained)
    assert all(p.grad is not None for p in trained.values()) and any(p.grad.any() for p in trained.values())


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_guided_step_and_four_steps_through_the_boundary_are_diffusers(nets, theirs, solver):
    """Each expert has its own guidance; LoRA at zero and no control; the sigmas are given to both."""
    prompts, negative = (wan.embeddings(theirs, prompt) for prompt in ("red dog", "dog"))
    base, x, scales = nets["low"].base, draw(1, 3, 4, 4, 6), {"high": 3.5, "low": 2.0}
    cond = conditioned(base, text=prompts, negative_text=negative)
    scheduler = UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=1.0)  # of shifted times
    theirs.scheduler.set_timesteps(4)
    times = theirs.scheduler.sigmas.double()
    used = ["high" if t >= 0.9 else "low" for t in times[:4]]
    assert used == ["high", "high", "low", "low"] or used == ["high", "low", "low", "low"]
    sampler = Denoiser(base, FlowMatching(5.0))
    start = x / ((1 - times[0]) ** 2 + times[0] ** 2).sqrt()  # the sampler scales what it starts from
    guidance = {"guidance": (scales["high"],) * 2, "guidance_2": (scales["low"],) * 2}
    with wan.lifted(), torch.no_grad():
        for steps in (1, 4):
            sigmas = (times / (1 - times))[: steps + 1]
            ours = euler_sample(sampler, start, cond, **guidance, sigmas=sigmas, solver=solver)
            latents = x
            scheduler.set_timesteps(steps)
            scheduler.sigmas = times[: steps + 1]
            scheduler.set_begin_index(0)
            for t, after, expert in zip(times[:steps], times[1 : steps + 1], used, strict=False):
                network = getattr(theirs, EXPERTS[expert])
                u, c = (velocity(network, latents, t, cond, text) for text in (negative, prompts))
                guided = u + scales[expert] * (c - u)
                if solver == "unipc":
                    latents = scheduler.step(guided, scheduler.timesteps[0], latents).prev_sample
                else:
                    latents = latents + (after - t) * guided
            torch.testing.assert_close(ours, latents, rtol=0, atol=1e-9)
        one = euler_sample(sampler, start, cond, guidance=guidance["guidance"], sigmas=sigmas, solver=solver)
    assert not torch.allclose(one, ours, atol=1e-4)  # the second guidance has an effect


def test_its_pipeline_is_diffusers_own(nets, theirs, monkeypatch):
    """The whole of `WanImageToVideoPipeline.__call__`, from our latents and condition, without rounding to float32.

    It asks the networks at whole thousandths, and so do we here.
    """
    prompts, negative = (wan.embeddings(theirs, prompt) for prompt in ("red dog", "dog"))
    base, x = nets["high"].base, draw(1, 3, 4, 4, 6)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    first = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    cond = base.condition(
        {"first_frame": first, "frames": FRAMES, "text": prompts, "negative_text": negative}, {}, None
    )
    seen = {name: [] for name in EXPERTS.values()}
    hooks = [
        getattr(theirs, name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen[name].append(kwargs["timestep"].item()), with_kwargs=True
        )
        for name in seen
    ]

    class Rounded(FlowMatching):
        def times(self, sigmas):
            return super().times(sigmas).floor()

    set_timesteps = theirs.scheduler.set_timesteps
    set_timesteps(4)
    levels = theirs.scheduler.sigmas.double()
    prepared = theirs.prepare_latents

    def prepare(*args):
        torch.testing.assert_close(
            prepared(*args)[1], cond.parts["y"].transpose(1, 2).to(torch.float32), rtol=0, atol=1e-5
        )
        return x.transpose(1, 2), cond.parts["y"].transpose(1, 2)

    def timesteps(*args, **kwargs):
        set_timesteps(*args, **kwargs)
        theirs.scheduler.sigmas, theirs.scheduler.timesteps = levels, theirs.scheduler.timesteps.double()

    monkeypatch.setattr(theirs, "prepare_latents", prepare)
    monkeypatch.setattr(theirs.scheduler, "set_timesteps", timesteps)
    with wan.lifted(), torch.no_grad():
        wanted = theirs(
            Image.fromarray(pixels), None, None, HEIGHT, WIDTH, FRAMES, 4, 3.5, 2.0, latents=x.transpose(1, 2),
            prompt_embeds=prompts, negative_prompt_embeds=negative, output_type="latent", return_dict=False,
        )[0].transpose(1, 2)  # fmt: skip
        sigmas = levels / (1 - levels)
        start = x / ((1 - levels[0]) ** 2 + levels[0] ** 2).sqrt()
        ours = euler_sample(
            Denoiser(base, Rounded(3.0)), start, cond, guidance=(3.5, 3.5), guidance_2=(2.0, 2.0), sigmas=sigmas,
            solver="unipc",
        )  # fmt: skip
    for hook in hooks:
        hook.remove()
    assert all(seen.values()) and min(seen["transformer"]) >= 900 > max(seen["transformer_2"])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-9)


def test_where_memory_is_offloaded_one_expert_is_on_the_device(monkeypatch):
    """Counted by what is sent where; nothing but the last bits differs from both being there."""
    net = module(RandomWan(SIZE, 3, expert="high"), dtype=torch.float64, sampling=Sampling(4, guidance=(3.0, 3.0)))
    cond = net.base.condition({"first_frame": first_frame(), "frames": FRAMES}, {}, None)
    x, places = draw(1, 3, 4, 4, 6), {}
    both = sample(net.denoiser, net.base, cond, x, net.sampling)
    names = {id(getattr(net.base, name)): name for name in EXPERTS.values()}
    resident: list[list[str]] = []

    def brought(network, others, device):
        """As `bring`, on a device that is told from the host by name alone."""
        if places.get(names[id(network)]) != "device":
            places.update({names[id(other)]: "host" for other in others if other is not network})
            places[names[id(network)]] = "device"
        resident.append([name for name, place in places.items() if place == "device"])

    monkeypatch.setattr(experts, "bring", brought)
    net.base.offloaded = True
    alone = sample(net.denoiser, net.base, cond, x, net.sampling)
    torch.testing.assert_close(alone, both, rtol=0, atol=1e-9)
    levels = net.process.levels(4)[:-1]
    assert resident == [["transformer" if t >= 9 else "transformer_2"] for t in levels]
    assert len({name for (name,) in resident}) == 2


def test_the_idle_expert_leaves_before_the_other_comes(monkeypatch):
    moves, (one, other) = [], [torch.nn.Linear(1, 1) for _ in range(2)]
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: moves.append((module is one, str(device))))
    experts.bring(one, [one, other], torch.device("cpu"))
    assert not moves  # it is there
    experts.bring(one, [one, other], torch.device("meta"))
    assert moves == [(False, "cpu"), (True, "meta")]
