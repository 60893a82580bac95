"""The first frame's pixels where a control moves them: layers drawn over one another, what they uncover filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from lightning_modules.control.fill import filled
from lightning_modules.control.rigid import Layer, Shared, layers_of

RIM = 2  # px around a moving layer that still hold some of its colour, and around its edge that are not trusted
SEEN = 0.05  # coverage from which a pixel counts

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Lowest:
    """What lies lowest in a clip, as one picture: what is changed in it changes in all frames alike.

    Attributes:
        plate: (3, H, W) in [-1, 1], its hole filled.
        hole: (H, W), 1 where it was filled and 0 elsewhere.
        share: (L, H, W), how much of a frame's colour is of this picture; 0 where nothing has moved, which is frame 1.
        at: (2, L, H, W) float64 x and y in it of what a frame shows of it; None where it stands still.
    """

    plate: Tensor
    hole: Tensor
    share: Tensor
    at: Tensor | None = None

    def shown(self, picture: Tensor) -> Tensor:
        """(L, C, H, W): what the frames show of something (C, H, W) that lies in the picture's place."""
        if self.at is None:
            return picture * self.share[:, None]
        return read(picture, *self.at).transpose(0, 1) * self.share[:, None]


class Moved(NamedTuple):
    """A clip of the first frame's pixels.

    Attributes:
        clip: (L, 3, H, W) in [-1, 1]; a frame in which nothing has moved is the first, to the bit.
        unknown: (L, H, W) bool, where its pixels are not known: filled, or at a moved edge.
        lowest: What lies lowest, and where the frames show it.
    """

    clip: Tensor
    unknown: Tensor
    lowest: Lowest


def moved_pixels(frame: Tensor, control: Tensor, fill: Fill = filled) -> Moved:
    """A clip of the first frame's pixels, moved as the control says.

    A layer of one motion is read at its inverse, by bilinear interpolation; others are splatted. Coverage is
    interpolated as colour is, so edges are soft between pixels and hard at whole ones. What nothing covers is filled
    from its surroundings, once in the lowest layer: it stays the same over the frames.

    Args:
        frame: (3, H, W) in [-1, 1].
        control: (L, 3, H, W) displacement in pixels from frame 1, zero where none is given, and motion mask.
        fill: What fills the lowest layer: a picture (H, W, 3) float32 of 0 to 255 and (H, W) bool -> the whole picture.
    """
    host = control.detach().cpu().double().numpy()
    layers = layers_of(host[:, 0] + 1j * host[:, 1], np.asarray((host[:, 2] > 0).any(0)))
    moves = np.stack([layer.moves() for layer in layers]).any(0)
    clip = frame.expand(len(control), -1, -1, -1).clone()
    unknown = torch.zeros(clip.shape[0], *frame.shape[1:], dtype=torch.bool, device=frame.device)
    share = torch.zeros(clip.shape[0], *frame.shape[1:], dtype=frame.dtype, device=frame.device)
    if not moves.any():
        return Moved(clip, unknown, Lowest(frame, torch.zeros_like(frame[0]), share))
    plate, known, hole = _plate(frame, layers, fill)
    at = _places(layers[0], plate)
    masks = [torch.from_numpy(layer.pixels).to(frame) for layer in layers[1:]]
    for t in np.flatnonzero(moves).tolist():
        image, coverage = _lowest(plate, known, at, t)
        hidden, share[t] = coverage < 1 - SEEN, 1
        for layer, mask in zip(layers[1:], masks):
            above, alpha = _drawn(frame, mask, layer, t)
            image, share[t] = image * (1 - alpha) + above, share[t] * (1 - alpha)
            edge = _grown(alpha > SEEN) & ~_shrunk(alpha > SEEN)
            hidden = (hidden & (alpha < 1 - SEEN)) | edge
        clip[t], unknown[t] = image, hidden
    return Moved(clip, unknown, Lowest(plate, hole.to(frame), share, at))


