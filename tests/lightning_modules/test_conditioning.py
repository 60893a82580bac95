"""What a step gives the network: ids, latents, noise, dropout and guidance, by the method's definitions."""

import math

import pytest
import torch

from conditions import RegionWise, flow_to_pixels
from lightning_modules import MotionControlModule, networks
from lightning_modules.bases.svd.network import CONDITIONINGS
from lightning_modules.conditioning import Conditioning, to_float
from lightning_modules.video_module import AUG_NOISE, NOISE, POSTERIOR
from tests.support.arithmetic import assert_rounded
from tests.support.modules import data
from tests.support.nets import motion_control


@pytest.fixture(scope="module")
def net() -> MotionControlModule:
    net = motion_control(RegionWise(min_mask_ratio=0.5), size="tiny", latents="vae", guidance=(1.5, 3.5))
    net.configure_model()
    net.log = lambda *args, **kwargs: None
    return net


@pytest.fixture(scope="module")
def batch(sprites) -> dict:
    dm = data(sprites, batch_size=3)
    dm.prepare_data()
    dm.setup("validate")
    return next(iter(dm.val_dataloader()))


def ids_of(cond: Conditioning) -> list[torch.Tensor]:
    return [cond.parts[name] for name in ("fps", "motion_bucket_id", "sigma_aug")]


def pixels(frames: torch.Tensor) -> torch.Tensor:
    return frames.double() / 127.5 - 1


def test_conditioning(net, batch, monkeypatch):
    seen = {}
    encode, embed = net.base.encode, net.base.embed_image
    monkeypatch.setattr(net.base, "encode", lambda clips: seen.setdefault("encode", (clips, encode(clips)))[1])
    monkeypatch.setattr(net.base, "embed_image", lambda frames: seen.setdefault("embed", (frames, embed(frames)))[1])
    sigma_aug = torch.tensor([0.01, 0.3, 2.0])
    cond = net.conditioning(batch, sigma_aug, net.draw_control(batch))
    flow = flow_to_pixels(batch["flow"], batch["flow_step"]).double()
    magnitude = flow.square().sum(2).sqrt().mean((1, 2, 3))
    assert (batch["motion_bucket"] - magnitude).abs().max() <= batch["flow_step"].max() * 2**0.5  # of the exact tracks
    for found, expected in zip(ids_of(cond), (batch["fps"], batch["motion_bucket"], sigma_aug), strict=True):
        assert_rounded(found, expected.double())
    first = pixels(batch["video"][:, 0])
    noise = net.draw_noise(batch, AUG_NOISE, (3, 64, 64)).double()
    expected = first + sigma_aug.double().view(-1, 1, 1, 1) * noise
    assert_rounded(seen["encode"][0][:, 0], expected)
    assert torch.equal(cond.parts["image_latent"], seen["encode"][1].mean[:, 0])  # the mode, not scaled
    assert_rounded(seen["embed"][0], first)  # the clean frame
    assert torch.equal(cond.parts["image_embedding"], seen["embed"][1])
    assert torch.equal(cond.control, net.draw_control(batch))


def test_clean_latents_are_a_scaled_posterior_sample(net, batch):
    frames = to_float(batch["video"].flatten(0, 1))
    assert_rounded(frames, pixels(batch["video"].flatten(0, 1)))
    mean, std = (x.double() for x in net.base.encode(frames.unflatten(0, (3, 4))))
    expected = (mean + std * net.draw_noise(batch, POSTERIOR, mean.shape[1:])) * 0.18215
    assert_rounded(net.clean_latents(batch), expected)
    assert std.max() > 0


def test_training_step_trains_the_denoiser_of_the_method(net, batch, monkeypatch):
    seen = {}

    def denoiser(noisy, sigma, cond):
        seen.update(noisy=noisy, sigma=sigma, cond=cond)
        return noisy * 0.5

    monkeypatch.setattr(net, "denoiser", denoiser)
    loss = net.training_step(batch, 0)
    clean = net.clean_latents(batch).double()
    sigma = seen["sigma"].double().view(-1, 1, 1, 1, 1)
    assert_rounded(seen["noisy"], clean + sigma * net.draw_noise(batch, NOISE, clean.shape[1:]))
    found = seen["cond"]
    cond = net.conditioning(batch, found.parts["sigma_aug"], net.draw_control(batch))
    assert all(torch.equal(value, cond.parts[name]) for name, value in found.parts.items())
    assert found.parts.keys() == found.keep.keys() == set(CONDITIONINGS)
    weight = (sigma**2 + 1) / sigma**2
    assert_rounded(loss, (weight * (seen["noisy"].double() * 0.5 - clean) ** 2).mean())


def test_draws_over_many_positions(net, monkeypatch):
    """log sigma ~ N(0.7, 1.6), log sigma_aug ~ N(-3, 0.5), five independent dropouts of 0.1."""
    count, seen = 6000, {}
    zeros = torch.zeros(count, 1, 1, 1, 1)
    monkeypatch.setattr(net, "clean_latents", lambda batch: zeros)

    def conditioning(batch, sigma_aug, control):
        seen["sigma_aug"] = sigma_aug
        return Conditioning({})

    def denoiser(noisy, sigma, cond):
        seen.update(sigma=sigma, keep=torch.stack([cond.keep[name] for name in CONDITIONINGS], dim=1))
        return noisy

    monkeypatch.setattr(net, "conditioning", conditioning)
    monkeypatch.setattr(net, "draw_control", lambda batch: None)
    monkeypatch.setattr(net.motion_encoder, "forward", lambda control: None)
    monkeypatch.setattr(net, "denoiser", denoiser)
    net.training_step({"position": torch.arange(count)}, 0)
    for name, mean, std in (("sigma", 0.7, 1.6), ("sigma_aug", -3.0, 0.5)):
        log = seen[name].log().double()
        assert abs(log.mean() - mean) < 5 * std / math.sqrt(count)
        assert abs(log.std() - std) < 5 * std / math.sqrt(2 * count)
    keep = seen["keep"].double()
    assert keep.shape == (count, 5)
    assert (keep.mean(0) - 0.9).abs().max() < 5 * 0.3 / math.sqrt(count)
    correlation = torch.corrcoef(torch.cat([keep, seen["sigma"].log()[:, None], seen["sigma_aug"].log()[:, None]], 1).T)
    assert (correlation - torch.eye(7)).abs().max() < 5 / math.sqrt(count)


def test_a_sample_uses_the_modules_guidance_steps_and_inference_noise(net, batch, monkeypatch):
    seen = {}

    def sampler(denoiser, noise, cond, steps, guidance, sigma_max, on_step, recorded, solver, guidance_2):
        seen.update(sigma_aug=cond.parts["sigma_aug"], steps=steps, guidance=guidance, noise=noise)
        return noise

    monkeypatch.setattr(networks, "euler_sample", sampler)
    net.sample(batch, net.draw_control(batch))
    assert seen["guidance"] == (1.5, 3.5) and seen["steps"] == 25
    assert torch.equal(seen["sigma_aug"], torch.full((3,), 0.02))
    assert seen["noise"].shape == (3, 4, 4, 8, 8)
