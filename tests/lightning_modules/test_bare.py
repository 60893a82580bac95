"""The base alone, against diffusers' own StableVideoDiffusionPipeline with random weights."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers import image_processor as processing
from diffusers.schedulers import scheduling_euler_discrete as scheduling
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from conditions import RegionWise
from lightning_modules.bases import SVD
from lightning_modules.bases.sprites.sizes import SIZES
from lightning_modules.bases.svd.bare import DIFFUSERS, OURS, sample_bare
from lightning_modules.bases.svd.clip import CLIP_MEAN, CLIP_STD
from lightning_modules.layers import seeded
from lightning_modules.pipeline import MotionControlPipeline
from tests.support.nets import motion_control

FRAMES, STEPS, HEIGHT, WIDTH = 3, 2, 64, 128
SHORT = {"height": HEIGHT, "width": WIDTH}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SVD in diffusers' layout, whose image encoder takes the 224 x 224 that diffusers' pipeline makes."""
    folder, size = tmp_path_factory.mktemp("svd"), SIZES["micro"]
    encoder = {**size.image_encoder, "image_size": 224, "patch_size": 56}
    with seeded(0):
        UNetSpatioTemporalConditionModel(in_channels=8, out_channels=4, **size.unet).save_pretrained(folder / "unet")
        AutoencoderKLTemporalDecoder(**size.vae).save_pretrained(folder / "vae")
        CLIPVisionModelWithProjection(CLIPVisionConfig(**encoder)).save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def picture():
    coarse = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((190, 150), Image.Resampling.BICUBIC)  # of another shape than the frame