def moved_matte(alpha: np.ndarray, control: Tensor) -> np.ndarray:
    """How opaque a picture's pixels are where a control moves them, by the layers of `moved_pixels`.

    Layers are laid over one another: what is transparent in one shows what is below it. What a moving layer leaves open
    is as opaque as the nearest pixel that stays; where no pixel stays, it is transparent.

    Args:
        alpha: (H, W) uint8 of frame 1.
        control: (L, 3, H, W), as for `moved_pixels`.

    Returns:
        (L, H, W) uint8; a frame in which nothing has moved is the first.
    """
    host = control.detach().cpu().double().numpy()
    layers = layers_of(host[:, 0] + 1j * host[:, 1], np.asarray((host[:, 2] > 0).any(0)))
    moves = np.stack([layer.moves() for layer in layers]).any(0)
    clip = np.repeat(alpha[None], len(control), axis=0)
    opaque = torch.from_numpy(alpha).double().expand(3, -1, -1) / 255
    plate, known = torch.zeros_like(opaque), torch.zeros_like(opaque[:1])
    if layers[0].pixels.any():
        plate, known, _ = _plate(opaque * 2 - 1, layers, _nearest)
        plate = (plate + 1) / 2
    at = _places(layers[0], plate)
    for t in np.flatnonzero(moves).tolist():
        image = _lowest(plate, known, at, t)[0][0]
        for layer in layers[1:]:
            above = _drawn(opaque, torch.from_numpy(layer.pixels).to(opaque), layer, t)[0][0]
            image = image * (1 - above) + above
        clip[t] = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return clip


