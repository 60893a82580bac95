"""A noise process as diffusers' schedulers describe it, for readers: our sampler steps by itself."""

from __future__ import annotations

from typing import Any

from diffusers import (
    CogVideoXDDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from lightning_modules.config import Sampling
from lightning_modules.process.base import NoiseProcess
from lightning_modules.process.edm import EDM
from lightning_modules.process.flow_matching import TIMES, FlowMatching
from lightning_modules.process.v_prediction import VPrediction

KARRAS_RHO = 7.0  # the one that EulerDiscreteScheduler has
# what SVD's own scheduler_config.json says beside the levels; its betas have no effect on continuous timesteps
CONTINUOUS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "timestep_spacing": "leading", "timestep_type": "continuous", "use_karras_sigmas": True,
}  # fmt: skip
# what CogVideoX-5b-I2V's says
ZERO_SNR = {
    "clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}  # fmt: skip


def scheduler_of(process: NoiseProcess, sampling: Sampling) -> Any:
    """The scheduler with the same levels, timesteps and steps as our sampler; None for a process that diffusers lacks.

    Args:
        process: The noise process.
        sampling: Number of steps and first noise level.
    """
    if isinstance(process, FlowMatching) and sampling.solver == "unipc":
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": process.shift}
        unipc = UniPCMultistepScheduler(TIMES, **options)
        unipc.set_timesteps(sigmas=process.even(sampling.steps, sampling.sigma_max).numpy())  # which it shifts
        return unipc
    if isinstance(process, FlowMatching):
        scheduler = FlowMatchEulerDiscreteScheduler(TIMES, shift=process.shift)
        scheduler.set_timesteps(sigmas=process.even(sampling.steps, sampling.sigma_max).tolist())  # which it shifts
        return scheduler
    if isinstance(process, VPrediction) and sampling.steps <= TIMES:
        ddim = CogVideoXDDIMScheduler(TIMES, **ZERO_SNR, snr_shift_scale=process.shift)
        ddim.set_timesteps(sampling.steps)
        return ddim
    if not isinstance(process, EDM):
        return None
    highest = process.highest if sampling.sigma_max is None else sampling.sigma_max
    levels = {"sigma_min": process.sigma_min, "sigma_max": highest, "prediction_type": "v_prediction"}
    if process.rho == KARRAS_RHO:
        euler = EulerDiscreteScheduler(**levels, **CONTINUOUS)
        euler.set_timesteps(sampling.steps)
        return euler
    edm = EDMEulerScheduler(**levels, sigma_data=1.0, rho=process.rho)
    edm.set_timesteps(sampling.steps)
    return edm
