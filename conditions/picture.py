"""Pictures of a control: flow colours, trajectories and mask over the frame. For logs and docs, not for measuring."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_LONG_SIDE = 768  # drawn at about this size and averaged down, so that lines on small frames are thin and smooth
_MASK_COLOUR = np.array([255.0, 214.0, 80.0])


def flow_colours(flow: np.ndarray, longest: float) -> np.ndarray:
    """Colour wheel: hue is the direction, saturation the square root of the length relative to `longest`.

    (H, W, 2) pixels -> (H, W, 3) float32 RGB in [0, 255]. To the right is red, down is yellow-green, left is cyan, up is
    violet; no motion is white. The square root keeps the directions of slow pixels readable beside fast ones.
    """
    length = np.linalg.norm(flow, axis=2)
    hue = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360.0
    saturation = np.sqrt(np.clip(length / max(longest, 1e-6), 0.0, 1.0))
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
    (L, 3, H, W), (3, H, W) -> (L, H, W, 3) uint8."""
    return np.stack(_pictures(control, frame, range(len(control))))


def _pictures(control: Tensor, frame: Tensor, times) -> list[np.ndarray]:
    if control.ndim != 4 or control.shape[1] != 3:
        raise ValueError(f"control: expected (L, 3, H, W), got {tuple(control.shape)}")
    if frame.shape != control.shape[1:]:
        raise ValueError(f"frame: expected {tuple(control.shape[1:])}, got {tuple(frame.shape)}")
    control = control.detach().float().cpu()
    flow = control[:, :2].permute(0, 2, 3, 1).numpy()
    mask = control[:, 2].numpy() > 0.5
    image = frame.detach().cpu()
    image = image.float() if image.dtype == torch.uint8 else (image.float() + 1.0) * 127.5
    image = image.permute(1, 2, 0).clamp(0, 255).numpy()
    longest = float(np.linalg.norm(flow, axis=3).max())
    starts = _arrow_starts(flow[-1], longest)
    return [_picture(image, flow[: time + 1], mask[time], longest, starts) for time in times]


def _picture(image: np.ndarray, flow: np.ndarray, mask: np.ndarray, longest: float, starts: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = max(1, round(_LONG_SIDE / max(height, width)))
    image = 0.75 * image + 0.25 * image.mean(axis=2, keepdims=True)
    image = np.where(mask[..., None], 0.82 * image + 0.18 * _MASK_COLOUR, 0.72 * image)
    length = np.linalg.norm(flow[-1], axis=2, keepdims=True)
    opacity = np.where(length > 0.02 * longest, 0.3 + 0.5 * np.sqrt(length / max(longest, 1e-6)), 0.0)
    image = (1.0 - opacity) * image + opacity * flow_colours(flow[-1], longest)
    canvas = cv2.resize(image.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    _draw_contour(canvas, mask, scale)
    for x, y in starts:
        _draw_path(canvas, np.array([x, y]) + flow[:, y, x], scale)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def _arrow_starts(flow: np.ndarray, longest: float) -> np.ndarray:
    """At most one pixel per cell of a coarse grid: the moving one nearest to the centre of the cell's moving pixels, so
    that a lone region has its arrow in its middle and a dense field stays readable. (H, W, 2) -> (n, 2) x, y."""
    cell = max(8, round(min(flow.shape[:2]) / 10))
    moving = np.argwhere(np.linalg.norm(flow, axis=2) > max(0.5, 0.1 * longest))
    starts = []
    cells = moving // cell
    for key in np.unique(cells, axis=0):
        inside = moving[(cells == key).all(axis=1)]
        distance = np.linalg.norm(inside - inside.mean(axis=0), axis=1)
        starts.append(inside[distance.argmin()][::-1])
    return np.array(starts, dtype=int).reshape(-1, 2)


def _draw_contour(canvas: np.ndarray, mask: np.ndarray, scale: int) -> None:
    large = cv2.resize(mask.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, _MASK_COLOUR.tolist(), thickness=max(1, scale // 2), lineType=cv2.LINE_AA)


def _draw_path(canvas: np.ndarray, path: np.ndarray, scale: int) -> None:
    """Polyline through a pixel's positions with a head at its end: dark below, white on top, readable on any ground."""
    points = ((path + 0.5) * scale * 16).round().astype(np.int32)  # 4 fractional bits
    head = _arrow_head(path * scale, scale)
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        thickness = round(width * max(1.0, scale / 2))
        cv2.polylines(canvas, [points], False, colour, thickness, cv2.LINE_AA, shift=4)
        if head is not None:
            wings = ((head + 0.5 * scale) * 16).round().astype(np.int32)
            cv2.polylines(canvas, [wings], False, colour, thickness, cv2.LINE_AA, shift=4)


def _arrow_head(path: np.ndarray, scale: int) -> np.ndarray | None:
    """Three points of the head, in canvas pixels; None for a path too short to have a direction."""
    behind = path[np.linalg.norm(path - path[-1], axis=1) > scale]
    if len(behind) == 0:
        return None
    back = behind[-1] - path[-1]
    travelled = np.linalg.norm(path[-1] - path[0])
    back *= min(5.0 * max(1.0, scale / 2), max(0.4 * travelled, 2.0)) / np.linalg.norm(back)
    turn = np.array([[0.85, -0.53], [0.53, 0.85]])  # 32 degrees
    return np.stack([path[-1] + turn @ back, path[-1], path[-1] + turn.T @ back])