def _nearest(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    rows, columns = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
    return np.asarray(picture[rows, columns])


def _plate(frame: Tensor, layers: list[Layer], fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest layer as a whole picture (3, H, W), (1, H, W) 1 where it is the first frame's, and (H, W) its hole."""
    seen = torch.from_numpy(layers[0].pixels).to(frame.device)
    if not seen.any():  # every pixel moves by itself: what they leave open shows the first frame
        return frame, torch.zeros_like(frame[:1]), seen
    hole = ~seen
    around = _grown(hole) if hole.any() else hole
    hole = around if not around.all() else hole
    if not hole.any():
        return frame, torch.ones_like(frame[:1]), hole
    picture = ((frame.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).contiguous().numpy()
    colours = torch.from_numpy(fill(picture, hole.cpu().numpy())).to(frame).permute(2, 0, 1) / 127.5 - 1
    return torch.where(hole, colours, frame), (~hole).to(frame)[None], hole


def _places(layer: Layer, plate: Tensor) -> Tensor | None:
    """(2, L, H, W) float64 x and y in the lowest layer of each frame's pixels; None where it stands still."""
    if layer.motion is None or not layer.moves().any():
        return None
    y, x = np.mgrid[: plate.shape[1], : plate.shape[2]]
    still = x + 1j * y
    places = [layer.motion.source(t, still) if moves else still for t, moves in enumerate(layer.moves())]
    return torch.from_numpy(np.stack([np.stack(places).real, np.stack(places).imag])).to(plate.device)


def _lowest(plate: Tensor, known: Tensor, at: Tensor | None, t: int) -> tuple[Tensor, Tensor]:
    """Frame t of the lowest layer, its border pixels carried on, and (H, W) how much of each pixel is known."""
    if at is None:
        return plate, known[0]
    height, width = plate.shape[1:]
    x, y = at[:, t]
    image = read(torch.cat([plate, known]), x, y)
    return image[:3], image[3] * _inside(x, y, height, width).to(image.dtype)


def _drawn(frame: Tensor, mask: Tensor, layer: Layer, t: int) -> tuple[Tensor, Tensor]:
    """Frame t of another layer: its colour times its coverage (3, H, W), and the coverage (H, W)."""
    whole = torch.cat([frame * mask, mask[None]])
    if layer.motion is None:
        return _splatted(whole, layer, t)
    if layer.moves()[t]:
        height, width = mask.shape
        rows, columns = _landing(layer, layer.motion, t)
        x, y = _sources(layer.motion, t, rows, columns, frame.device)
        part = read(whole, x, y) * _inside(x, y, height, width).to(whole.dtype)
        whole = torch.zeros_like(whole)
        whole[:, rows, columns] = part
    return whole[:3], whole[3]


def _landing(layer: Layer, motion: Shared, t: int) -> tuple[slice, slice]:
    """Rows and columns of the frame outside of which nothing of a layer comes to lie in frame t."""
    rows, columns = (np.flatnonzero(layer.pixels.any(axis)) for axis in (1, 0))
    corners = np.array([x + 1j * y for x in (columns[0] - 1, columns[-1] + 1) for y in (rows[0] - 1, rows[-1] + 1)])
    corners = corners + motion.displacement(corners)[t]

    def within(values: np.ndarray, size: int) -> slice:
        return slice(int(np.clip(np.floor(values.min()), 0, size)), int(np.clip(np.ceil(values.max()) + 1, 0, size)))

    return within(corners.imag, layer.pixels.shape[0]), within(corners.real, layer.pixels.shape[1])


def _sources(motion: Shared, t: int, rows: slice, columns: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """X and y in frame 1 of a part of frame t, float64."""
    y, x = np.mgrid[rows, columns]
    at = motion.source(t, x + 1j * y)
    return torch.from_numpy(at.real.copy()).to(device), torch.from_numpy(at.imag.copy()).to(device)


def _inside(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Share of a point's four neighbours that lies in the frame: 1 inside, 0 a pixel beyond the border."""
    across = (x + 1).clamp(0, 1) * (width - x).clamp(0, 1)
    return across * (y + 1).clamp(0, 1) * (height - y).clamp(0, 1)


def read(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """An image at points between its pixels, by bilinear interpolation; at whole ones to the bit.

    Args:
        image: (C, H, W); beyond the border its last pixels are carried on.
        x: (...) float64 in pixels.
        y: (...) float64.

    Returns:
        (C, ...) in the dtype of the image.
    """
    height, width = image.shape[1:]
    left, top = x.floor(), y.floor()
    across, down = (x - left).to(image.dtype), (y - top).to(image.dtype)
    columns = [(left + step).clamp(0, width - 1).long() for step in (0, 1)]
    rows = [(top + step).clamp(0, height - 1).long() * width for step in (0, 1)]
    pixels = image.flatten(1).T.contiguous()  # colours side by side: one access a corner
    total = pixels.new_zeros(x.numel(), len(image))
    for row, weight_y in zip(rows, (1 - down, down)):
        for column, weight_x in zip(columns, (1 - across, across)):
            total += pixels.index_select(0, (row + column).flatten()) * (weight_x * weight_y).view(-1, 1)
    return total.T.unflatten(1, x.shape)


def _splatted(whole: Tensor, layer: Layer, t: int) -> tuple[Tensor, Tensor]:
    """Each pixel of a layer shared out over the four that it comes to lie between."""
    height, width = whole.shape[1:]
    rows, columns = np.nonzero(layer.pixels)
    way = np.asarray(layer.flow)[t]
    x, y = columns + way.real, rows + way.imag
    colours = whole[:3, torch.from_numpy(layer.pixels).to(whole.device)]
    sums = whole.new_zeros(4, height * width)
    left, top = np.floor(x), np.floor(y)
    for row in (0, 1):
        for column in (0, 1):
            at_x, at_y = left + column, top + row
            weight = np.abs(1 - row - (y - top)) * np.abs(1 - column - (x - left))
            weight = weight * ((at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height))
            index = (at_y.clip(0, height - 1) * width + at_x.clip(0, width - 1)).astype(np.int64)
            share = torch.from_numpy(weight).to(whole)
            sums.index_add_(1, torch.from_numpy(index).to(whole.device), torch.cat([colours * share, share[None]]))
    alpha = sums[3].clamp(max=1)
    colour = sums[:3] / sums[3].clamp(min=1e-6) * alpha
    return colour.view(3, height, width), alpha.view(height, width)


def _grown(mask: Tensor) -> Tensor:
    """(H, W) bool, RIM pixels further."""
    return F.max_pool2d(mask.float()[None, None], 2 * RIM + 1, 1, RIM)[0, 0] > 0


def _shrunk(mask: Tensor) -> Tensor:
    return ~_grown(~mask)
