"""Pictures of a control: flow colours, trajectories and mask over the frame. For logs and docs, not for measuring."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from torch import Tensor

from remoco.common.errors import UserError

_LONG_SIDE = 768  # drawn at about this size and averaged down, so that lines on small frames are thin and smooth
_SHIFT = 4  # fractional bits of the coordinates that cv2 draws at
_STILL = 0.25  # px: not drawn below; stored flow is off by up to 1/16, which must not fill the scale
_MASK_COLOUR = np.array([255.0, 214.0, 80.0])


def flow_colours(flow: np.ndarray, longest: float) -> np.ndarray:
    """Colour wheel: hue is the direction, saturation grows with the square root of the length relative to `longest`.

    (H, W, 2) pixels -> (H, W, 3) float32 RGB in [0, 255]. To the right is red, down is yellow-green, left is cyan, up
    is violet. The root keeps the directions of slow pixels readable beside fast ones.
    """
    length = np.linalg.norm(flow, axis=2)
    hue = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360.0
    saturation = 0.25 + 0.75 * np.sqrt(np.clip(length / max(longest, 1e-6), 0.0, 1.0))
    hsv = np.stack([hue, saturation, np.ones_like(hue)], axis=2).astype(np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255.0


def control_picture(control: Tensor, frame: Tensor) -> np.ndarray:
    """The control of the whole clip in one picture: the last frame's displacement and the paths that lead to it.

    Args:
        control: (L, 3, H, W): dx, dy in pixels, mask in {0, 1}.
        frame: (3, H, W) uint8, or float in [-1, 1]: the first frame.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return _pictures(control, frame, [len(control) - 1])[0]


def control_video(control: Tensor, frame: Tensor) -> np.ndarray:
    """`control_picture` growing over time: frame i shows the displacement and paths up to frame i.
    (L, 3, H, W), (3, H, W) -> (L, H, W, 3) uint8.
    """
    return np.stack(_pictures(control, frame, range(len(control))))


def _pictures(control: Tensor, frame: Tensor, times: Iterable[int]) -> list[np.ndarray]:
    if control.ndim != 4 or control.shape[1] != 3:
        raise UserError(f"control: expected (L, 3, H, W), got {tuple(control.shape)}")
    if frame.shape != control.shape[1:]:
        raise UserError(f"frame: expected {tuple(control.shape[1:])}, got {tuple(frame.shape)}")
    control = control.detach().float().cpu()
    flow = control[:, :2].permute(0, 2, 3, 1).numpy()
    mask = control[:, 2].numpy() > 0.5
    frame = frame.detach().cpu()
    pixels = frame.float() if frame.dtype == torch.uint8 else (frame.float() + 1.0) * 127.5
    image = pixels.permute(1, 2, 0).clamp(0, 255).numpy()
    longest = float(np.linalg.norm(flow, axis=3).max())
    starts = _arrow_starts(flow[-1], longest)
    return [_picture(image, flow[: time + 1], mask[time], longest, starts) for time in times]


