"""What a picture may show in a hole: interpolated from around it, and its texture carried on. No weights.

A hole is filled from coarse to fine. At the coarsest size each pixel is the best linear estimate from the hole's rim
(kriging); at every size frequency-selective extrapolation then carries structure into the hole, with the coarser fill
as a weak witness. At the coarsest, non-local means give a second estimate: the mean of both is nearer than either. All
of these are smoother than what they estimate; `texture` adds the fine detail of similar places.

- Kriging: Cressie, Statistics for Spatial Data (1993), 3.2, with an exponential covariance and an unknown mean.
- Extrapolation: Seiler and Kaup, Complex-valued frequency selective extrapolation for fast image and video signal
  extrapolation, IEEE Signal Processing Letters 17 (2010), with the preference for low frequencies of Genser et al.,
  Demonstration of rapid frequency selective reconstruction for image resolution enhancement, ICIP 2017.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import fft, linalg, ndimage

from lightning_modules.control.alike import alike
from lightning_modules.control.texture import textured

LARGE = 256  # px of the shorter side from which a picture is halved before its holes are kriged
RANGE, NUGGET = 40.0, 0.05  # px over which the covariance falls to 1/e, and the share of it that is noise
NEAR, FAR, MOST = 3, 24, 900  # px around a hole that are witnesses: every second, every fourth in both ways; and most
BLOCK, BORDER, SIZE = 8, 20, 64  # px of a block's side, of its surroundings, and of the transform
FALL = 0.85  # weight of a pixel per pixel of distance from the block's centre
FILLED, COARSE = 0.5, 0.03  # weights of what is already extrapolated, and of the coarser fill
ITERATIONS, SHARE = 20, 0.5  # frequencies that are chosen, and how much of each is taken at a time
BATCH = 128  # blocks at once
RECALLED = 0.5  # how far a hole is moved from the extrapolation to the non-local mean, whose errors are others


def filled(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture with its hole filled; the rest is unchanged.

    Args:
        picture: (H, W, 3) float32, of values from 0 to 255.
        hole: (H, W) bool, neither all nor none of it.

    Returns:
        (H, W, 3) float32.
    """
    levels = [(picture.astype(np.float32), hole)]
    while min(levels[-1][1].shape) >= LARGE and not _halved(*levels[-1])[1].all():
        levels.append(_halved(*levels[-1]))
    coarsest, missing = levels.pop()
    whole = _recalled(_extrapolated(_kriged(coarsest, missing), missing), missing)
    for image, missing in reversed(levels):
        whole = cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        whole = _extrapolated(np.where(missing[..., None], whole, image).clip(0, 255), missing)
    return np.where(hole[..., None], textured(whole, hole, 2 ** len(levels)), picture)


