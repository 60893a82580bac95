"""Which rigid things move in a clip with exact tracks, and how: several objects, and the camera too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WINDOW = 7  # pixels of a side, from which a similarity is guessed
GUESSES = 12  # of each side of the frame
TOLERANCE = 0.5  # px that a pixel of a layer may miss its similarity by, in any frame; stored flow is off by 1/16
LEAST_SHARE = 0.005  # of the frame's pixels, of a layer
LEAST_SEEN = 0.75  # of an object's pixels, over all frames


class Layer(NamedTuple):
    """Pixels of frame 1 that move by one similarity: p goes to turn p + shift.

    Attributes:
        mask: (H, W) bool.
        turn: (L, 2, 2) float64, rotation times scale.
        shift: (L, 2) float64 in pixels x, y.
    """

    mask: Tensor
    turn: Tensor
    shift: Tensor


class Objects(NamedTuple):
    """One moving thing of each clip; an empty mask where there is none.

    Attributes:
        masks: (B, H, W) bool, in frame 1.
        tracks: (B, L, 2) float64, displacement x, y in pixels of the mask's middle from frame 1.
        turns: (B, L, 2, 2) float64, how the thing has turned and grown since frame 1.
    """

    masks: Tensor
    tracks: Tensor
    turns: Tensor


def rigid_layers(flow: Tensor) -> list[Layer]:
    """The layers of a clip in which everything moves by similarities, the largest first.

    Similarities are guessed from small windows over the whole frame; the one that most pixels follow is a layer, then
    the one that most of the rest follow, and so on. A thing without room for a window is not found.

    Args:
        flow: (L, 2, H, W) exact displacement from frame 1 in pixels.
    """
    frames, _, height, width = flow.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    start = torch.stack([columns, rows], -1).to(flow.device, torch.float64)
    end = flow.double().permute(0, 2, 3, 1) + start
    half = WINDOW // 2
    guessed = [
        (slice(row - half, row + half + 1), slice(column - half, column + half + 1))
        for row in torch.linspace(half, height - 1 - half, GUESSES).round().int().tolist()
        for column in torch.linspace(half, width - 1 - half, GUESSES).round().int().tolist()
    ]
    windows = torch.stack([start[window].flatten(0, 1) for window in guessed])
    led = torch.stack([end[:, window[0], window[1]].flatten(1, 2) for window in guessed])
    start, end = start.flatten(0, 1), end.flatten(1, 2)
    some = sorted({frames // 2, frames - 1})  # a guess is tried on these
    followed = _miss(*_similarity(windows, led[:, some]), start, end[some]) < TOLERANCE
    free = torch.ones(height * width, dtype=torch.bool, device=flow.device)
    layers: list[Layer] = []
    while True:
        counts = (followed & free).sum(1)
        best = int(counts.argmax())
        if counts[best] < max(WINDOW**2, LEAST_SHARE * height * width):
            return layers
        group = followed[best] & free
        turn, shift = (each[0] for each in _similarity(start[group][None], end[None, :, group]))
        follows = (_miss(turn[None], shift[None], start, end)[0] < TOLERANCE) & free
        free &= ~(group | follows)
        if follows.sum() >= WINDOW**2:
            layers.append(Layer(follows.view(height, width), turn, shift))


def farthest_objects(flow: Tensor, visibility: Tensor) -> Objects:
    """Of each clip the rigid thing that goes farthest and mostly stays in sight; the largest one is the background.

    Args:
        flow: (B, L, 2, H, W) exact displacement from frame 1 in pixels x, y.
        visibility: (B, L, H, W) bool.
    """
    return Objects(*map(torch.stack, zip(*(_farthest(*clip) for clip in zip(flow, visibility, strict=True)))))


def _farthest(flow: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    frames, height, width = visibility.shape
    mask = torch.zeros(height, width, dtype=torch.bool, device=flow.device)
    track = torch.zeros(frames, 2, dtype=torch.float64, device=flow.device)
    turn = torch.eye(2, dtype=torch.float64, device=flow.device).expand(frames, 2, 2)
    farthest = 0.0
    for layer in rigid_layers(flow)[1:]:
        if visibility[:, layer.mask].double().mean() < LEAST_SEEN:
            continue
        middle = layer.mask.nonzero().double().mean(0).flip(0)
        way = layer.turn @ middle + layer.shift - middle
        length = float(torch.linalg.vector_norm(way, dim=-1).mean())
        if length > farthest:
            farthest, mask, track, turn = length, layer.mask, way, layer.turn
    return mask, track, turn


def _similarity(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The similarities (K, L, 2, 2), (K, L, 2) of least squares that take points (K, N, 2) to (K, L, N, 2)."""
    here, there = start.mean(1), end.mean(2)
    a, b = (start - here[:, None])[:, None], end - there[:, :, None]
    square = a.square().sum((2, 3))
    along, across = (a * b).sum((2, 3)) / square, (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(2) / square
    turn = torch.stack([torch.stack([along, -across], -1), torch.stack([across, along], -1)], -2)
    return turn, there - (turn @ here[:, None, :, None])[..., 0]


def _miss(turn: Tensor, shift: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(K, N): how far similarities send points (N, 2) from where they go, (L, N, 2), in the worst frame."""
    sent = (start @ turn.mT + shift[:, None] - end for turn, shift in zip(turn, shift))
    return torch.stack([each.square().sum(-1).amax(0).sqrt() for each in sent])
