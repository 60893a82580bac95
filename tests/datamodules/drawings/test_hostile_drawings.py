"""Drawings that nobody draws: numbers that are none, arrays of absurd shapes, texts without end. One line each."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from datamodules.drawings import Drawing, drawing_from_json, read_drawing
from datamodules.drawings.poses import read_poses
from remoco.common.errors import UserError
from remoco.common.picture_files import read_array, read_depth
from tests.support.drawings import npy

IMAGE = np.zeros((40, 60, 3), np.uint8)
LINE = [[5, 6], [20, 9]]
NUMBERS = (
    [["5", "6"], ["20", "9"]],
    [[5, True], [20, 9]],
    [[True, False], [True, False]],
    [[5, 6], [None, 9]],
    "ab",
    {"x": 1},
)
NUMBERS += [[5, "6"], [20, 9]], 5, True, [[10**90, 6]], [[[[5]]]], [[5, 6], [7]]  # fmt: skip


@pytest.mark.parametrize("track", NUMBERS, ids=range(len(NUMBERS)))
def test_a_track_of_no_numbers(track):
    with pytest.raises(UserError, match=r"drawing: traj_key_points\[0\]: expected ") as error:
        drawing_from_json(json.dumps({"traj_key_points": [track]}), IMAGE, name="drawing")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("times", [["0", "1"], [False, True], [0, True], [0, None], "01", {}, 3, [[0, 1]], [0, 10**90]])
def test_times_of_no_numbers(times):
    with pytest.raises(UserError, match=r"times\[0\]: expected "):
        drawing_from_json(json.dumps({"traj_key_points": [LINE], "times": [times]}), IMAGE)


@pytest.mark.parametrize("ids", [[[[[1]]]], {}, [True], ["1"], [1.0], [10**90], [{"a": [1] * 1000}]])
def test_brush_ids_of_no_numbers(ids):
    brush = np.ones((40, 60), np.uint8)
    with pytest.raises(UserError, match="drawing: brush") as error:
        drawing_from_json(json.dumps({"traj_key_points": [LINE], "brush": ids}), IMAGE, brush, "drawing")
    assert len(str(error.value)) < 200


def test_counts_are_bounded_before_they_cost():
    brush = np.ones((40, 60), np.uint8)
    for count, ids in ((10_001, False), (1001, True)):
        text = {"traj_key_points": [[[5, 6]]] * count} | ({"brush": [1] * count} if ids else {})
        with pytest.raises(UserError, match="at most 1000"):
            drawing_from_json(json.dumps(text), IMAGE, brush)
    with pytest.raises(UserError, match="expected at most 16 MB"):
        drawing_from_json(b'{"traj_key_points": [' + b"0," * 2**23 + b"0]}", IMAGE)


HEADERS = {
    "more than any memory": ("(2, 5, 2)", "(2, 5000000000000, 2)"),
    "no rows and no end": ("(2, 5, 2)", "(0, 99999999999999999999, 2)"),
    "below zero twice": ("(2, 5, 2)", "(-2, -5, 2)"),
    "truth values": ("(2, 5, 2)", "(True, 80, 2)"),
    "a field": ("'<f8'", "[('a', '<f8')]"),
    "an inner shape": ("'<f8'", "('<f8', (9999, 9999))"),
    "an object": ("'<f8'", "'|O'"),
    "dates": ("'<f8'", "'<M8[s]'"),
    "complex": ("'<f8'", "'<c16'"),
    "nothing": ("'<f8'", "'|V0'"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_asks_for_too_much(tmp_path, kind):
    path = tmp_path / "tracks.npy"
    path.write_bytes(npy(np.zeros((2, 5, 2)), **dict([HEADERS[kind]])))
    with pytest.raises(UserError, match="tracks.npy: expected ") as error:
        read_array(path, "(N, L, 2) numbers", 3)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "tracks.npy"
    path.write_bytes(b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + b"{")
    with pytest.raises(UserError, match="tracks.npy: expected an .npy file"):
        read_array(path, "numbers", 3)


def test_arrays_of_truth_values_are_no_points_and_no_depth(tmp_path):
    for array in (np.ones((2, 5, 2), bool), np.ones((2, 5, 2), complex)):
        np.save(tmp_path / "tracks.npy", array)
        Image.fromarray(IMAGE).save(tmp_path / "image.png")
        with pytest.raises(UserError, match="tracks.npy: expected .N, L, 2. numbers"):
            read_drawing(tmp_path / "image.png", tmp_path / "tracks.npy")
    with pytest.raises(UserError, match="expected .H, W. numbers"):
        read_depth(npy(np.ones((4, 5), bool)))


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, 1e300])
def test_a_depth_without_bounds(value):
    depth = np.ones((4, 5))
    depth[1, 2] = value
    with pytest.raises(UserError, match="expected a depth above 0, up to 1e.09, in every pixel; 1 are not"):
        read_depth(npy(depth))


POSE = "0 1 1 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"


@pytest.mark.parametrize(
    "text, said",
    [
        (POSE.replace("0.5", "1e300"), "line 1: expected 19 numbers"),
        (POSE.replace("0.5", "nan"), "line 1: expected 19 numbers"),
        (POSE.replace("0.5", "1_0"), "line 1: expected 19 numbers"),
        (POSE + " 1_0", "line 1: expected 19 numbers"),
        (f"{POSE}\n" * 30_000, "expected at most 1 MB"),
        ("\x00" * 100, "expected the poses of at least 2 frames"),
    ],
    ids=range(6),
)
def test_poses_without_bounds(text, said):
    with pytest.raises(UserError, match=said) as error:
        read_poses(text.encode(), "poses.txt")
    assert "\n" not in str(error.value)


def test_plain_numbers_stay_what_they_are():
    """Of lists and arrays of any kind of number; the same bits."""
    for track in (LINE, np.array(LINE, np.uint8), np.array(LINE, np.float16), [np.float32([5, 6]), (20, 9)]):
        assert Drawing(IMAGE, [track]).tracks[0].tolist() == [[5.0, 6.0], [20.0, 9.0]]
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asfortranarray(np.arange(20.0).reshape(2, 5, 2)), version=(3, 0))
    assert read_array(file.getvalue(), "numbers", 3).tolist() == np.arange(20.0).reshape(2, 5, 2).tolist()
