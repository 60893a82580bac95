"""What the browser sends and gets: drawings, files, zips, paths; without a browser."""

import base64
import io
import json
import zipfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from datamodules.bench import find_pairs, read_pair
from datamodules.drawings import Drawing
from remoco.common.errors import UserError
from remoco.page import exchange
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint, preview
from remoco.unseen import unseen
from tests.support.page import IMAGE, ROUND, bomb, png, sent, unloaded


def drawn(height=40, width=60, ids=True):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    brush = np.zeros((height, width), np.uint8)
    brush[5:9, 7:20], brush[20:, 30:], brush[0, 0] = 1, 3, 200
    tracks = [np.array([[3.25, 4.5], [20, 30], [70, -5]]), np.array([[8.0, 9.0]])]
    times = [np.array([0.0, 0.25, 0.9]), None]
    return Drawing(image, tracks, brush, times, [3, None] if ids else None, eases=[None, "out"])


def same(a, b):
    assert np.array_equal(a.image, b.image)
    assert all(np.array_equal(x, y) for x, y in zip(a.tracks, b.tracks, strict=True))
    assert [None if t is None else t.tolist() for t in a.times or []] == [
        None if t is None else t.tolist() for t in b.times or []
    ]
    assert a.brush_ids == b.brush_ids and a.eases == b.eases
    expected = a.brush if a.brush_ids is not None else a.brush > 0
    assert np.array_equal(expected, b.brush if b.brush_ids is not None else b.brush > 0)


@pytest.mark.parametrize("ids", [True, False])
def test_a_drawing_comes_back_as_the_inputs_it_was_made_of(ids):
    inputs = drawn(ids=ids)
    through_json = json.loads(json.dumps(exchange.shown(inputs)))
    same(inputs, exchange.parsed(through_json))


@pytest.mark.parametrize("ids", [True, False])
def test_a_zip_opens_again_and_its_files_do_one_by_one(ids):
    inputs = drawn(ids=ids)
    data = exchange.zipped(inputs)
    same(inputs, exchange.parsed(exchange.opened(sent(inputs__zip=data))))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name.replace(".", "__"): archive.read(name) for name in archive.namelist()}
    same(inputs, exchange.parsed(exchange.opened(sent(**files))))


def test_the_zip_is_a_sample_of_the_benchmark(tmp_path):
    inputs = drawn(ids=False)
    with zipfile.ZipFile(io.BytesIO(exchange.zipped(inputs))) as archive:
        archive.extractall(tmp_path / "object_control" / "mine")
    (key,) = find_pairs(tmp_path)
    pair = read_pair(tmp_path, key)
    same(pair.drawing, inputs)


def test_an_image_alone_is_a_drawing_without_tracks():
    found = exchange.opened(sent(photo__png=png(drawn().image)))
    assert found["meta"]["traj_key_points"] == [] and found["runs"] == [0, 40 * 60] and "note" not in found
    with pytest.raises(UserError, match="at least one track"):
        exchange.parsed(found)


def test_an_image_on_the_page_is_what_a_viewer_shows():
    rgba = np.full((40, 60, 4), (255, 0, 255, 0), np.uint8)
    rgba[:, 30:] = (200, 30, 30, 255)
    for background in ((255, 255, 255), (0, 255, 0)):
        found = exchange.opened(sent(layer__png=png(rgba)), background=background)
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"].removeprefix(exchange.PNG)))))
        assert image.shape == (40, 60, 3) and tuple(image[5, 5]) == background and tuple(image[5, 50]) == (200, 30, 30)
    deep = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
    found = exchange.opened(sent(deep__png=png(deep)))
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"].removeprefix(exchange.PNG)))))
    assert np.array_equal(image[..., 0], np.rint(deep / 257))
    with pytest.raises(UserError, match="a.heic: not a readable picture: HEIC, expected PNG, JPEG"):
        exchange.opened(sent(a__heic=b"\0\0\0\x18ftypheic" + b"\0" * 99))


def test_a_large_image_is_scaled_down_and_says_so():
    found = exchange.opened(sent(large__png=png(np.zeros((1500, 3000, 3), np.uint8))))
    assert "3000 x 1500" in found["note"] and sum(found["runs"][1::2]) == 1024 * 2048


def test_the_first_sample_of_a_larger_zip_is_opened():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, zipfile.ZipFile(io.BytesIO(exchange.zipped(drawn()))) as one:
        for sample in ("b", "a"):
            for name in one.namelist():
                archive.writestr(f"bench/object_control/{sample}/{name}", one.read(name))
    found = exchange.opened(sent(bench__zip=file.getvalue()))
    assert "2 images" in found["note"]
    same(drawn(), exchange.parsed(found))