def extractor(images, **settings):
    """diffusers' call of the feature extractor, which normalises only."""
    assert settings["do_normalize"] and not settings["do_resize"] and not settings["do_center_crop"]
    mean, std = (torch.tensor(values, dtype=images.dtype).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return SimpleNamespace(pixel_values=(images - mean) / std)


def theirs(folder, dtype):
    """diffusers' pipeline with the scheduler of SVD's repository."""
    parts = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder,
             "image_encoder": CLIPVisionModelWithProjection}  # fmt: skip
    loaded = {name: kind.from_pretrained(folder / name).to(dtype).eval() for name, kind in parts.items()}
    scheduler = EulerDiscreteScheduler(
        beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085, interpolation_type="linear",
        num_train_timesteps=1000, prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, steps_offset=1,
        timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    pipe = StableVideoDiffusionPipeline(**loaded, scheduler=scheduler, feature_extractor=extractor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class InDouble:
    """A module in whose place a file of diffusers has float64 for float32."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self.module, name)


@pytest.fixture
def in_double(monkeypatch):
    """diffusers' image processor and scheduler compute in float32 whatever the networks do; here they do not."""
    for module, names in ((processing, ["np"]), (scheduling, ["np", "torch"])):
        for name in names:
            monkeypatch.setattr(module, name, InDouble(getattr(module, name)))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def draws():
    """Noise of the first frame and of the latents, float64."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return noise, torch.randn(1, FRAMES, 4, HEIGHT // 8, WIDTH // 8, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def svd(folder):
    return SVD(folder).build(torch.float64)


def run(pipe, picture, **options):
    return pipe(picture, num_frames=FRAMES, num_inference_steps=STEPS, **SHORT, **options).frames


def ours(svd, picture, draws, settings=DIFFUSERS, **options):
    settings = replace(settings, num_frames=FRAMES, steps=STEPS)
    noise, latents = draws
    return sample_bare(svd, picture, settings, **SHORT, noise=noise, latents=latents, **options).frames


@pytest.mark.parametrize(
    "theirs_too",
    [{}, {"fps": 12, "motion_bucket_id": 5, "noise_aug_strength": 0.3},
     {"min_guidance_scale": 2.0, "max_guidance_scale": 4.5}, {"max_guidance_scale": 1.0}],
)  # fmt: skip
def test_diffusers_numbers_in_float64(folder, svd, picture, draws, in_double, theirs_too):
    pipe = theirs(folder, torch.float64)
    generator = torch.Generator().manual_seed(1)  # its first draw is the first frame's noise
    expected = run(pipe, picture, generator=generator, latents=draws[1], output_type="latent", **theirs_too)
    assert expected.dtype == torch.float64
    found = ours(svd, picture, draws, replace(DIFFUSERS, **theirs_too), output_type="latent")
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    frames = pipe.vae.decode(found[0] / 0.18215, num_frames=FRAMES).sample  # its own `decode_latents` gives float32
    assert (svd.decode(found)[0] - frames).abs().max() < 1e-12 * frames.abs().max()


def test_diffusers_numbers_in_float32_from_a_generator(folder, picture):
    """The stock pipeline, nothing replaced: the draws of one generator in its order, and float32's rounding."""
    svd = SVD(folder).build(torch.float32)
    expected = run(theirs(folder, torch.float32), picture, generator=torch.Generator().manual_seed(2), output_type="pt")
    settings = replace(DIFFUSERS, num_frames=FRAMES, steps=STEPS)
    generator = torch.Generator().manual_seed(2)
    found = sample_bare(svd, picture, settings, **SHORT, generator=generator, output_type="pt").frames
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-3
    assert (found - expected).abs().max() < 1e-2 * expected.std()


def test_each_setting_of_ours_changes_the_clip(svd, picture, draws):
    """What docs/fidelity.md lists differs, each by itself; nothing is left changed in the base."""
    eps = [module.eps for module in svd.unet.modules() if isinstance(module, torch.nn.GroupNorm)]
    hooks = dict(svd.unet.add_time_proj._forward_hooks)  # the base's own
    bare = ours(svd, picture, draws, output_type="latent")
    for name in ("max_guidance_scale", "fps_offset", "motion_bucket_id", "stock_eps", "squash", "embed_picture"):
        changed = replace(DIFFUSERS, **{name: getattr(OURS, name)})
        found = ours(svd, picture, draws, changed, output_type="latent")
        assert (found - bare).abs().max() > 1e-9 * bare.abs().max(), name
    assert torch.equal(ours(svd, picture, draws, output_type="latent"), bare)
    assert eps == [module.eps for module in svd.unet.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert dict(svd.unet.add_time_proj._forward_hooks) == hooks


def test_the_pipeline_is_the_bare_base_until_it_is_trained(folder, picture, monkeypatch):
    """The same path in float64: an untrained controller changes nothing, a trained one does though nothing is drawn."""
    module = motion_control(RegionWise(), path=str(folder), steps=STEPS, rank=2)
    module.configure_model(torch.float64)
    pipe, drawn = MotionControlPipeline(module), []
    source = "lightning_modules.pipeline_clips.randn"
    monkeypatch.setattr(source, lambda seeds, shape, device: drawn.append(torch.randn(1, *shape).double()) or drawn[-1])
    options = {"num_frames": FRAMES, **SHORT, "output_type": "latent"}
    clip = pipe(picture, **options).frames
    assert clip.dtype == torch.float64
    settings = replace(OURS, num_frames=FRAMES, steps=STEPS)
    noise, latents = drawn[:2]
    bare = sample_bare(module.base, picture, settings, **SHORT, noise=noise, latents=latents, output_type="latent")
    assert (clip - bare.frames).abs().max() < 1e-12 * clip.abs().max()
    with torch.no_grad():
        for parameter in module.injections[0].parameters():
            parameter += 0.05
    replayed = iter([noise, latents])
    monkeypatch.setattr(source, lambda seeds, shape, device: next(replayed))
    assert (pipe(picture, **options).frames - clip).abs().max() > 1e-3 * clip.abs().max()


@pytest.mark.parametrize(
    "options, message",
    [({"height": 60}, "height is 60, expected a multiple of 8"), ({"output_type": "gif"}, "output_type is 'gif'"),
     ({"latents": torch.zeros(1, 2, 4, 8, 8)}, r"latents: expected shape \(1, 3, 4, 8, 16\), got \(1, 2, 4, 8, 8\)")],
)  # fmt: skip
def test_what_does_not_fit_is_named(svd, picture, options, message):
    with pytest.raises(ValueError, match=message):
        sample_bare(svd, picture, replace(DIFFUSERS, num_frames=FRAMES), **{**SHORT, **options})
