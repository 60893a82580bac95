"""SG-I2V's sets: the whole call, with the latents after each optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from lightning_modules.process.edm import karras_sigmas
from lightning_modules.systems.controlled import Settings
from lightning_modules.systems.files import fit
from lightning_modules.systems.sgi2v import Optimisation, SGI2VSampler
from tests.support import frequencies
from tests.support.systems import RecordedSet
from tests.support.systems.svd import SIZES, other_parts

TOLERANCES = {
    r".*/out\.prediction\.0": 1e-9,
    # AdamW divides gradients by their size, and steps start from latents rounded to float32
    r".*/out\.(optimised|prediction|latents).*": 1e-5,
}
LEFT_OUT = {r".*/in\..*": "an input"}


class Recording(SGI2VSampler):
    """Keeps what passes."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.kept: dict[str, Tensor] = {}

    def optimised(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        found = super().optimised(x, sigma, cond)
        self.kept[f"out.optimised.{self.step_number}"] = found
        return found

    def before_step(self, number: int, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        self.step_number = number
        return super().before_step(number, x, sigma, cond)

    def step(self, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return super().step(x.float().double(), *others)  # as diffusers' scheduler from 0.25 on

    def predict(self, *args: Any) -> Tensor:
        found = super().predict(*args)
        self.kept[f"out.prediction.{self.step_number}"] = found
        return found

    def features(self, seen: list[list[Tensor]], grid: Any) -> Tensor:
        for i, each in enumerate(seen):
            small = each[0].detach().mT.unflatten(-1, (grid[0] // 2, grid[1] // 2))
            self.kept.setdefault(f"out.feature.{i}", small)
        return super().features(seen, grid)


def sampler(recorded: RecordedSet) -> Recording:
    config = recorded.config
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**{name: config[name] for name in SIZES})
    fit(unet, recorded.part("unet."), recorded.path, "unet")
    settings = Settings(
        size=(config["height"], config["width"]),
        frames=config["frames"],
        steps=config["steps"],
        decode_chunk=config["decode_chunk"],
    )
    steps = config["optimised_steps"]
    how = Optimisation(
        steps[0], steps[-1], config["iterations"], config["rate"], config["spread"], config["cut"], recompute=False
    )
    frequencies.apply(unet)
    svd = Recording(unet, *other_parts(recorded), settings, how)
    svd.to("cpu", torch.float64)
    svd.boxes = np.array(config["boxes"], np.float32)
    return svd


def outputs(recorded: RecordedSet, svd: Recording | None = None) -> Iterator[tuple[str, Tensor]]:
    svd = svd or sampler(recorded)
    cond = svd.frame_conditioning(recorded.input("in.image").numpy(), recorded.input("in.augmentation_noise"))
    yield "out.sigmas", karras_sigmas(svd.settings.steps)
    yield "out.latents", svd.sample(cond, (), recorded.input("in.noise"), recorded.recorded["out.sigmas"])
    yield from svd.kept.items()
