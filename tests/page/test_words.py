"""What a person reads of a damaged or foreign file: a line without the words of Python or of its libraries."""

import base64
import io
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from remoco.common.errors import UserError
from remoco.common.picture_files import FORMATS, read_depth, read_image, read_mask
from remoco.page import exchange
from tests.support.page import png, sent
from tests.support.zips import zipped

OURS = re.compile(r"Error\b|Exception|BadZipFile|NoneType|indices|<|dtype|\bdict\b|\bstr\b|float\d|b'")
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def line_of(call):
    """What a call says is wrong; None where nothing is."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def plain(line):
    assert line is None or ("\n" not in line and not OURS.search(line)), line
    return line


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_pictures_are_told_in_plain_words(kind):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, kind)
    data = file.getvalue()
    rng = np.random.default_rng(1)
    damaged = [data[:end] for end in (5, 20, 60, len(data) // 2, len(data) - 40)]
    for _ in range(30):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 6):
            changed[at] = rng.integers(256)
        damaged.append(bytes(changed))
    said = [plain(line_of(partial(read, each, "a.pic"))) for each in damaged for read in (read_image, read_mask)]
    assert sum(line is not None for line in said) >= 4
    assert not [line for line in said if line and re.search(rf"{kind}, expected .*{kind}", line)], "of its own kind"


@pytest.mark.parametrize(
    "data",
    [b"x", npy(np.zeros((3, 4, 5))), npy(np.array([["a"]])), npy(np.ones((3, 4)))[:-3], npy(np.ones((3, 4)))[:20]],
)
def test_bad_depths_are_told_in_plain_words(data):
    assert plain(line_of(lambda: read_depth(data, "d.npy")))


@pytest.mark.parametrize(
    "files",
    [
        {"a__zip": b"PK\3\4 no zip"}, {"a__zip": zipped([("first_frame.png", png(PICTURE))])[:900]},
        {"a__png": png(PICTURE), "a__json": b"[1]"}, {"a__png": png(PICTURE), "a__json": b'{"foo": null}'},
        {"a__png": png(PICTURE), "a__json": b'{"traj_key_points": null}'},
        {"a__png": png(PICTURE), "a__json": b'{"traj_key_points": [[[1, 1]]], "brush": {}}'},
    ],
)  # fmt: skip
def test_bad_inputs_are_told_in_plain_words(files):
    assert plain(line_of(lambda: exchange.opened(sent(**files))))


@pytest.mark.parametrize("kind, name", [("poses", "p.txt"), ("depth", "d.npy"), ("driving", "v.mp4")])
@pytest.mark.parametrize(
    "data", [b"x y z", b"\xff\xfe\0", png(PICTURE), b"\0\0\0\x18ftypmp42" + b"\0" * 50, b"1 2\n" * 5]
)
def test_bad_files_of_the_camera_are_told_in_plain_words(kind, name, data):
    body = {"kind": kind, "name": name, "data": base64.b64encode(data).decode(), "width": 50, "height": 40}
    if kind != "depth" or data != png(PICTURE):
        assert plain(line_of(lambda: exchange.attached(body)))


@pytest.mark.parametrize("body", [None, {}, {"files": 5}, {"files": [5]}, {"files": [{"name": 5}]}])
def test_a_wrong_request_is_told_in_plain_words(body):
    assert plain(line_of(lambda: exchange.opened(body)))