def _picture(image: np.ndarray, flow: np.ndarray, mask: np.ndarray, longest: float, starts: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = max(1, round(_LONG_SIDE / max(height, width)))
    image = 0.75 * image + 0.25 * image.mean(axis=2, keepdims=True)
    image = np.where(mask[..., None], 0.82 * image + 0.18 * _MASK_COLOUR, 0.72 * image)
    length = np.linalg.norm(flow[-1], axis=2, keepdims=True)
    opacity = np.where(length > max(_STILL, 0.02 * longest), 0.3 + 0.5 * np.sqrt(length / max(longest, 1e-6)), 0.0)
    image = (1.0 - opacity) * image + opacity * flow_colours(flow[-1], longest)
    canvas = cv2.resize(image.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    _draw_contour(canvas, mask, scale)
    for x, y in starts:
        _draw_path(canvas, np.array([x, y]) + flow[:, y, x], scale)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def _arrow_starts(flow: np.ndarray, longest: float) -> np.ndarray:
    """A few moving pixels that stand for the others: one in the middle of each small connected area, such as a region
    or a Gaussian, and one per cell of a coarse grid over larger areas, fastest first; left out where it is close to
    another one, or lies on an arrow that points the same way. (H, W, 2) -> (n, 2) x, y.
    """
    cell = max(8, round(min(flow.shape[:2]) / 10))
    mask = np.linalg.norm(flow, axis=2) > max(0.5, 0.1 * longest)
    if not mask.any():
        return np.zeros((0, 2), dtype=int)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    moving = np.argwhere(mask)
    label = labels[mask]
    large = stats[label][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) > 2 * cell
    keys = np.column_stack([label, np.where(large[:, None], moving // cell, -1)])
    _, group = np.unique(keys, axis=0, return_inverse=True)
    candidates = []
    for members in np.split(moving[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1]):
        distance = np.linalg.norm(members - members.mean(axis=0), axis=1)
        candidates.append(members[distance.argmin()])
    candidates.sort(key=lambda at: -np.linalg.norm(flow[tuple(at)]))
    kept: list[np.ndarray] = []
    for y, x in candidates:
        start, move = np.array([x, y]), flow[y, x]
        if not any(_repeats(start, move, other, flow[other[1], other[0]], cell) for other in kept):
            kept.append(start)
    return np.array(kept)


def _repeats(start: np.ndarray, move: np.ndarray, other: np.ndarray, other_move: np.ndarray, cell: int) -> bool:
    if np.linalg.norm(start - other) < cell:
        return True
    aligned = move @ other_move > 0.8 * np.linalg.norm(move) * np.linalg.norm(other_move)
    ends = np.linspace(0.0, 1.0, 9)[:, None]
    gap = np.linalg.norm((start + ends * move)[:, None] - (other + ends * other_move)[None], axis=2).min()
    return bool(aligned and gap < 0.4 * cell)


def _draw_contour(canvas: np.ndarray, mask: np.ndarray, scale: int) -> None:
    large = cv2.resize(mask.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, _MASK_COLOUR.tolist(), thickness=max(1, scale // 2), lineType=cv2.LINE_AA)


def _draw_path(canvas: np.ndarray, path: np.ndarray, scale: int) -> None:
    """Polyline through a pixel's positions with a filled head at its end: dark below, white on top, so that it is
    readable on any ground.
    """
    path = (path + 0.5) * scale
    head = _arrow_head(path, max(0.016 * max(canvas.shape), 4.0 * scale))
    line, rim = max(2, round(0.8 * scale)), max(2, scale // 2)
    for colour, extra in (((0, 0, 0), 2 * rim), ((255, 255, 255), 0)):
        cv2.polylines(canvas, [_fixed(path)], False, colour, line + extra, cv2.LINE_AA, shift=_SHIFT)
        if head is not None:
            cv2.polylines(canvas, [_fixed(head)], True, colour, max(1, extra), cv2.LINE_AA, shift=_SHIFT)
            cv2.fillPoly(canvas, [_fixed(head)], colour, cv2.LINE_AA, shift=_SHIFT)


def _fixed(points: np.ndarray) -> np.ndarray:
    return (points * 2**_SHIFT).round().astype(np.int32)


def _arrow_head(path: np.ndarray, size: float) -> np.ndarray | None:
    """Triangle whose tip is the path's end, turned as its last stretch; None where the path has no direction."""
    travelled = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    size = min(size, 0.6 * travelled)
    behind = path[np.linalg.norm(path - path[-1], axis=1) > 0.5 * size]
    if size < 1.0 or len(behind) == 0:
        return None
    back = behind[-1] - path[-1]
    back *= size / np.linalg.norm(back)
    across = 0.45 * np.array([-back[1], back[0]])
    return np.stack([path[-1] + back + across, path[-1], path[-1] + back - across])
