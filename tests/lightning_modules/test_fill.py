"""What a hole in a picture is filled with, against closed forms and OpenCV's inpainting."""

import numpy as np
import pytest

from lightning_modules.control.fill import FAR, NEAR, NUGGET, RANGE, _kriged, filled
from remoco.photos import inpainted


def hole(height, width, top, left, side):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def waves(height, width, *cycles):
    """Sums of sines, each of cycles per pixel across and down, (H, W, 3) of 0 to 255."""
    y, x = np.mgrid[:height, :width]
    total = sum(np.sin(2 * np.pi * (u * x + v * y) + 1) for u, v in cycles) / len(cycles)
    return np.stack([128 + amplitude * total for amplitude in (90, -60, 40)], 2).astype(np.float32)


def error(image, truth, mask):
    return np.sqrt(np.square(image - truth)[mask].mean())


@pytest.mark.parametrize("size", [(64, 64), (61, 75), (256, 264)])
def test_what_is_known_keeps_its_bits_and_a_flat_picture_stays_flat(size):
    mask = hole(*size, 20, 17, 24)
    picture = np.random.default_rng(0).uniform(0, 255, (*size, 3)).astype(np.float32)
    made = filled(picture, mask)
    assert np.array_equal(made[~mask], picture[~mask]) and made.min() >= 0 and made.max() <= 255
    flat = np.full_like(picture, 77)
    np.testing.assert_allclose(filled(flat, mask), flat, atol=0.05)


def test_an_estimate_is_ordinary_krigings():
    picture, mask = waves(64, 64, (0.02, 0.03), (0.05, 0.01)), hole(64, 64, 24, 24, 12)
    y, x = np.mgrid[:64, :64]
    away = np.hypot(*(np.maximum(np.maximum(24 - at, at - 35), 0) for at in (y, x)))
    # the window begins FAR px before the hole, where the parity and the grid of every fourth pixel begin too
    wide = (away <= FAR) & ((x - 24 + FAR) % 4 == 0) & ((y - 24 + FAR) % 4 == 0)
    rim = np.argwhere(~mask & (wide | ((away <= NEAR) & ((x + y) % 2 == 0))))
    at = np.array([29, 33])
    covariance = np.exp(-np.linalg.norm(rim[:, None] - rim[None], axis=2) / RANGE) + NUGGET * np.eye(len(rim))
    system = np.block([[covariance, np.ones((len(rim), 1))], [np.ones((1, len(rim))), np.zeros((1, 1))]])
    weights = np.linalg.solve(system, np.append(np.exp(-np.linalg.norm(rim - at, axis=1) / RANGE), 1))[:-1]
    np.testing.assert_allclose(_kriged(picture, mask)[29, 33], weights @ picture[rim[:, 0], rim[:, 1]], atol=1e-2)


@pytest.mark.parametrize("cycles", [[(0.1, 0.0)], [(0.06, 0.11)], [(0.12, 0.05), (-0.04, 0.09)]])
def test_a_regular_texture_goes_on(cycles):
    picture, mask = waves(96, 96, *cycles), hole(96, 96, 36, 40, 20)
    own, opencv = (error(fill(picture, mask), picture, mask) for fill in (filled, inpainted))
    assert own < 0.4 * opencv


def test_a_picture_of_page_size_is_filled_from_half_its_size():
    picture, mask = waves(320, 512, (0.02, 0.01), (0.004, 0.03)), hole(320, 512, 120, 200, 60)
    own, opencv = (error(fill(picture, mask), picture, mask) for fill in (filled, inpainted))
    assert own < 0.6 * opencv


def energy(picture, mask):
    """Of the gradients inside of a hole."""
    inside = mask & np.roll(mask, 1, 0) & np.roll(mask, 1, 1)
    return sum(np.square(picture - np.roll(picture, 1, axis)).sum(2)[inside].sum() for axis in (0, 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fill_is_about_as_sharp_as_what_surrounds_it(seed):
    """On noise whose amplitude falls with the frequency as photographs' does, of which nothing can be foretold."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.rfftfreq(96), indexing="ij"))
    frequency[0, 0] = 1
    noise = np.random.default_rng(seed).normal(size=(3, 96, 96))
    clouds = np.fft.irfft2(np.fft.rfft2(noise) / frequency)
    picture = (128 + 40 * clouds / clouds.std()).clip(0, 255).transpose(1, 2, 0).astype(np.float32)
    mask = hole(96, 96, 36, 36, 24)
    made, smear, true = (energy(image, mask) for image in (filled(picture, mask), inpainted(picture, mask), picture))
    assert 0.65 < made / true < 1.3 and smear / true < 0.15


@pytest.mark.parametrize("known", ["a line", "a pixel"])
def test_hardly_anything_known_still_fills(known):
    mask = np.ones((40, 48), bool)
    mask[20, :] = known == "a pixel"
    mask[20, 7] = False
    picture = np.full((40, 48, 3), 50, np.float32)
    np.testing.assert_allclose(filled(picture, mask), 50, atol=0.5)