def _halved(image: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At half the size: means over what is known; a pixel is missing where less than half of it is known."""
    size = image.shape[1] // 2, image.shape[0] // 2
    known = (~hole).astype(np.float32)
    share = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(image * known[..., None], size, interpolation=cv2.INTER_AREA)
    return sums / np.maximum(share, 1e-3)[..., None], share < 0.5


def _kriged(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The hole's pixels as linear estimates from its rim, each connected part by itself."""
    whole = image.astype(np.float64)
    parts, _ = ndimage.label(hole)
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        window = tuple(slice(max(side.start - FAR, 0), side.stop + FAR) for side in box)
        part = parts[window] == number
        distance = ndimage.distance_transform_edt(~part)
        y, x = np.mgrid[: part.shape[0], : part.shape[1]]
        wide = (distance <= FAR) & (x % 4 == 0) & (y % 4 == 0)
        seen = ~hole[window] & (wide | ((distance <= NEAR) & ((x + y) % 2 == 0)))
        if not seen.any():
            seen = ~hole[window]
        rim, inside = np.argwhere(seen), np.argwhere(part)
        chosen = np.linspace(0, len(rim) - 1, min(len(rim), MOST)).astype(int)
        rim = rim[chosen]
        colours = whole[window][rim[:, 0], rim[:, 1]]
        factor = linalg.cho_factor(_covariance(rim, rim) + NUGGET * np.eye(len(rim)), lower=True)
        ones = linalg.cho_solve(factor, np.ones(len(rim)))
        mean = ones @ colours / ones.sum()
        weights = linalg.cho_solve(factor, colours - mean)
        for some in np.array_split(inside, -(-len(inside) // 4096)):
            whole[window][some[:, 0], some[:, 1]] = mean + _covariance(some, rim) @ weights
    return whole.astype(np.float32)


def _covariance(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    apart = points[:, None] - others[None]
    return np.exp(-np.hypot(apart[..., 0], apart[..., 1]) / RANGE)


def _extrapolated(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The hole's pixels from frequencies of what is around them: block by block, from the rim inwards."""
    height, width = hole.shape
    rest = -height % BLOCK, -width % BLOCK
    frame = ((BORDER, BORDER + rest[0]), (BORDER, BORDER + rest[1]))
    image = np.pad(image, (*frame, (0, 0)))
    weight = np.pad(np.where(hole, COARSE, 1).astype(np.float32), frame)
    blocks = np.pad(hole, ((0, rest[0]), (0, rest[1])))
    blocks = blocks.reshape(blocks.shape[0] // BLOCK, BLOCK, -1, BLOCK).swapaxes(1, 2)
    open_, side = blocks.any((2, 3)), BLOCK + 2 * BORDER
    while open_.any():
        now = open_ & ndimage.binary_dilation(~open_)
        now = now if now.any() else open_.copy()
        places = [(slice(BLOCK * y, BLOCK * y + side), slice(BLOCK * x, BLOCK * x + side)) for y, x in np.argwhere(now)]
        middle = slice(BORDER, BORDER + BLOCK)
        for start in range(0, len(places), BATCH):  # of the state before this ring, all of them
            some = places[start : start + BATCH]
            colours = np.stack([image[place] for place in some]).transpose(0, 3, 1, 2)
            model = _modelled(colours, np.stack([weight[place] for place in some]))[..., middle, middle]
            for place, values, missing in zip(some, model, blocks[now][start : start + BATCH]):
                block = image[place][middle, middle]
                block[missing] = values.transpose(1, 2, 0).clip(0, 255)[missing]
        for place, missing in zip(places, blocks[now]):
            weight[place][middle, middle][missing] = FILLED
        open_ = open_ & ~now
    return image[BORDER : BORDER + height, BORDER : BORDER + width]


def _modelled(colours: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums of few frequencies that fit windows where they have weight.

    Args:
        colours: (N, 3, S, S) float32.
        weight: (N, S, S) float32.
    """
    count, side = len(colours), colours.shape[-1]
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    weight = (weight * FALL ** np.hypot(x, y)).astype(np.float32)[:, None]
    mean = (colours * weight).sum((2, 3), keepdims=True) / weight.sum((2, 3), keepdims=True)
    rest = fft.rfft2((colours - mean) * weight, s=(SIZE, SIZE)).reshape(*colours.shape[:2], -1)
    window = fft.fft2(weight[:, 0], s=(SIZE, SIZE)).reshape(count, 1, -1)
    rows, (down, across) = np.arange(count), np.divmod(np.arange(SIZE * (SIZE // 2 + 1)), SIZE // 2 + 1)
    low = np.hypot(np.minimum(down, SIZE - down), across) / SIZE
    low = (1 - np.sqrt(2) * low).clip(0).astype(np.float32) ** 2
    spectrum = np.zeros((count, colours.shape[1], SIZE, SIZE), np.complex64)
    for _ in range(ITERATIONS):
        chosen = ((rest.real**2 + rest.imag**2).sum(1) * low).argmax(1)  # the same of all colours: no coloured ghosts
        v, u = down[chosen], across[chosen]
        part = SHARE * rest[rows, :, chosen] / window[:, 0, :1].real
        twin = np.where((2 * v % SIZE == 0) & (2 * u % SIZE == 0), 0, part.conj().T).T  # a real signal's other half
        for amount, way in ((part, 1), (twin, -1)):
            shifted = (down - way * v[:, None]) % SIZE * SIZE + (across - way * u[:, None]) % SIZE
            rest -= amount[..., None] * np.take_along_axis(window, shifted[:, None], 2)
            spectrum[rows, :, way * v % SIZE, way * u % SIZE] += amount
    return fft.ifft2(spectrum).real[..., :side, :side] * SIZE**2 + mean


def _recalled(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The picture, its hole moved towards what non-local means find at half the size."""
    size = max(image.shape[1] // 2, 1), max(image.shape[0] // 2, 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    missing = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    change = cv2.resize(alike(small, missing) - small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.where(hole[..., None], image + RECALLED * change, image).clip(0, 255)
