"""What diffusers' users write on a pipeline: its parts, where it computes, several videos, the progress bar."""

import copy
import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
)

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases.wan.random import RandomWan
from lightning_modules.config import Control, Sampling
from lightning_modules.layers import cast
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.edm import EDM
from lightning_modules.process.flow_matching import FlowMatching
from lightning_modules.process.scheduler import scheduler_of
from remoco.common.errors import UserError
from tests.support.modules import perturb
from tests.support.nets import motion_control
from tests.support.toy import Toy

IMAGES = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in range(2)]
TRACKS = [[[(20, 20), (40, 30)]], [[(9, 50)]]]
SHORT = {"num_frames": 3, "num_inference_steps": 1}


def made(dtype=torch.float32, **changes) -> MotionControlPipeline:
    module = motion_control(**{"size": "micro", "latents": "space_to_depth", "rank": 2, **changes})
    module.configure_model(dtype)
    pipe = MotionControlPipeline(perturb(module), {"num_frames": 3, "height": 64, "width": 64})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return made()


@pytest.fixture(scope="module")
def exact():
    """In float64, where a batch's sums differ from a clip's by nothing that is seen."""
    pipe = made()
    pipe.module.double()
    return pipe


def test_a_call_takes_what_diffusers_takes():
    """Names and, where the value means the same, defaults; `sigmas` alone is missing: training says the levels."""
    theirs, ours = (
        inspect.signature(kind.__call__).parameters for kind in (StableVideoDiffusionPipeline, MotionControlPipeline)
    )
    assert theirs.keys() - ours.keys() == {"sigmas"}
    for name in ("num_videos_per_prompt", "generator", "latents", "output_type", "return_dict", "decode_chunk_size"):
        assert ours[name].default == theirs[name].default
    loading = inspect.signature(MotionControlPipeline.from_pretrained).parameters
    assert {"pretrained_model_name_or_path", "torch_dtype", "dtype", "variant", "revision"} <= loading.keys()
    saving = inspect.signature(StableVideoDiffusionPipeline.save_pretrained).parameters
    assert inspect.signature(MotionControlPipeline.save_pretrained).parameters.keys() <= saving.keys()


# Parts


@pytest.mark.parametrize("latents, has", [("vae", ["vae"]), ("space_to_depth", []), ("pca", ["pca"])])
def test_components(latents, has):
    pipe = made(latents=latents)
    parts = pipe.components
    assert {name for name, part in parts.items() if part is not None} == {
        "unet", "image_encoder", "motion_encoder", "injections", "scheduler", *has,
    }  # fmt: skip
    assert all(getattr(pipe, name) is part for name, part in parts.items() if name != "scheduler")
    assert pipe.unet is pipe.module.base.unet and (pipe.vae is None) == ("vae" not in has)
    assert not hasattr(pipe, "transformer")
    with pytest.raises(AttributeError, match="has no safety_checker; its components are unet, "):
        _ = pipe.safety_checker
    copied = copy.deepcopy(pipe)
    assert copied.unet is not pipe.unet and copied.lora_files.networks["unet"] is copied.unet


def test_components_of_a_base_of_ones_own():
    own = MotionControlModule(Toy(), RegionWise(), Control(lora=None))
    pipe = MotionControlPipeline(own)
    own.configure_model(torch.float32)  # also when it is built after
    assert list(pipe.components) == ["network", "motion_encoder", "injections", "scheduler"]
    assert pipe.network is pipe.module.base.network and "Toy(init_seed=0)" in repr(pipe)