def zip_of(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return file.getvalue()


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a__png": b""}, "empty"),
        ({"a__png": b"no picture"}, "not a readable picture"),
        ({"a__png": bomb(20_000, 100)}, "100 x 20000 pixels"),
        ({"a__png": bomb(60_000, 60_000)}, "pixels"),
        ({"a__png": png(drawn().image)[:2000]}, "not a readable picture"),
        ({"a__svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "not a readable picture"),
        ({"a__eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "not a readable picture"),
        ({"a__png": IMAGE, "b__png": IMAGE}, "expected an image"),
        ({"meta_data__json": ROUND}, "expected an image"),
        ({"a__png": IMAGE, "a_mask__png": png(np.zeros((9, 8), np.uint8)), "m__json": ROUND}, "9 x 8"),
        ({"a__png": IMAGE, "m__json": b"{"}, "m.json"),
        ({"a__png": IMAGE, "m__json": b'{"traj_key_points": [[[NaN, 1]]]}'}, "m.json"),
        ({"a__png": IMAGE, "m__json": b'{"traj_key_points": [[[90, 1]]]}'}, "outside"),
        ({"a__png": IMAGE, "m__json": json.dumps({"traj_key_points": [[[1, 1]] * 2000]}).encode()}, "2000 points"),
        ({"a__zip": b"PK\3\4 no zip"}, "not a readable zip"),
        ({"a__zip": zip_of(other__txt=b"x")}, "no first_frame.png"),
        ({"a__zip": zip_of(first_frame__png=b"\0" * 40 * 2**20)}, "at most 32 MB"),
        ({"a__zip": zip_of(first_frame__png=IMAGE)[:60]}, "not a readable zip"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(files, message):
    with pytest.raises(UserError, match=message) as caught:
        exchange.opened(sent(**files))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": "https://example.org/a.png"}, "image"),
        ({"image": "data:image/png;base64,&&&"}, "base64"),
        ({"image": None}, "image"),
        ({"runs": [0, 5]}, "runs"),
        ({"runs": [0, -1, 0, 2401]}, "runs"),
        ({"runs": [256, 2400]}, "runs"),
        ({"runs": [[1], 2]}, "runs"),
        ({"runs": [0, 2**80]}, "runs"),
        ({"runs": [1]}, "runs"),
        ({"meta": {}}, "at least one track"),
        ({"meta": {"traj_key_points": 5}}, "tracks"),
        ({"meta": {"traj_key_points": [5]}}, "drawing"),
        ({"meta": {"traj_key_points": [[[1, 1]]], "brush": [77]}}, "brush"),
        ({"meta": {"traj_key_points": [[[1, 1], [2, 2]]], "times": [[0.5, 0.4]]}}, "times"),
    ],
)
def test_drawings_that_cannot_be_used_are_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        exchange.parsed(exchange.shown(drawn()) | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [None, [], 7, "x", {}, {"files": 3}, {"files": [None]}, {"files": []}])
def test_requests_of_other_shapes_are_one_line(body):
    studio = Studio(Checkpoint(unloaded()))
    for function in (
        exchange.opened,
        lambda body: exchange.paths(body, 8),
        exchange.parsed,
        studio.control,
        studio.moving,
    ):
        with pytest.raises(UserError):
            function(body)


def test_paths_are_what_is_generated():
    inputs = drawn()
    body = {"width": 60, "height": 40, "fine": 4}
    body |= {"tracks": [t.tolist() for t in inputs.tracks], "times": [inputs.times[0].tolist(), None]}
    without = exchange.paths(body, 9)
    assert without["paths"][0] == exchange.paths(body | {"eases": [None, "in"]}, 9)["paths"][0]
    body |= {"tracks": [[[0, 0], [8, 0]]], "times": [None]}
    assert [x for x, _ in exchange.paths(body | {"eases": ["in"]}, 9)["paths"][0][::8]] == [0, 0.5, 2, 4.5, 8]
    body |= {"tracks": [t.tolist() for t in inputs.tracks], "times": [inputs.times[0].tolist(), None]}
    found = exchange.paths(body, 9)
    for path, expected in zip(found["paths"], inputs.paths(9), strict=True):
        assert np.allclose(np.array(path)[::4], expected, atol=1e-3) and len(path) == 33


@pytest.mark.parametrize(
    "field, value",
    [
        ("frames", 1), ("frames", 10**9), ("frames", 2.5), ("frames", True), ("fps", "8"), ("fps", float("nan")),
        ("seed", -1), ("seed", None), ("size", "9 x 9"), ("size", []),
    ],
)  # fmt: skip
def test_settings_out_of_range_name_themselves(field, value):
    good = {"frames": 8, "fps": 8, "size": "64 x 64"}
    maker = Checkpoint(unloaded())
    assert preview(good, maker).frames == 8
    with pytest.raises(UserError, match=field):
        preview(good | {field: value}, maker)


def test_a_photograph_comes_first_unless_the_model_never_saw_any():
    from lightning_modules.bases import SVD

    plain = SimpleNamespace(module=SimpleNamespace(base=SVD("embedded-sprites").build()), trained_size=(64, 64))
    assert exchange.first_examples(partial(unseen, plain)) == exchange.examples()
    first, *rest = exchange.first_examples(lambda picture: None)
    assert first["opens"] and rest == exchange.examples()
    inputs = exchange.parsed(first["drawing"])
    x, y = inputs.tracks[0][0].round().astype(int)
    assert inputs.size == (320, 512) and len(inputs.tracks) == 1 and inputs.brush[y, x]


def test_the_examples_are_drawings():
    for example in exchange.examples():
        inputs = exchange.parsed(example["drawing"])
        assert inputs.size == (64, 64) and len(inputs.tracks) == 1 and inputs.brush.any()
        x, y = inputs.tracks[0][0].round().astype(int)
        assert inputs.brush[y, x]
