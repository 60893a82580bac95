"""Non-local means and fine detail of a hole, against sums written out window by window."""

import cv2
import numpy as np
import pytest

from lightning_modules.control import alike, texture


def square(height, width, top, left, side):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def cells(height, width, period, rng):
    """A picture that repeats itself after so many pixels, (H, W, 3) of 0 to 255."""
    tile = rng.uniform(0, 255, (period, period, 3))
    return np.tile(tile, (-(-height // period), -(-width // period), 1))[:height, :width].astype(np.float32)


def test_what_repeats_itself_is_found_again_whatever_its_level():
    rng = np.random.default_rng(0)
    truth, mask = cells(60, 66, 11, rng), square(60, 66, 24, 26, 10)
    truth = truth / 2 + np.linspace(0, 100, 66, dtype=np.float32)[None, :, None]  # it grows brighter to the right
    made = alike.alike(np.where(mask[..., None], truth.mean(), truth).astype(np.float32), mask)
    assert np.array_equal(made[~mask], truth[~mask])
    assert np.abs(made - truth)[mask].mean() < 2 < 0.1 * np.abs(truth - truth.mean())[mask].mean()


def test_the_mean_is_the_one_written_out():
    rng = np.random.default_rng(1)
    side, middle = alike.SIDE, slice(alike.MARGIN, alike.MARGIN + alike.CELL)
    wanted, known = (rng.uniform(0, 255, (count, 3, side, side)).astype(np.float32) for count in (2, 40))
    trust = rng.uniform(0, 1, (2, side, side)).astype(np.float32)
    made = alike._mean(wanted, trust, known.reshape(40, 3, -1))
    for window, weight, result in zip(wanted.astype(float), trust.astype(float), made):
        for y in range(side):
            for x in range(side):
                away = [max(alike.MARGIN - at, at - alike.MARGIN - alike.CELL + 1, 0) for at in (y, x)]
                weight[y, x] *= alike.FALL ** np.hypot(*away)
        weight /= weight.sum()
        levels = ((known - window) * weight).sum((2, 3))
        errors = (np.square(known - window - levels[..., None, None]) * weight).sum((2, 3)).mean(1)
        order = errors.argsort()[: alike.CHOSEN]
        least = errors[order[0]]
        share = np.exp((least - errors[order]) / (alike.SPREAD * max(least, alike.LEAST)))
        expected = sum(
            part * (known[k][:, middle, middle] - levels[k][:, None, None])
            for part, k in zip(share / share.sum(), order)
        )
        np.testing.assert_allclose(result, expected.transpose(1, 2, 0).clip(0, 255), atol=0.05)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_smooth_fill_gets_the_contrast_of_its_like(scale):
    """Left of the middle it is dark and coarse, to the right bright and smooth: each half gets its own."""
    rng = np.random.default_rng(2)
    height, width = 120, 200
    dark = np.arange(width) < width / 2
    picture = (
        np.where(dark, 60, 190)[None, :, None] + rng.normal(0, 1, (height, width, 3)) * np.where(dark, 20, 3)[:, None]
    )
    picture = picture.clip(0, 255).astype(np.float32)
    mask = square(height, width, 45, 70, 20) | square(height, width, 45, 130, 20)
    smooth = np.where(mask[..., None], np.where(dark, 60, 190)[None, :, None], picture).astype(np.float32)
    made = texture.textured(smooth, mask, scale)
    assert np.array_equal(made[~mask], smooth[~mask])
    fine = np.square(picture - cv2.GaussianBlur(picture, (0, 0), texture.FINE * scale)).mean(2)
    inner = square(height, width, 49, 74, 12), square(height, width, 49, 134, 12)
    away = np.abs(np.arange(width) - width / 2) > 10  # of the edge between them
    for where, side in zip(inner, (dark & away, ~dark & away)):
        own = np.square(made - smooth).mean(2)[where].mean()
        assert own == pytest.approx(fine[:, side].mean(), rel=0.4)


def test_detail_that_is_there_is_not_added_again():
    rng = np.random.default_rng(3)
    picture = rng.uniform(100, 150, (64, 64, 3)).astype(np.float32)
    mask = square(64, 64, 24, 24, 16)
    change = np.square(texture.textured(picture, mask) - picture)[mask].mean()
    smooth = np.where(mask[..., None], 125, picture).astype(np.float32)
    assert change < 0.2 * np.square(texture.textured(smooth, mask) - smooth)[mask].mean()


@pytest.mark.parametrize("size", [(8, 40), (40, 48)])
def test_where_no_window_fits_the_picture_stays(size):
    mask = np.ones(size, bool)
    mask[0, 0] = False
    picture = np.random.default_rng(4).uniform(0, 255, (*size, 3)).astype(np.float32)
    assert np.array_equal(texture.textured(picture, mask), picture)
    assert np.array_equal(alike.alike(picture, mask), picture)
