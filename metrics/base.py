"""What every metric takes and gives: a clip with what it is compared with, and a result with its protocol."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from remoco.common.errors import UserError


def shown(value: float, decimals: int = 0) -> str:
    """A number for people: six significant digits, and at least `decimals` decimals. What is not 0 never reads as 0.

    Example:
        >>> [shown(0.1234567), shown(2.0, 2), shown(1234567.8), shown(3e-9, 4), shown(0.0, 2)]
        ['0.123457', '2.00', '1234568', '3e-09', '0.00']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.{decimals}f}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -5:
        return f"{value:.6g}"
    whole, _, rest = f"{value:.{max(decimals, 5 - exponent, 0)}f}".partition(".")
    rest = rest.rstrip("0").ljust(decimals, "0")
    return f"{whole}.{rest}" if rest else whole


@dataclass
class Clip:
    """One generated clip and what it is compared with; a metric says what it needs of it (`VideoMetric.needs`)."""

    key: str
    video: Tensor
    """(L, 3, H, W) uint8: the clip that is judged."""
    reference: Any = None
    """(L, 3, H, W) uint8 tensor: the real clip. This and what follows may be absent: None."""
    tracks: Any = None
    """(N, L, 2) float tensor: where the drawn tracks are in each frame, x, y in pixels of `video`."""
    flow: Any = None
    """(L, 2, H, W) float tensor: true displacement from frame 1 in pixels, the motion that was asked for."""
    visibility: Any = None
    """(L, H, W) bool tensor: whether frame 1's pixel is seen in each frame of the real clip."""
    other: Any = None
    """Without arguments gives (L, 3, H, W) uint8: the clip of the same first frame with another clip's control."""


class VideoMetric(torchmetrics.Metric):
    """A metric over clips: sums in float64, so neither the batch split nor the number of processes matters.

    A subclass adds the states of its sums, counts clips in `clips`, and implements `add`, `value` and `describe`.

    Attributes:
        name: name of the number; an offline stand-in has another one than the real thing.
        needs: the fields of `Clip` that `add` reads beside the video.
        in_pixels: whether the number is a length in pixels of the clips, so that clips of another width give another.
    """

    name: str
    needs: tuple[str, ...] = ()
    in_pixels: bool = False
    higher_is_better: bool | None = False
    is_differentiable = False
    full_state_update = False
    clips: Tensor
    seconds: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("clips", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seconds", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.protocol = ""  # filled by compute, when n is known
        self.summary: dict[str, Any] = {}

    def load(self) -> None:
        """Read the networks, once: a file that is none is one line before any work; called by the first `add` too."""

    def add(self, clip: Clip) -> None:
        """Judge one clip."""
        raise NotImplementedError

    def value(self) -> Tensor:
        """The number, a float64 scalar, from the sums of all processes."""
        raise NotImplementedError

    def describe(self) -> str:
        """The protocol, without n."""
        raise NotImplementedError

    def extra(self) -> dict[str, float]:
        """Further numbers of the result, by name."""
        return {}

    def compute(self) -> Tensor:
        """The number, a float64 scalar; also fills `protocol` and `summary`.

        Raises:
            UserError: too few clips.
        """
        begin = time.perf_counter()
        n = int(self.clips)
        if n == 0:
            raise UserError(f"{self.name} needs at least one clip")
        value = self.value()
        self.protocol = f"{self.describe()}; n = {n} clips"
        seconds = float(self.seconds) + time.perf_counter() - begin
        number = float(value)
        if not math.isfinite(number):
            raise UserError(f"{self.name} is {number} over {n} clips")
        self.summary = {
            "value": number,
            "protocol": self.protocol,
            "n": n,
            "seconds": float(f"{seconds:.6g}"),
            **self.extra(),
        }
        return value

    def result(self) -> dict[str, Any]:
        """`value`, `protocol`, `n` (clips), `seconds` (spent on it, over all processes), and what else there is."""
        self.compute()
        return self.summary


def check_video(video: Tensor, name: str = "videos") -> None:
    """Raise UserError unless uint8 (L, 3, H, W)."""
    if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[1] != 3 or video.numel() == 0:
        raise UserError(f"{name} must be uint8 (L, 3, H, W), got {video.dtype} {tuple(video.shape)}")


def evaluate(metrics: list[VideoMetric], clips: Iterable[Clip], note: str = "") -> dict[str, dict[str, Any]]:
    """Judge clips from the start: metric's name -> its `result`, with a note at the protocol's end."""
    for metric in metrics:
        metric.load()
        metric.reset()
    for clip in clips:
        add_clip(metrics, clip)
    results = {metric.name: metric.result() for metric in metrics}
    for result in results.values():
        result["protocol"] += f"; {note}" if note else ""
    return results


def applicable(metrics: Iterable[VideoMetric], available: set[str]) -> list[VideoMetric]:
    """Those of `metrics` that need nothing but these fields of a clip."""
    return [metric for metric in metrics if set(metric.needs) <= available]


def add_clip(metrics: Iterable[VideoMetric], clip: Clip) -> None:
    """Give a clip to every metric, and count the time of each.

    Raises:
        UserError: the clip does not fit; the message names it.
    """
    for metric in metrics:
        begin = time.perf_counter()
        try:
            metric.load()
            with torch.no_grad():
                metric.add(clip)
        except ValueError as error:
            raise UserError(f"{clip.key}: {metric.name}: {error}") from error
        metric.seconds += time.perf_counter() - begin
