"""Flow matching: noise, prediction, loss, weights, levels, draws, and what a checkpoint says of it."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process import EDM, FlowMatching
from lightning_modules.process.base import NoiseProcess
from lightning_modules.process.bounds import Bounds
from lightning_modules.process.sampler import euler
from lightning_modules.process.scheduler import scheduler_of
from remoco import configs
from remoco.common.errors import UserError
from remoco.training import Unstarted
from tests.support.modules import data, trainer
from tests.support.same import same
from tests.support.toy import Toy

TIMES = torch.tensor([0.001, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
SIGMAS = TIMES / (1 - TIMES)


def latents(count, batch=5):
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(batch, 3, 4, 2, 2, dtype=torch.float64, generator=draw) for _ in range(count)]


def test_it_noises_predicts_and_weighs_as_flow_matching():
    """x = (1 - t) x0 + t n; the network is asked at 1000 t for v = n - x0, and |v - v^|^2 is the loss."""
    clean, noise, output = latents(3)
    process, t = FlowMatching(), TIMES.view(-1, 1, 1, 1, 1)
    noisy = process.mix(clean, noise, SIGMAS)
    torch.testing.assert_close(noisy, (1 - t) * clean + t * noise, rtol=0, atol=1e-12)
    asked, time = process.asked(noisy, SIGMAS)
    assert torch.equal(asked, noisy)
    torch.testing.assert_close(time, 1000 * TIMES, rtol=1e-12, atol=0)
    torch.testing.assert_close(process.denoised(noisy, noise - clean, SIGMAS), clean, rtol=0, atol=1e-12)
    loss = process.loss(process.denoised(noisy, output, SIGMAS), clean, SIGMAS)
    torch.testing.assert_close(loss, (output - (noise - clean)).square().mean((2, 3, 4)), rtol=1e-9, atol=0)
    one = process.mix(clean, noise, 1.5)  # one level for all, as in validation
    torch.testing.assert_close(one, 0.4 * clean + 0.6 * noise, rtol=0, atol=1e-12)


def test_infinite_and_no_noise():
    clean, noise = latents(2)
    process, ends = FlowMatching(), torch.tensor([math.inf, 0.0] + [1.0] * 3, dtype=torch.float64)
    noisy = process.mix(clean, noise, ends)
    assert torch.equal(noisy[0], noise[0]) and torch.equal(noisy[1], clean[1])
    assert process.times(ends)[:2].tolist() == [1000, 0]


def test_bell_is_diffsynths():
    """Its scheduler's weights of 1,000 times of shift 5: exp(-2 ((i - 500) / 1000)^2) less the least, of mean 1."""
    u = np.linspace(1, 0, 1001)[:-1]
    t = 5 * u / (1 + 4 * u)
    weight = np.exp(-2 * ((1000 * t - 500) / 1000) ** 2)
    weight -= weight.min()
    weight /= weight.mean()
    ours = FlowMatching(5.0, "bell").bell(torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(ours, weight, rtol=0, atol=1e-9)
    clean, noise = latents(2)
    plain, bell = (p.loss(noise, clean, SIGMAS) for p in (FlowMatching(5.0), FlowMatching(5.0, "bell")))
    factor = FlowMatching(5.0, "bell").bell(TIMES)
    torch.testing.assert_close(bell, plain * factor[:, None], rtol=1e-9, atol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_levels_are_those_of_diffusers(shift):
    """UniPC as Wan's folders configure it, with the YAML's shift; its float32 sigmas are our times."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(7)
    process = FlowMatching(shift)
    levels = process.levels(7)
    torch.testing.assert_close((process.times(levels) / 1000).float(), scheduler.sigmas, rtol=0, atol=1e-7)
    named = scheduler_of(process, Sampling(7, solver="unipc"))  # what a pipeline shows
    assert isinstance(named, UniPCMultistepScheduler) and torch.equal(named.sigmas, scheduler.sigmas)
    assert levels[0] == process.highest and process.levels(7, 20.0)[0] == 20 and levels.dtype == torch.float64


def test_four_euler_steps_are_diffusers():
    """Its scheduler computes in float32: the same to that; and to 1e-12 by hand."""
    x = latents(1, batch=1)[0]
    process, scheduler = FlowMatching(3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    times = scheduler.sigmas.double()

    def velocity(x, t):
        return torch.tanh(x) * (1 + t) - 0.3 * x

    def denoise(x, sigma):
        noisy, time = process.asked(x, sigma)
        return process.denoised(noisy, velocity(noisy, time[0] / 1000), sigma)

    ours = euler(process, denoise, x, times / (1 - times))
    theirs, exact = x.float(), x
    for step, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(velocity(theirs, t / 1000), t, theirs).prev_sample
        exact = exact + (times[step + 1] - times[step]) * velocity(exact, times[step])
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1e-5)
    assert torch.isfinite(ours).all() and times[0] == 1  # from pure noise


def test_where_a_sampler_starts_from_has_the_variance_of_a_noised_clip():
    noise = torch.ones(1, dtype=torch.float64)
    assert FlowMatching().start(noise, torch.tensor(1.0, dtype=torch.float64)).item() == pytest.approx(0.5**0.5)


def test_its_shift_is_the_training_distribution():
    """A normal ln sigma of mean ln shift is a logit-normal t, shifted: the shift adds ln shift to the logit."""
    process = FlowMatching(5.0)
    torch.testing.assert_close(process.shifted(TIMES).logit(), TIMES.logit() + math.log(5), rtol=1e-12, atol=0)
    for said, expected in (
        (Noise(process), (math.log(5), 1.0)),
        (Noise(process, mean=0.0, std=2.0), (0.0, 2.0)),
        (Noise(), (0.7, 1.6)),
    ):
        resolved = said.over(said.process or EDM())
        assert (resolved.mean, resolved.std) == expected
    shares = (0.1, 0.3, 0.5, 0.7, 0.9)
    exact = [math.exp(math.log(5) + NormalDist().inv_cdf(share)) for share in shares]
    assert process.validated() == pytest.approx(exact, rel=0.005)
    assert EDM().validated() == pytest.approx([math.exp(0.7 + 1.6 * NormalDist().inv_cdf(s)) for s in shares], rel=0.01)
    assert Sampling().over(EDM()).sigma_max == 700 and Sampling(sigma_max=3.0).over(process).sigma_max == 3


def test_unipc_is_exact_where_the_clean_latents_are_constant():
    """It integrates the flow to one point without error; Euler does too; nothing is rounded to float32."""
    x, clean = latents(2, batch=1)
    process = FlowMatching(5.0)
    for solver in process.solvers:
        end = euler(process, lambda x, sigma: clean, x, process.levels(5), solver=solver)
        torch.testing.assert_close(end, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("highest", [0.01, 20.0, 900_000.0, 1e6, None])
def test_levels_fall_from_the_highest_that_is_said(highest):
    """No level twice: a step of no length divides by zero in UniPC."""
    x, clean = latents(2, batch=1)
    for shift in (0.5, 1.0, 5.0):
        process = FlowMatching(shift)
        levels = process.levels(10, highest)
        assert levels[0] == min(highest or process.highest, process.highest) and levels[-1] == 0
        assert levels.diff().lt(0).all()
        for solver in process.solvers:
            end = euler(process, lambda x, sigma: clean, x, levels, solver=solver)
            torch.testing.assert_close(end, clean, rtol=0, atol=1e-9)
            shown = scheduler_of(process, Sampling(10, highest, solver=solver)).sigmas
            assert len(shown) == 11 and shown.diff().lt(0).all()
            assert abs(shown[0].item() - levels[0] / (1 + levels[0])) < 2e-6


def test_a_level_that_is_a_number_is_not_rounded():
    clean, noise = latents(2)
    process, level = FlowMatching(), 1 / 3
    exact = process.mix(clean, noise, torch.full((5,), level, dtype=torch.float64))
    assert torch.equal(process.mix(clean, noise, level), exact)


def test_unipc_is_of_a_higher_order():
    """The flow of Gaussian latents of variance 4 has a closed form: x scales as its standard deviation does."""
    x = latents(1, batch=1)[0]
    process, levels = FlowMatching(1.0), torch.linspace(2.0, 0.1, 9, dtype=torch.float64)
    t = levels / (1 + levels)
    spread = ((1 - t) ** 2 * 4 + t**2).sqrt()

    def denoise(x, sigma):
        t = (sigma / (1 + sigma)).view(-1, 1, 1, 1, 1)
        return 4 * (1 - t) / (4 * (1 - t) ** 2 + t**2) * x

    errors = {
        solver: (euler(process, denoise, x, levels, solver=solver) - x * spread[-1] / spread[0]).abs().max().item()
        for solver in process.solvers
    }
    assert 0 < errors["unipc"] < 0.1 * errors["euler"]


def test_solvers_that_a_process_lacks_are_one_line():
    with pytest.raises(UserError, match="^sampling.solver is 'unipc', expected one of euler with this noise process$"):
        MotionControlModule(Toy(3), RegionWise(), Control([], None), sampling=Sampling(2, solver="unipc"))


@pytest.mark.parametrize("process", [EDM(), FlowMatching(5.0)])
def test_levels_are_the_hosts_whatever_the_default_device(process):
    """A module is made on the meta device, where no number is."""
    with torch.device("meta"):
        levels = process.levels(7)
        Sampling(7).over(process)
    assert torch.equal(levels, process.levels(7))


def test_levels_that_would_rise_are_one_line():
    with pytest.raises(UserError, match="^sampling.sigma_max is 3, expected more than the process's sigma_min, 5$"):
        MotionControlModule(Toy(3), RegionWise(), Control([], None), Noise(EDM(5.0)), Sampling(2, sigma_max=3.0))
    assert EDM(rho=0.1).levels(3, 1e6).isfinite().all()


@pytest.mark.parametrize(
    "arguments", [{"shift": 0.0}, {"shift": float("nan")}, {"weight": "mode"}, {"low": 0.5, "high": 0.5}, {"high": 2.0}]
)
def test_bad_arguments_are_one_line(arguments):
    with pytest.raises(UserError, match="^noise.process: .*expected") as error:
        FlowMatching(**arguments)
    assert "\n" not in str(error.value)


def toy(process=None, **noise):
    net = MotionControlModule(
        Toy(3),
        RegionWise(min_mask_ratio=0.5),
        Control([], "linear", 2),
        Noise(process, **noise),
        Sampling(2, solver="unipc" if process else "euler"),
    )
    net.plan = Plan(adamw(lr=1e-3))
    return net


@pytest.fixture(scope="module")
def run(sprites, tmp_path_factory):
    """Two steps with a shift of 5, and a module that resumes them."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, 2).fit(toy(FlowMatching(5.0, "bell")), data(sprites))
    return folder / "last.ckpt"


def test_a_checkpoint_samples_with_its_shift_and_says_so(run, sprites):
    record = torch.load(run, weights_only=True)["remoco"]
    arguments = {"shift": 5.0, "weight": "bell", "low": 0.0, "high": 1.0}
    said = {"class_path": "lightning_modules.process.FlowMatching", "init_args": arguments}
    assert record["sampling"]["process"] == said and record["sampling"]["sigma_max"] == FlowMatching.highest
    pipe = MotionControlPipeline.from_checkpoint(run)
    assert pipe.module.process.record() == said and pipe.module.noise.mean == math.log(5)
    assert pipe.module.sampling.solver == "unipc"
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    clips = []
    for process in (pipe.module.process, FlowMatching(1.0), EDM()):
        pipe.module.process = pipe.module.denoiser.process = process
        clips.append(pipe(image, [[(9, 9), (50, 9)]], num_frames=3, output_type="latent").frames)
    assert not same(clips[0], clips[1]) and not same(clips[0], clips[2])


def test_a_resume_under_another_shift_says_so(run, sprites, tmp_path):
    with pytest.warns(UserWarning, match="model.noise.process.shift: 5.0 -> 3.0") as said:
        trainer(tmp_path, 3).fit(toy(FlowMatching(3.0)), data(sprites), ckpt_path=str(run), weights_only=True)
    line = next(str(each.message) for each in said if "other settings" in str(each.message))
    assert "model.noise.mean: 1.609" in line and "weight: bell -> uniform" in line and "\n" not in line


def test_draws_are_functions_of_seed_and_position():
    """One number per sample, ln sigma; the batch does not matter, and the spread draw has the same distribution."""
    for spread in (False, True):
        net = toy(FlowMatching(5.0), spread=spread)
        many = net.draw_sigma({"position": torch.arange(2000)})
        assert torch.equal(net.draw_sigma({"position": torch.tensor([7, 1999])}), many[[7, 1999]])
        assert many.log().mean().item() == pytest.approx(math.log(5), abs=0.1)
        assert many.log().std().item() == pytest.approx(1, abs=0.07)
    assert not torch.equal(toy().draw_sigma({"position": torch.arange(9)}), many[:9])


def test_bounds_are_quantiles_of_what_is_drawn():
    """A draw's quantile among all is its quantile between the bounds, whatever mean and deviation."""
    positions = {"position": torch.arange(500)}
    for noise, mean, std in (({}, math.log(5), 1.0), ({"mean": 0.4, "std": 0.7, "spread": True}, 0.4, 0.7)):
        drawn = {}
        for low, high in ((0.0, 1.0), (0.25, 0.75), (0.9, 1.0)):
            net = toy(FlowMatching(5.0, low=low, high=high), **noise)
            sigma = net.draw_sigma(positions)
            assert sigma.dtype == torch.float32 and torch.equal(
                net.draw_sigma({"position": torch.tensor([9])}), sigma[9:10]
            )
            drawn[low, high] = torch.special.ndtr((sigma.double().log() - mean) / std)
        whole = drawn.pop((0.0, 1.0))
        for (low, high), found in drawn.items():
            torch.testing.assert_close(found, low + (high - low) * whole, rtol=0, atol=1e-5)
    shares = [NormalDist().cdf(math.log(level / 5)) for level in FlowMatching(5.0).validated(Bounds(0.25, 0.75))]
    assert shares == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7], abs=0.005)
    assert Bounds(levels=(3.0, math.inf)).drawn(torch.tensor([0.0, 1.0]), 0.0, 1.0).tolist()[0] == 3.0
    constant = Bounds(levels=(3.0, math.inf)).drawn(torch.tensor([0.3]), math.log(4), 0.0)
    assert constant.item() == pytest.approx(4)
    with pytest.raises(UserError, match="low and high are 0 and 1, expected some of the 1 to 1 of all draws"):
        Bounds(levels=(3.0, math.inf)).quantiles(0.0, 0.0)


