"""A brush that is fitted to edges: against an object whose mask is known, and its bounds."""

import base64

import cv2
import numpy as np
import pytest

from remoco.common.errors import UserError
from remoco.page import exchange, snap
from tests.support.page import png


def animal(height, width, noise=12.0):
    """A disc with two ears over another colour, its mask, and a disc of part of its radius."""
    y, x = np.mgrid[:height, :width]
    x, y, radius = x - width / 2, y - height / 2, min(height, width) / 4
    ears = (np.abs(np.abs(x) - 0.6 * radius) < 0.2 * radius) & (np.abs(y + radius) < 0.45 * radius)
    mask = (x**2 + y**2 < radius**2) | ears
    image = np.where(mask[..., None], [200, 120, 60], [60, 90, 140])
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask, lambda part: x**2 + y**2 < (part * radius) ** 2


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("size", [(64, 64), (240, 320), (900, 1200)])
@pytest.mark.parametrize("part", [0.8, 1.15])
def test_a_sloppy_brush_gets_the_ears_and_loses_what_lies_beside(size, part):
    image, mask, disc = animal(*size)
    found = snap.fitted(image, np.where(disc(part), 3, 0).astype(np.uint8))
    assert set(np.unique(found)) == {0, 3}
    assert overlap(disc(part), mask) < 0.75 < 0.9 < overlap(found > 0, mask)


def test_an_eye_is_part_of_the_object():
    image, mask, disc = animal(240, 320)
    eye = (slice(110, 122), slice(140, 152))
    image[eye] = image[0, 0]  # of the background's colour
    assert snap.fitted(image, disc(0.8).astype(np.uint8))[eye].all()


def test_other_brushes_stay_and_the_same_brush_gives_the_same():
    image, mask, disc = animal(120, 160)
    brush = np.where(disc(0.8), 2, 0).astype(np.uint8)
    brush[30:44, 60:75] = 200  # over an ear
    found = snap.fitted(image, brush, 2)
    assert (found[30:44, 60:75] == 200).all() and (found == 200).sum() == (brush == 200).sum()
    assert overlap(found == 2, mask & (brush != 200)) > 0.9
    assert np.array_equal(found, snap.fitted(image, brush, 2))


@pytest.mark.parametrize("brush", [np.zeros((40, 60), np.uint8), np.ones((40, 60), np.uint8)])
def test_nothing_brushed_or_no_edge_is_a_line(brush):
    with pytest.raises(UserError, match=r"the brush: (nothing is painted|no edge was found)"):
        snap.fitted(np.zeros((40, 60, 3), np.uint8), brush)


def test_what_is_cut_is_small_whatever_the_picture(monkeypatch):
    """The largest picture of the page, in noise that has no edges: a few rounds over few pixels."""
    seen, real = [], cv2.grabCut

    def counted(image, *rest):
        seen.append(image.shape)
        return real(image, *rest)

    monkeypatch.setattr(cv2, "grabCut", counted)
    side = exchange.MAX_SIDE
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    brush = np.zeros((side, side), np.uint8)
    brush[500:1500, 500:1500] = 1
    snap.fitted(image, brush)
    assert 1 <= len(seen) <= snap.ROUNDS and max(max(shape[:2]) for shape in seen) <= snap.MOST_SIDE


def test_the_rounds_end_with_the_time(monkeypatch):
    calls, real = [], cv2.grabCut
    monkeypatch.setattr(snap, "SECONDS", -1.0)
    monkeypatch.setattr(cv2, "grabCut", lambda *a: calls.append(1) or real(*a))
    image, _, disc = animal(64, 64)
    snap.fitted(image, disc(0.8).astype(np.uint8))
    assert len(calls) == 1


def test_it_is_asked_as_json_with_what_is_wrong_in_a_line():
    image, mask, disc = animal(64, 64)
    body = {"image": exchange.PNG + base64.b64encode(png(image)).decode(), "value": 0}
    body["runs"] = exchange.runs_of(disc(0.8).astype(np.uint8))
    runs = np.array(snap.snapped(body)["runs"]).reshape(-1, 2)
    assert overlap(np.repeat(runs[:, 0], runs[:, 1]).reshape(64, 64) > 0, mask) > 0.9
    for change in ({"value": 300}, {"value": None}, {"runs": [1, 5]}, {"image": "x"}):
        with pytest.raises(UserError, match=next(iter(change))):
            snap.snapped(body | change)
