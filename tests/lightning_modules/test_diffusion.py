"""EDM: noise, preconditioning, loss, dropout of conditionings, sigmas, sampler."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from lightning_modules.bases.svd.network import CONDITIONINGS, UNCONDITIONAL, conditioning
from lightning_modules.process.base import Denoiser, randn, sample_sigma
from lightning_modules.process.edm import EDM, edm_loss, input_scales, karras_sigmas, output_scales
from lightning_modules.process.sampler import euler, euler_sample, guided
from tests.support.arithmetic import UNIT_ROUNDOFF, assert_rounded
from tests.support.modules import inputs
from tests.support.nets import OfTensors, random_svd


@pytest.fixture(scope="module")
def svd():
    return random_svd("tiny", seed=2, dtype=torch.float32)


def scheduler() -> EulerDiscreteScheduler:
    """diffusers' scheduler as the SVD repository configures it."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )


def test_noise_depends_on_the_seed_not_on_the_batch():
    before = torch.get_rng_state()
    noise = randn([7, 2**63 + 5, -3], (2, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert noise.shape == (3, 2, 3) and noise.dtype == torch.float32
    assert torch.equal(randn([-3], (2, 3))[0], noise[2]) and torch.equal(randn([7, -3], (2, 3)), noise[[0, 2]])
    assert not torch.equal(noise[0], noise[1])


def test_sigma_is_log_normal():
    log_sigma = sample_sigma(range(4000), 0.7, 1.6).log()
    assert log_sigma.mean().item() == pytest.approx(0.7, abs=0.1)  # 4 standard errors
    assert log_sigma.std().item() == pytest.approx(1.6, abs=0.1)
    assert sample_sigma([5], 0.7, 1.6).equal(sample_sigma([4, 5], 0.7, 1.6)[1:])


def test_preconditioning_is_svds():
    sigma = torch.tensor([0.002, 1.0, 3.0, 700.0], dtype=torch.float64)
    (c_in, c_noise), (c_skip, c_out) = input_scales(sigma), output_scales(sigma)
    torch.testing.assert_close(c_skip, torch.tensor([1 / 1.000004, 0.5, 0.1, 1 / 490001], dtype=torch.float64))
    torch.testing.assert_close(c_out[1:3], -torch.tensor([0.5**0.5, 3 / 10**0.5], dtype=torch.float64))
    torch.testing.assert_close(c_in[2], torch.tensor(10**-0.5, dtype=torch.float64))
    torch.testing.assert_close(c_noise[1:3], torch.tensor([0, 0.2746530721670274], dtype=torch.float64))


def test_weighted_loss_is_the_v_loss():
    clean, noise, prediction = (randn([i, i + 9], (3, 4, 2, 2)).double() for i in range(3))
    sigma = torch.tensor([0.05, 20.0], dtype=torch.float64)
    s = sigma.view(-1, 1, 1, 1, 1)
    c_skip, c_out = (c.view(-1, 1, 1, 1, 1) for c in output_scales(sigma))
    loss = edm_loss(c_skip * (clean + s * noise) + c_out * prediction, clean, sigma)
    v = (noise - s * clean) / (s**2 + 1).sqrt()
    assert loss.shape == (2, 3)
    torch.testing.assert_close(loss, (prediction - v).square().flatten(2).mean(2))


def test_denoiser_output_is_finite_over_all_sigmas_and_in_the_input_dtype():
    svd = random_svd("tiny", dtype=torch.bfloat16)
    denoiser, (noisy, _, *rest) = OfTensors(svd), inputs(svd)
    for value in (0.002, 1.0, 700.0):
        out = denoiser(value * noisy, torch.full((2,), value), *rest)
        assert out.dtype == torch.float32 and out.isfinite().all()
    # at sigma 0.002 the network's share is 0.002: the input comes through
    torch.testing.assert_close(denoiser(noisy, torch.full((2,), 0.002), *rest), noisy, atol=0.05, rtol=0)


@pytest.mark.parametrize("dropped", range(5), ids=CONDITIONINGS)
def test_dropout_zeroes_one_embedding_of_one_sample(svd, dropped):
    denoiser = OfTensors(svd)
    noisy, sigma, latent, embedding, ids = inputs(svd)
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[1, dropped] = False
    seen = {}
    hooks = [
        svd.unet.add_embedding.register_forward_pre_hook(lambda m, args: seen.update(ids=args[0])),
        svd.unet.conv_in.register_forward_pre_hook(lambda m, args: seen.update(latent=args[0][:, 4:])),
        svd.unet.down_blocks[0].register_forward_pre_hook(
            lambda m, args, kwargs: seen.update(embedding=kwargs["encoder_hidden_states"]), with_kwargs=True
        ),
    ]
    with torch.no_grad():
        kept = denoiser(noisy, sigma, latent, embedding, ids)
        full = dict(seen)
        out = denoiser(noisy, sigma, latent, embedding, ids, keep)
        assert torch.equal(denoiser(noisy, sigma, latent, embedding, ids), kept)  # nothing stays dropped
        denoiser(noisy, sigma, latent, embedding, ids, keep)
    for hook in hooks:
        hook.remove()
    assert torch.equal(out[0], kept[0]) and not torch.equal(out[1], kept[1])
    width = svd.unet.config.addition_time_embed_dim
    expected = {
        "embedding": full["embedding"].clone().unflatten(0, (2, 3)),
        "latent": full["latent"].clone().unflatten(0, (2, 3)),
        "ids": full["ids"].clone().view(2, 3, width),
    }
    name = CONDITIONINGS[dropped]
    if name == "image_embedding":
        expected["embedding"][1] = 0
    elif name == "image_latent":
        expected["latent"][1] = 0
    else:
        expected["ids"][1, ("fps", "motion_bucket_id", "sigma_aug").index(name)] = 0
    for key, value in expected.items():
        assert torch.equal(seen[key], value.reshape(seen[key].shape)), key


def test_ids_reach_the_network_in_order(svd):
    """fps, motion bucket, sigma_aug: each in its own third of the embedding."""
    width = svd.unet.config.addition_time_embed_dim
    seen = []
    hook = svd.unet.add_embedding.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    noisy, sigma, latent, embedding, ids = inputs(svd)
    with torch.no_grad():
        OfTensors(svd)(noisy, sigma, latent, embedding, ids)
    hook.remove()
    cosines = seen[0].view(2, 3, width)[0, :, 0]
    assert_rounded(cosines, torch.tensor([8.0, 17.0, 0.02]).double().cos())


@pytest.mark.parametrize("steps", [5, 25, 30])
def test_sigmas_are_the_svd_schedulers(steps):
    theirs = scheduler()
    theirs.set_timesteps(steps)
    ours = karras_sigmas(steps, dtype=torch.float64)
    assert torch.equal(karras_sigmas(steps), ours.float())
    # theirs: a power of 7 and a logarithm in float32
    torch.testing.assert_close(theirs.sigmas.double(), ours, rtol=100 * UNIT_ROUNDOFF, atol=0)
    assert_rounded(theirs.timesteps, 0.25 * ours[:-1].log())
    assert theirs.init_noise_sigma.item() == pytest.approx((ours[0] ** 2 + 1).sqrt().item(), rel=1e-6)


class SmoothDenoiser(Denoiser):
    """A network that does not blow roundings up, as the tiny UNet with its GroupNorm over few values does."""

    def network(self, noisy, c_noise, cond):
        parts = cond.parts
        context = parts["image_latent"][:, None] + parts["image_embedding"].mean((1, 2)).view(-1, 1, 1, 1, 1)
        return torch.tanh(noisy + context) * (1 + 0.1 * c_noise.view(-1, 1, 1, 1, 1))


def test_euler_steps_are_the_svd_schedulers(svd):
    """From the same point, each step is the one of diffusers' own loop: scale_model_input, v-prediction, step.

    diffusers steps in float32: a step is a dozen roundings of values no larger than the step's input.
    """
    denoiser = SmoothDenoiser(svd, EDM())
    noise, _, latent, embedding, ids = (part.double() for part in inputs(svd))
    cond, scale = conditioning(latent, embedding, ids), torch.linspace(1.0, 2.5, 3, dtype=torch.float64)
    theirs = scheduler()
    theirs.set_timesteps(6)
    sigmas = theirs.sigmas.double()
    x = noise * (sigmas[0] ** 2 + 1).sqrt()
    for i, t in enumerate(theirs.timesteps):
        scaled, c_noise = theirs.scale_model_input(x.float(), t).double(), t.double().expand(2)
        u, c = (denoiser.network(scaled, c_noise, branch) for branch in (cond.unconditional(UNCONDITIONAL), cond))
        prediction = u + scale.view(1, 3, 1, 1, 1) * (c - u)
        expected = theirs.step(prediction.float(), t, x.float()).prev_sample.double()
        following = euler(EDM(), guided(denoiser, cond, scale), x, sigmas[i : i + 2])
        assert (following - expected).abs().max() < 100 * UNIT_ROUNDOFF * x.abs().max()
        x = following
    assert torch.equal(euler_sample(denoiser, noise, cond, sigmas=sigmas), x) and x.std() > 0.1


def test_euler_solves_a_known_problem():
    """For data at one point D = mu, and one step to sigma 0 lands on it."""
    mu = randn([1], (2, 4, 2, 2)).double()
    x = euler(
        EDM(), lambda x, sigma: mu, 700 * randn([2], (2, 4, 2, 2)).double(), karras_sigmas(4, dtype=torch.float64)
    )
    torch.testing.assert_close(x, mu, atol=1e-10, rtol=0)


def test_guidance_drops_image_embedding_and_latent_only():
    svd = random_svd("tiny", seed=2, dtype=torch.float64)
    denoiser = OfTensors(svd)
    noisy, sigma, latent, embedding, ids = (part.double() for part in inputs(svd))
    scale = torch.tensor([1.0, 1.75, 2.5], dtype=torch.float64)
    with torch.no_grad():
        keep = torch.tensor([[False, True, True, False, True]] * 2)
        u = denoiser(noisy, sigma, latent, embedding, ids, keep)
        c = denoiser(noisy, sigma, latent, embedding, ids)
        out = guided(denoiser.denoiser, conditioning(latent, embedding, ids), scale)(noisy, sigma)
    expected = u + scale.view(1, 3, 1, 1, 1) * (c - u)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out[:, 0], c[:, 0], atol=1e-9, rtol=1e-9)
    assert (c - u).abs().max() > 0.01


def test_sampling_is_a_function_of_its_inputs(svd):
    denoiser = OfTensors(svd)
    noise, _, latent, embedding, ids = inputs(svd)
    before = torch.get_rng_state()
    with torch.no_grad():
        first = denoiser.sample(noise, latent, embedding, ids, steps=2)
        assert torch.equal(denoiser.sample(noise, latent, embedding, ids, steps=2), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.isfinite().all() and first.shape == noise.shape