@pytest.mark.parametrize(
    "record",
    [
        {"class_path": "os.path.join"},
        {"class_path": "lightning_modules.process.FlowMatching", "init_args": {"shift": "wide"}},
        {"class_path": "lightning_modules.process.FlowMatching", "init_args": {"shift": 1e9}},
        {"class_path": "lightning_modules.process.FlowMatching", "init_args": {"shift": [3]}},
        {"class_path": "lightning_modules.process.EDM", "init_args": {"shift": 3}},
        {"class_path": "lightning_modules.process.EDM", "init_args": {"rho": 0.001}},  # 700 to the power of 1000
        {"class_path": 5},
    ],
)
def test_a_strangers_record_is_refused_in_one_line(record):
    with pytest.raises(UserError, match="^noise.process") as error:
        NoiseProcess.from_record(record)
    assert "\n" not in str(error.value)


def test_its_yaml(tmp_path):
    process = "{class_path: lightning_modules.process.FlowMatching, init_args: {shift: 5, weight: bell}}"
    (tmp_path / "flow.yaml").write_text(f"model:\n  init_args:\n    noise: {{process: {process}, std: 1.2}}\n")
    words = ["fit", "--config", "configs/quickstart.yaml", "--config", str(tmp_path / "flow.yaml")]
    net = Unstarted(configs.resolved(words)).model
    assert isinstance(net.process, FlowMatching) and net.process.shift == 5 and net.process.weight == "bell"
    assert net.noise.std == 1.2 and net.sampling.sigma_max == 80.0  # what the YAML below says
