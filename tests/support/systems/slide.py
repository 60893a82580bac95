"""A system of somebody else's, by class path: its video is the first frame that moves to the right."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from datamodules.drawings import Drawing
from lightning_modules.systems.system import stretched

WRONG = {
    "short": lambda video: video[1:],
    "tall": lambda video: torch.cat([video, video], 2),
    "nan": lambda video: torch.where(torch.arange(len(video))[:, None, None, None] == 1, torch.nan, video),
    "bytes": lambda video: ((video + 1) * 127.5).byte(),
    "list": lambda video: list(video),
    "nothing": lambda video: None,
}


@dataclass(frozen=True)
class Settings:
    """How it slides."""

    frames: int = 3
    steps: int = 2


USUAL = Settings()


class Slide:
    """See above; `wrong` names how its video is not what it says."""

    name, takes_brush, stand_in, fps, size = "Slide", False, True, 5.0, (64, 128)

    def __init__(self, settings: Settings, wrong: str | None, says: dict):
        self.frames, self.steps, self.wrong, self.began = settings.frames, settings.steps, wrong, 0
        self.before_step = lambda: None
        self.protocol = f"Slide: 64 x 128, {self.frames} frames, {self.steps} steps"
        for name, value in says.items():
            setattr(self, name, value)

    @classmethod
    def load(
        cls,
        settings: Settings = USUAL,
        wrong: str | None = None,
        says: dict | None = None,
        dtype=None,
        device=None,
    ):
        """Nothing is read."""
        return cls(settings, wrong, says or {})

    def control(self, drawing: Drawing):
        """Nothing is drawn."""
        return None

    def __call__(self, drawing, seed, on_step=None):
        picture = torch.from_numpy(stretched(drawing, self.size).image).permute(2, 0, 1).float() / 127.5 - 1
        video = torch.stack([picture.roll(seed + 4 * frame, -1) for frame in range(self.frames)])
        for step in range(self.steps):
            self.before_step()
            self.began += 1
            if on_step is not None:
                on_step(step, video, video)
        return WRONG[self.wrong](video) if self.wrong else video
