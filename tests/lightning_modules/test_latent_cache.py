"""Training on cached latents: the same numbers as encoding in the step, and no cache of another VAE."""

import pytest
import torch

from conditions import RegionWise
from datamodules import WebVidDataModule
from lightning_modules import MotionControlModule
from lightning_modules.bases import SVD
from remoco.cache import cache
from remoco.common.errors import UserError
from tests.support.modules import data, trainer
from tests.support.nets import motion_control, random_svd
from tests.support.sprites import SPRITES


def folder_of(svd: SVD, folder):
    """Small weights in diffusers' real layout."""
    for name in ("unet", "vae", "image_encoder"):
        getattr(svd, name).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return folder_of(random_svd("tiny", seed=1), tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="module")
def cached(sprites, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("cached") / "shards"
    dm = data(sprites)
    dm.prepare_data()
    cache(str(dm.folder / "train"), str(out), base=str(base), device="cpu")
    return dm.folder / "train", out


def shards(folder) -> WebVidDataModule:
    size = {name: SPRITES[name] for name in ("frames", "height", "width")}
    return WebVidDataModule(str(folder), batch_size=2, num_workers=0, **size)


def module(base) -> MotionControlModule:
    return motion_control(RegionWise(min_mask_ratio=0.5), path=str(base), steps=2)


def test_the_cache_is_what_the_step_would_compute(base, cached):
    net = module(base)
    net.configure_model(torch.bfloat16)  # as the recipe trains: the cache holds what that computes
    plain, with_latents = (next(iter(shards(folder).train_dataloader())) for folder in cached)
    assert "video" not in with_latents and plain["key"] == with_latents["key"]
    torch.testing.assert_close(net.clean_latents(with_latents), net.clean_latents(plain), atol=2e-3, rtol=2e-3)
    sigma_aug = torch.full((2,), 0.02)
    a, b = (net.conditioning(clips, sigma_aug, net.draw_control(clips)) for clips in (plain, with_latents))
    unit = 2**-8  # of bfloat16; the image encoder's batch is another, and may be summed otherwise
    torch.testing.assert_close(
        b.parts["image_embedding"].float(), a.parts["image_embedding"].float(), atol=16 * unit, rtol=16 * unit
    )
    assert torch.equal(a.control, b.control) and torch.equal(a.parts["image_latent"], b.parts["image_latent"])


def test_trains_from_the_cache(base, cached, tmp_path):
    run = trainer(tmp_path, 2)
    run.fit(module(base), shards(cached[1]))
    assert run.global_step == 2


def test_a_cache_of_another_vae_is_refused(cached, tmp_path):
    other = folder_of(random_svd("tiny", seed=1), tmp_path / "other")
    random_svd("tiny", seed=2).vae.save_pretrained(other / "vae")
    with pytest.raises(UserError, match="cached latents were made with another vae"):
        trainer(tmp_path, 1).fit(module(other), shards(cached[1]))
