"""Dense tracks without weights: DIS optical flow (Kroeger et al., ECCV 2016, in OpenCV) from frame 1 to every frame."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from datamodules.trackers.base import Tracks, inside
from remoco.common.errors import UserError

Improve = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
SAME = (1.0, 0.0)  # gain and offset of a frame as bright as frame 1
SPARSE = 4  # every 4th pixel of a row and a column says how bright a frame is
ENOUGH = 64  # of them
FLAT = 25.0  # variance of grey values below which they show no gain


class DIS:
    """Tracks by small steps, each refined against frame 1.

    The flow to frame t - 1, carried on by the flow from t - 1 to t, starts the direct flow from frame 1 to t; of the
    two, each pixel keeps the one whose grey values around it agree better (the carried one where the direct one is
    lost). The same backwards, with the inverse of the step; a pixel is visible where the way forth and back returns to
    it. On the sprites this halves the error of the direct flow.

    Grey values are compared as they are, without each patch's mean, which would make even patches alike; a clip that
    gets brighter or darker is brought to frame 1's brightness on the way.

    Args:
        tolerance: distance in pixels that the way forth and back may miss its start by.
        relative: the same, as a share of the displacement's length; the larger of the two counts.
    """

    name = "dis"

    def __init__(self, tolerance: float = 0.85, relative: float = 0.05) -> None:
        for name, value in (("tolerance", tolerance), ("relative", relative)):
            if not 0 <= value < float("inf"):
                raise UserError(f"{type(self).__name__}.{name} is {value}, expected a number of at least 0")
        self.tolerance, self.relative = tolerance, relative
        self.version = f"3-opencv-{cv2.__version__}"

    def __call__(self, frames: np.ndarray) -> Tracks:
        """Track a clip, (L, 3, H, W) uint8."""
        length, _, height, width = frames.shape
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the bits must not depend on the machine's cores
        try:
            grey = [
                cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY) for frame in frames
            ]
            flow = np.zeros((length, 2, height, width), dtype=np.float32)
            visibility = np.ones((length, height, width), dtype=bool)
            forth = back = np.zeros((height, width, 2), dtype=np.float32)
            light = SAME
            improve = self._improve(frames, grey)
            step_method = _method(1, None, patch_stride=3, iterations=12, variational=2)
            forth_method = _method(0, 1, patch_stride=4, iterations=12, variational=3)
            back_method = _method(0, 0, patch_stride=4, iterations=8, variational=2)
            for t in range(1, length):
                unlit, grey[t] = grey[t], _relit(grey[t], light)
                step = step_method.calc(grey[t - 1], grey[t], None)  # type: ignore[call-overload]  # the stub wants a guess
                step_back = _inverse(step)
                forth, back = forth + _at(step, forth), step_back + _at(back, step_back)
                light = _light(grey[0], _at(unlit, forth), visibility[t - 1])
                grey[t] = _relit(unlit, light)
                forth, back = improve(t, forth, back)
                forth = _refined(forth_method, grey[0], grey[t], forth)
                back = _refined(back_method, grey[t], grey[0], back)
                flow[t] = forth.transpose(2, 0, 1)
                visibility[t] = self._consistent(forth, back)
        finally:
            cv2.setNumThreads(threads)
        return Tracks(flow, visibility)

    def _improve(self, frames: np.ndarray, grey: list[np.ndarray]) -> Improve:
        """What the flows to frame t and back, each carried on, become before they are refined; here themselves."""
        return lambda t, forth, back: (forth, back)

    def _consistent(self, forth: np.ndarray, back: np.ndarray) -> np.ndarray:
        x, y = _moved(forth)
        miss = _length(forth + _at(back, forth))
        allowed = np.maximum(self.tolerance, self.relative * _length(forth))
        returns = cv2.medianBlur((miss < allowed).astype(np.uint8), 5).astype(bool)
        return inside(x, y, *forth.shape[:2]) & returns


def _moved(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel goes: x, y as float32 maps."""
    x, y = _places(*flow.shape[:2])
    return x + flow[..., 0], y + flow[..., 1]


@lru_cache(maxsize=2)
def _places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x, y


def _length(flow: np.ndarray) -> np.ndarray:
    return cv2.magnitude(*cv2.split(flow))


def _at(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """An image or a flow, read where `flow` leads; beyond the border its last value."""
    return cv2.remap(image, *_moved(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _inverse(flow: np.ndarray) -> np.ndarray:
    """The flow back, by two steps of the fixed point back(p) = -flow(p + back(p))."""
    back = -flow
    for _ in range(2):
        back = -_at(flow, back)
    return back


def _light(first: np.ndarray, other: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Gain and offset of the grey values of `first` that give those of `other`, which lies over it.

    A line through what is seen, without what differs from the middle difference by far more than most: what moves
    otherwise has no say. `SAME` where the line changes the values by less than one level.
    """
    a, b = (image[::SPARSE, ::SPARSE][seen[::SPARSE, ::SPARSE]].astype(np.float64) for image in (first, other))
    if len(a) < ENOUGH:
        return SAME
    off = np.abs((b - a) - np.median(b - a))
    a, b = (grey[off <= 3 * np.median(off) + 2] for grey in (a, b))
    variance = a.var()
    gain = float(np.clip(((a - a.mean()) * (b - b.mean())).mean() / variance, 0.5, 2)) if variance > FLAT else 1.0
    offset = float(b.mean() - gain * a.mean())
    return SAME if np.abs(gain * a + offset - a).mean() < 1 else (gain, offset)


def _relit(image: np.ndarray, light: tuple[float, float]) -> np.ndarray:
    """An image in the light of frame 1."""
    gain, offset = light
    return (
        image if light == SAME else cv2.convertScaleAbs(np.maximum(image, offset), alpha=1 / gain, beta=-offset / gain)
    )


def _method(
    finest: int, coarsest: int | None, patch_stride: int, iterations: int, variational: int
) -> cv2.DISOpticalFlow:
    """OpenCV's medium preset with less of everything, and without the patches' means; scale 0 is full size."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(finest)
    if coarsest is not None:
        method.setCoarsestScale(coarsest)
    method.setPatchStride(patch_stride)
    method.setGradientDescentIterations(iterations)
    method.setVariationalRefinementIterations(variational)
    method.setUseMeanNormalization(False)
    return method


def _refined(method: cv2.DISOpticalFlow, first: np.ndarray, second: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The flow found from `start` at full resolution; `start` itself where it explains the colours clearly better."""
    refined = method.calc(first, second, start.copy())
    kept = mismatch(first, second, start) < 0.9 * mismatch(first, second, refined)
    return smoothed(np.where(kept[..., None], start, refined))


def mismatch(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(H, W) float32: how far the grey values around each pixel are from those where `flow` leads."""
    return cv2.GaussianBlur(cv2.absdiff(first.astype(np.float32), _at(second.astype(np.float32), flow)), (0, 0), 2)


def smoothed(flow: np.ndarray) -> np.ndarray:
    """A flow without lone outliers: the median of 5 x 5."""
    return np.dstack([cv2.medianBlur(np.ascontiguousarray(flow[..., c]), 5) for c in range(2)])
