"""Periodic, band-limited textures for the synthetic scenes."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

TEXELS = 2  # per pixel of layer coordinates

_HUES = {
    "red": 0.0,
    "orange": 0.07,
    "yellow": 0.14,
    "green": 0.36,
    "teal": 0.48,
    "blue": 0.6,
    "purple": 0.76,
    "pink": 0.91,
}


@dataclass(frozen=True)
class Texture:
    """A tile of TEXELS texels per layer pixel, repeated for ever; `image` is (S, S, 3) float32 in 0..255."""

    image: np.ndarray

    def sample(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Colours (..., 3) at layer coordinates, cubic interpolation."""
        size = self.image.shape[0]
        x, y = (np.mod(w * TEXELS, size).astype(np.float32) for w in (u, v))
        return cv2.remap(self.image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)


def background_texture(rng: np.random.Generator, height: int, width: int) -> tuple[Texture, str]:
    """Muted colours at every scale from a few pixels to half the frame; its name, for the caption."""
    size = cv2.getOptimalDFTSize(int(TEXELS * 1.5 * max(height, width)))
    name, hue = _hue(rng)
    palette = _palette(rng, hue, spread=0.12, saturation=(0.15, 0.5), value=(0.25, 0.85))
    kind = str(rng.choice(["marble", "tiles", "hills"]))
    if kind == "marble":
        field = np.sin(2.2 * _noise(rng, size, 1.8, size / 3) + 0.25 * _noise(rng, size, 1.0, size / 12))
    elif kind == "tiles":
        field = _checks(rng, size, max(4, round(size / rng.uniform(22, 40)))) + 0.35 * _noise(rng, size, 1.0, size / 6)
    else:
        field = np.round(1.4 * _noise(rng, size, 1.9, size / 3)) + 0.2 * _noise(rng, size, 1.0, size / 10)
    return Texture(_coloured(rng, field, palette, grain=0.06)), f"{name} {kind}"


def object_texture(rng: np.random.Generator, radius: float) -> tuple[Texture, str]:
    """Saturated stripes, dots or swirls with about `radius` / 3 between them; the colour's name, for the caption."""
    size = cv2.getOptimalDFTSize(int(TEXELS * 3.2 * radius))
    name, hue = _hue(rng)
    palette = _palette(rng, hue, spread=0.16, saturation=(0.55, 0.95), value=(0.35, 1.0))
    kind = str(rng.choice(["striped", "dotted", "swirled"]))
    count = int(rng.integers(6, 11))
    y, x = np.mgrid[:size, :size] * (2 * np.pi / size)
    if kind == "striped":
        field = 1.2 * np.tanh(3 * np.sin(count * x + 0.5 * _noise(rng, size, 1.4, size / 2)))
    elif kind == "dotted":
        field = 1.2 * np.tanh(3 * (np.sin(count * x) * np.sin(count * y) - 0.2))
    else:
        field = np.sin(3.0 * _noise(rng, size, 1.9, size / 2.5))
    return Texture(_coloured(rng, field, palette, grain=0.04)), f"{kind} {name}"


def _hue(rng: np.random.Generator) -> tuple[str, float]:
    name = str(rng.choice(list(_HUES)))
    return name, _HUES[name]


def _palette(
    rng: np.random.Generator, hue: float, spread: float, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """(4, 3) colours in 0..255 from dark to light around a hue."""
    values = np.linspace(*value, 4) + rng.uniform(-0.04, 0.04, 4)
    colours = [
        colorsys.hsv_to_rgb((hue + rng.uniform(-spread, spread)) % 1, rng.uniform(*saturation), min(1, v))
        for v in values
    ]
    return 255 * np.asarray(colours)


def _noise(rng: np.random.Generator, size: int, falloff: float, longest: float) -> np.ndarray:
    """Periodic noise with an amplitude spectrum 1 / f^falloff between `longest` and 3 texels, unit variance."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    with np.errstate(divide="ignore"):
        gain = np.where(frequency >= 1 / longest, frequency**-falloff, 0) * np.exp(-((3 * frequency) ** 4))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * gain, s=(size, size))
    return field / field.std()


def _checks(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` x `count` tiles, each with its own shade, and grout between them."""
    index = np.arange(size) * count // size
    shade = rng.uniform(-1.2, 1.2, (count, count))[index[:, None], index[None]]
    place = np.arange(size) * count / size % 1
    grout = (np.minimum(place, 1 - place) < 0.06).astype(float)
    return shade - 0.9 * np.maximum(grout[:, None], grout[None])


def _coloured(rng: np.random.Generator, field: np.ndarray, palette: np.ndarray, grain: float) -> np.ndarray:
    """Map a field of about unit variance through the palette, add fine grain, and remove what is too fine to sample."""
    place = np.clip((field + 1.6) / 3.2, 0, 1) * (len(palette) - 1)
    stops = np.arange(len(palette))
    image = np.stack([np.interp(place, stops, palette[:, c]) for c in range(3)], -1)
    image *= 1 + grain * _noise(rng, len(field), 0.6, 16)[..., None]
    blurred = _blur(np.clip(image, 0, 255))
    return np.ascontiguousarray(np.clip(blurred, 0, 255).astype(np.float32))


def _blur(image: np.ndarray) -> np.ndarray:
    """A periodic Gaussian of 1.2 texels."""
    size = image.shape[0]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    gain = np.exp(-2 * (np.pi * frequency * 1.2) ** 2)[..., None]
    return np.fft.irfft2(np.fft.rfft2(image, axes=(0, 1)) * gain, s=(size, size), axes=(0, 1))
