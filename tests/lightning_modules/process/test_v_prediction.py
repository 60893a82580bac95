"""v-prediction with zero terminal SNR: noise, prediction, loss, times, levels, steps, against diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.process import VPrediction
from lightning_modules.process.base import NoiseProcess
from lightning_modules.process.sampler import euler
from lightning_modules.process.scheduler import scheduler_of
from remoco.common.errors import UserError
from tests.support.toy import Toy

AT = torch.tensor([0, 3, 250, 749, 998, 999])


def scheduler(shift=1.0):
    """With the settings of CogVideoX-5b-I2V's."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=shift, clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip


def latents(count, batch=6):
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(batch, 3, 4, 2, 2, dtype=torch.float64, generator=draw) for _ in range(count)]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_its_table_is_diffusers(shift):
    """At each of its times, the last without any signal; between them the time follows the signal."""
    process, theirs = VPrediction(shift), scheduler(shift)
    share = theirs.alphas_cumprod
    sigmas = process.table()
    torch.testing.assert_close(1 / (1 + sigmas**2), share, rtol=1e-10, atol=1e-16)
    assert sigmas[-1] == math.inf and sigmas[:-1].isfinite().all() and (sigmas.diff() > 0).all()
    torch.testing.assert_close(process.times(sigmas), torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-9)
    between = 0.25 * share[5].sqrt() + 0.75 * share[6].sqrt()
    sigma = (1 / between**2 - 1).sqrt().view(1)
    assert process.times(sigma).item() == pytest.approx(5.75, abs=1e-9)
    assert process.times(torch.tensor([0.0, 1e-9, math.inf])).tolist() == [0, 0, 999]
    near = process.times(sigmas[:-1].float())
    assert near.dtype == torch.float32
    torch.testing.assert_close(near.double(), torch.arange(999.0, dtype=torch.float64), rtol=0, atol=1e-3)
    assert 998.99 < process.times(torch.tensor([process.highest])).item() < 999


def test_it_noises_predicts_and_weighs_as_diffusers():
    """Its trainers' loss: the error of the clean latents that `get_velocity` gives, over 1 - alpha-bar."""
    clean, noise, output = latents(3)
    process, theirs = VPrediction(), scheduler()
    sigmas = process.table()[AT]
    noisy = process.mix(clean, noise, sigmas)
    torch.testing.assert_close(noisy, theirs.add_noise(clean, noise, AT), rtol=0, atol=1e-12)
    asked, time = process.asked(noisy, sigmas)
    assert torch.equal(asked, noisy)
    torch.testing.assert_close(time, AT.double(), rtol=0, atol=1e-9)
    estimate = theirs.get_velocity(output, noisy, AT)
    denoised = process.denoised(noisy, output, sigmas)
    torch.testing.assert_close(denoised, estimate, rtol=0, atol=1e-12)
    weight = 1 / (1 - theirs.alphas_cumprod[AT])
    loss = process.loss(denoised, clean, sigmas)
    wanted = weight.view(-1, 1) * (estimate - clean).square().mean((2, 3, 4))
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=0)
    velocity = theirs.get_velocity(clean, noise, AT)
    torch.testing.assert_close(loss, (output - velocity).square().mean((2, 3, 4)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.denoised(noisy, velocity, sigmas), clean, rtol=0, atol=1e-12)
    one = process.mix(clean, noise, 0.75)  # one level for all, as in validation
    torch.testing.assert_close(one, 0.8 * clean + 0.6 * noise, rtol=0, atol=1e-12)


def test_infinite_and_no_noise_are_finite():
    clean, noise = latents(2, batch=2)
    for dtype in (torch.float32, torch.float64):
        process, ends = VPrediction(), torch.tensor([math.inf, 0.0], dtype=dtype)
        noisy = process.mix(clean.to(dtype), noise.to(dtype), ends)
        assert torch.equal(noisy[0], noise[0].to(dtype)) and torch.equal(noisy[1], clean[1].to(dtype))
        high = torch.tensor([math.inf, process.highest], dtype=dtype)
        loss = process.loss(process.denoised(noisy, noisy, high), clean.to(dtype), high)
        assert loss.isfinite().all() and loss.any()


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_levels_and_steps_are_diffusers(steps):
    """From infinite noise, with its own trailing times; and from our highest level, which is finite."""
    x, process, theirs = latents(1, batch=1)[0], VPrediction(), scheduler()
    theirs.set_timesteps(steps)
    levels = process.levels(steps)
    assert levels[0] == process.highest and levels[-1] == 0 and levels.dtype == torch.float64
    torch.testing.assert_close(levels[1:-1], process.table()[theirs.timesteps[1:]], rtol=1e-12, atol=0)
    assert process.levels(steps, 20.0)[0] == 20

    def predicted(x, time):
        return torch.tanh(x) * (1 + time / 1000) - 0.3 * x

    def denoise(x, sigma):
        noisy, time = process.asked(x, sigma)
        return process.denoised(noisy, predicted(noisy, time[0]), sigma)

    wanted = x
    for time in theirs.timesteps:
        wanted = theirs.step(predicted(wanted, time.double()), time, wanted).prev_sample
    infinite = torch.cat([torch.tensor([math.inf], dtype=torch.float64), levels[1:]])
    start = process.start(x, infinite[0])
    torch.testing.assert_close(euler(process, denoise, start, infinite), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(euler(process, denoise, start, levels), wanted, rtol=0, atol=1e-3)
    single = euler(process, lambda x, s: denoise(x, s).float(), x.float(), levels.float())
    torch.testing.assert_close(single.double(), wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("steps", [3, 7, 999, 1000, 3000])
def test_any_number_of_steps_goes_down(steps):
    levels = VPrediction().levels(steps)
    assert len(levels) == steps + 1 and levels.isfinite().all() and (levels.diff() <= 0).all()


def test_its_training_distribution_is_that_of_its_times():
    """The normal's quantiles are near those of uniform times, as its authors train; a shift multiplies sigma."""
    process = VPrediction()
    exact = process.table()[:-1].quantile(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64))
    assert process.training == pytest.approx((0.776, 1.587), abs=1e-3)
    assert process.validated() == pytest.approx(exact.tolist(), rel=0.25)
    assert VPrediction(4.0).training[0] - process.training[0] == pytest.approx(math.log(2), abs=0.1)
    net = MotionControlModule(Toy(3), RegionWise(), Control([], None), Noise(process))
    many = net.draw_sigma({"position": torch.arange(2000)})
    assert torch.equal(net.draw_sigma({"position": torch.tensor([7, 1999])}), many[[7, 1999]])
    assert many.log().mean().item() == pytest.approx(process.training[0], abs=0.1)
    assert net.sampling.sigma_max == process.highest


def test_what_a_pipeline_shows_and_a_record_says():
    process = VPrediction(3.0)
    shown = scheduler_of(process, Sampling(4))
    assert isinstance(shown, CogVideoXDDIMScheduler) and shown.timesteps.tolist() == [999, 749, 499, 249]
    assert torch.equal(shown.alphas_cumprod, scheduler(3.0).alphas_cumprod)
    record = process.record()
    assert record == {"class_path": "lightning_modules.process.VPrediction", "init_args": {"shift": 3.0}}
    assert NoiseProcess.from_record(record).record() == record
    for shift in (0.0, float("nan"), 1e9):
        with pytest.raises(UserError, match="^noise.process: shift is .*expected") as error:
            VPrediction(shift)
        assert "\n" not in str(error.value)