def test_a_base_with_a_transformer():
    module = MotionControlModule(RandomWan("tiny_ti2v"), RegionWise(), Control(injection=[], rank=2))
    module.configure_model(torch.float32)
    pipe = MotionControlPipeline(module)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer is module.base.transformer and pipe.vae is module.base.vae and not hasattr(pipe, "unet")
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    layer = "transformer.blocks.0.attn1.to_q"
    before = module.base.get_submodule(layer).base_layer.weight.clone()
    width = len(before)
    factors = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(width, 1)}
    pipe.load_lora_weights(factors)
    assert torch.equal(module.base.get_submodule(layer).base_layer.weight, before + 1)
    pipe.unload_lora_weights()
    assert pipe.to(torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(module.base.get_submodule(layer).base_layer.weight, before.bfloat16())


@pytest.mark.parametrize("name", ["unet", "transformer", "vae", "image_encoder", "scheduler"])
def test_a_component_is_not_replaced(pipe, name):
    with pytest.raises(AttributeError, match=f"^{name} is read-only: ") as caught:
        setattr(pipe, name, None)
    assert "\n" not in str(caught.value)


def test_the_scheduler_has_our_levels_and_steps(pipe):
    scheduler = pipe.scheduler
    assert isinstance(scheduler, EulerDiscreteScheduler)
    config = dict(scheduler.config)
    assert (config["sigma_max"], config["sigma_min"], config["use_karras_sigmas"]) == (700, 0.002, True)
    assert config["prediction_type"] == "v_prediction" and EulerDiscreteScheduler.from_config(config)
    pipe.scheduler.set_timesteps(3)
    assert len(pipe.scheduler.timesteps) == pipe.module.sampling.steps  # what is read is a copy


@pytest.mark.parametrize("process, kind", [
    (EDM(), EulerDiscreteScheduler), (EDM(0.01, 5.0), EDMEulerScheduler),
    (FlowMatching(5.0), FlowMatchEulerDiscreteScheduler),
])  # fmt: skip
def test_a_process_is_the_scheduler_of_diffusers(process, kind):
    """Levels, what the network is given, and a step, of any network."""
    for highest in (80.0, None) if kind is not FlowMatchEulerDiscreteScheduler else (None,):
        sampling, x = Sampling(steps=7, sigma_max=highest), torch.linspace(-3, 3, 12).view(1, 1, 3, 2, 2)
        scheduler = scheduler_of(process, sampling)
        assert isinstance(scheduler, kind)
        sigmas = process.levels(7, highest).float()
        flow = kind is FlowMatchEulerDiscreteScheduler
        torch.testing.assert_close(scheduler.sigmas, sigmas / (1 + sigmas) if flow else sigmas, rtol=1e-5, atol=0)
        torch.testing.assert_close(scheduler.timesteps.float(), process.times(sigmas[:-1]), rtol=1e-5, atol=1e-5)
        sigma, following = sigmas[:2]
        noisy, time = process.asked(x, sigma[None])
        if not flow:
            theirs = scheduler.scale_model_input(x, scheduler.timesteps[0])
            torch.testing.assert_close(theirs, noisy, rtol=1e-5, atol=1e-6)
        output = torch.cos(noisy)  # of a network
        stepped = process.step(x, process.denoised(x, output, sigma[None]), sigma, following)
        theirs = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
        torch.testing.assert_close(theirs, stepped, rtol=1e-4, atol=1e-4)


# Device and dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("changes", [{"latents": "vae"}, {"trained": True, "lora": None}])
def test_another_dtype_is_as_if_it_were_built_in_it(dtype, changes):
    built, cast_to = made(dtype, **changes), made(**changes)
    assert cast_to.dtype == torch.float32 and cast_to.to(dtype) is cast_to and cast_to.dtype == built.dtype == dtype
    states = built.module.state_dict(), cast_to.module.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert value.dtype == states[1][name].dtype, name
    clips = [each(IMAGES[0], TRACKS[0], output_type="pt", **SHORT).frames for each in (built, cast_to)]
    if dtype != torch.float64:  # whose first weights are drawn in float32 either way, and then differ by nothing
        assert torch.equal(*clips)
    torch.testing.assert_close(*clips, rtol=0, atol=1e-6)


@pytest.mark.parametrize("place, device, dtype", [
    (("cpu",), "cpu", torch.float32), ((torch.bfloat16,), "cpu", torch.bfloat16), ((), "cpu", torch.float32),
    (("cpu", torch.bfloat16), "cpu", torch.bfloat16), ((torch.device("cpu"), None), "cpu", torch.float32),
    ((None, torch.bfloat16), "cpu", torch.bfloat16),
])  # fmt: skip
def test_to_takes_diffusers_arguments(place, device, dtype):
    pipe = made()
    assert pipe.to(*place) is pipe
    assert (pipe.device, pipe.dtype) == (torch.device(device), dtype)
    assert made().to(device=device, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("place, named, said", [
    ((torch.bfloat16, "cpu"), {}, "device and then"), (("cpu", "cpu"), {}, "the second is cpu"),
    (("cpu",), {"device": "cpu"}, "device is given"), ((torch.float32,), {"dtype": torch.float64}, "dtype is"),
    ((torch.int8,), {}, "dtype is torch.int8, expected one of torch.float32"), ((), {"dtype": "half"}, "dtype is half"),
    (("cpu", torch.float32, 1), {}, "expected a device"),
])  # fmt: skip
def test_what_is_no_place(pipe, place, named, said):
    with pytest.raises(UserError, match=said) as caught:
        pipe.to(*place, **named)
    assert "\n" not in str(caught.value) and pipe.dtype == torch.float32


def test_a_cast_leaves_lora_and_what_is_trained():
    module = motion_control(size="micro", latents="space_to_depth", rank=2)
    module.configure_model(torch.float32)
    unet = module.base.unet
    cast(unet, torch.bfloat16)
    kinds = {(".lora_" in name, p.dtype) for name, p in unet.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


# Several videos


def test_each_of_several_videos_is_the_single_call_at_its_seed(pipe):
    for output_type, equal in (("np", np.array_equal), ("pt", torch.equal), ("latent", torch.equal)):
        options = {"output_type": output_type, **SHORT}
        videos = pipe(IMAGES[0], TRACKS[0], seed=5, num_videos_per_prompt=3, **options).frames
        assert len(videos) == 3
        for index, video in enumerate(videos):
            assert equal(video, pipe(IMAGES[0], TRACKS[0], seed=5 + index, **options).frames[0])
    clips = pipe(IMAGES[0], TRACKS[0], seed=5, num_videos_per_prompt=2, **SHORT).frames
    assert [len(clip) for clip in clips] == [3, 3]
    assert np.array_equal(np.stack(clips[1]), np.stack(pipe(IMAGES[0], TRACKS[0], seed=6, **SHORT).frames[0]))


def test_the_videos_of_a_batch_are_an_images_then_the_nexts(pipe):
    def latents(**options):
        return pipe(IMAGES, TRACKS, output_type="latent", **SHORT, **options).frames

    together = latents(seed=5, num_videos_per_prompt=2)
    assert torch.equal(together[[0, 2]], latents(seed=[5, 7])) and torch.equal(together[[1, 3]], latents(seed=[6, 8]))
    assert torch.equal(together, latents(seed=[5, 6, 7, 8], num_videos_per_prompt=2))
    assert torch.equal(together, latents(seed=[5, 7], num_videos_per_prompt=2))


def test_a_generator_draws_the_seeds_of_all(exact):
    def latents(count, images=IMAGES[0], tracks=TRACKS[0], **options):
        return exact(images, tracks, num_videos_per_prompt=count, output_type="latent", **SHORT, **options).frames

    generator = torch.Generator().manual_seed(3)
    both = torch.cat([latents(1, generator=generator), latents(1, generator=generator)])
    assert torch.equal(both, latents(2, generator=torch.Generator().manual_seed(3)))
    each = [torch.Generator().manual_seed(seed) for seed in range(4)]
    batch = latents(2, IMAGES, TRACKS, generator=each)
    torch.testing.assert_close(batch[2:3], latents(1, IMAGES[1], TRACKS[1],
        generator=torch.Generator().manual_seed(2)), rtol=0, atol=1e-9)  # fmt: skip


@pytest.mark.parametrize("options, said", [
    ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0, expected a whole number"),
    ({"num_videos_per_prompt": 1.5}, "num_videos_per_prompt is 1.5"),
    ({"num_videos_per_prompt": 2, "seed": [1, 2, 3]}, "seed: .* 1 images, or for each of 2"),
    ({"seed": 1.5}, "seed is 1.5, expected a whole number"), ({"seed": None}, "seed is None"),
    ({"generator": 3}, "generator: expected a torch.Generator"),
    ({"latents": torch.zeros(2, 3, 192, 8, 8)}, "latents: expected 1 clips, got 2"),
    ({"latents": torch.zeros(1, 3, 4, 8, 8)}, r"latents: .* shape \(1, 3, 192, 8, 8\), got \(1, 3, 4"),
    ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"), ({"max_guidance_scale": "a"}, "guidance_scale is a"),
    ({"callback_on_step_end": 3}, "callback_on_step_end: expected a function"),
    ({"image": None}, "image: missing"), ({"image": "https://example.org/a.png"}, "not fetched, expected a file"),
    ({"image": torch.rand(3, 64, 64) * 2 - 1}, "floats outside of 0..1"),
    ({"tracks": [(1, 2), (3, 4)]}, "tracks are a list, each of them a list of points"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(pipe, options, said):
    with pytest.raises(UserError, match=said) as caught:
        pipe(**{"image": IMAGES[0], "tracks": TRACKS[0], **SHORT, **options})
    assert "\n" not in str(caught.value)


def test_latents_are_what_the_sampler_starts_from(exact):
    shape = (4, 3, 192, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = {"output_type": "latent", "noise_aug_strength": 0, **SHORT}
    together = exact(IMAGES, TRACKS, latents=noise, num_videos_per_prompt=2, **options).frames
    for index, latents in enumerate(noise):
        one = exact(IMAGES[index // 2], TRACKS[index // 2], latents=latents[None], seed=99, **options).frames
        torch.testing.assert_close(one[0], together[index], rtol=0, atol=1e-9)
    assert (together[0] - together[1]).abs().mean() > 0.1


def test_tensors_are_images_as_in_diffusers(pipe):
    tensors = torch.stack([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in IMAGES])
    options = {"output_type": "latent", **SHORT}
    one, batch = pipe(IMAGES[0], TRACKS[0], **options).frames, pipe(IMAGES, TRACKS, **options).frames
    assert torch.equal(pipe(tensors[0], TRACKS[0], **options).frames, one)
    assert torch.equal(pipe(tensors, TRACKS, **options).frames, batch)
    assert torch.equal(pipe(tuple(IMAGES), TRACKS, **options).frames, batch)


def test_return_dict_false_is_a_tuple_of_the_frames(pipe):
    output = pipe(IMAGES[0], TRACKS[0], output_type="pt", **SHORT)
    plain = pipe(IMAGES[0], TRACKS[0], output_type="pt", return_dict=False, **SHORT)
    assert isinstance(plain, tuple) and len(plain) == 1 and torch.equal(plain[0], output.frames)
    assert torch.equal(output[0], output["frames"]) and list(output) == ["frames"]


# Progress


def test_the_progress_bar_is_tqdms_and_can_be_set(capsys):
    pipe, steps = made(), []
    pipe.set_progress_bar_config()
    pipe(IMAGES[0], TRACKS[0], num_frames=3, num_inference_steps=2, num_videos_per_prompt=2,
         callback_on_step_end=lambda pipe, step, time, tensors: steps.append((step, float(time))))  # fmt: skip
    assert "4/4" in capsys.readouterr().err
    assert [step for step, _ in steps] == [0, 1, 0, 1]
    times = [0.25 * np.log(sigma) for sigma in (700, 0.002)]  # EDM's c_noise
    assert np.allclose([time for _, time in steps], times * 2)
    pipe.set_progress_bar_config(desc="mine", ncols=60)
    pipe(IMAGES[0], TRACKS[0], **SHORT)
    assert "mine: 100%" in capsys.readouterr().err
    assert list(pipe.progress_bar(range(3))) == [0, 1, 2]
    pipe.set_progress_bar_config(disable=True)
    capsys.readouterr()
    pipe(IMAGES[0], TRACKS[0], **SHORT)
    assert capsys.readouterr().err == ""


def test_its_repr_says_what_it_holds(pipe):
    lines = repr(made(torch.bfloat16)).splitlines()
    assert lines[0] == "MotionControlPipeline(" and lines[-1] == ")"
    named = dict(line.strip().split(": ", 1) for line in lines[1:-1])
    assert "init_seed=0" in named["base"] and "unet UNetSpatioTemporalConditionModel of " in named["networks"]
    assert "modulation, LoRA of rank 2 in attention layers" in named["control"]
    assert "RegionWise(region_size=8" in named["condition"] and "25 steps, guidance 1 to 2.5" in named["sampler"]
    assert named["clips"].startswith("3 frames of 64 x 64; fps 8") and named["computes"] == "bfloat16 on cpu"
