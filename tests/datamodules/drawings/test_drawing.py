"""Drawings as files: both layouts, what is written is read, and one line for whatever is wrong with a file."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from datamodules.drawings import Drawing, Framing, drawing_from_json, find_drawings, read_drawing, write_drawing
from datamodules.drawings.files import colour
from remoco.common.errors import UserError
from remoco.common.picture_files import read_image, read_mask
from tests.support.drawings import npy

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
CURVE = np.array([[5.0, 6.0], [10.5, 20.0], [30.0, 21.0]])


def png(array, mode=None) -> bytes:
    return saved(array, "PNG", mode)


def saved(array, kind, mode=None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, kind)
    return file.getvalue()


def test_what_is_written_is_read(tmp_path):
    brush = np.zeros((40, 60), np.uint8)
    brush[2:9, 3:8], brush[20:30, 30:50], brush[35:, :9] = 1, 2, 7
    times = [np.array([0, 0.1, 0.7]), None]
    inputs = Drawing(IMAGE, [CURVE, np.array([[40.0, 25.0]])], brush, times, [1, 2])
    write_drawing(tmp_path / "new" / "sample", inputs)
    again = read_drawing(tmp_path / "new" / "sample")
    assert np.array_equal(again.image, IMAGE) and np.array_equal(again.brush, brush)
    assert [track.tolist() for track in again.tracks] == [track.tolist() for track in inputs.tracks]
    assert again.times[0].tolist() == [0, 0.1, 0.7] and again.times[1] is None and again.brush_ids == [1, 2]
    masks = again.masks()
    assert masks.shape == (3, 40, 60) and [mask.sum() for mask in masks] == [35, 200, 45]
    assert find_drawings(tmp_path / "new") == {"sample": tmp_path / "new" / "sample"}
    seen = np.asarray(Image.open(tmp_path / "new/sample/first_frame_mask.png").convert("RGB"))
    assert tuple(seen[3, 4]) == colour(1) and tuple(seen[25, 40]) == colour(2)
    # as any other reader of the benchmark sees it
    other = np.asarray(Image.open(tmp_path / "new/sample/first_frame_mask.png").convert("L")) > 0
    assert np.array_equal(other, brush > 0)
    plain = Drawing(IMAGE, [CURVE], brush)
    write_drawing(tmp_path / "plain", plain)
    assert json.loads((tmp_path / "plain/meta_data.json").read_text()) == {"traj_key_points": [CURVE.tolist()]}
    assert np.array_equal(read_drawing(tmp_path / "plain").masks(), brush > 0)


def test_speed_curves():
    inputs = Drawing(IMAGE, [CURVE[[0, 2]], CURVE[[0, 2]], CURVE[:1]], times=[np.array([0.25, 0.75]), None, None])
    curved, even, click = inputs.paths(9)
    assert np.array_equal(curved[:3], CURVE[[0, 0, 0]]) and np.array_equal(curved[6:], CURVE[[2, 2, 2]])
    assert np.allclose(curved[4], even[4]) and not np.allclose(curved[3], even[3])
    assert np.array_equal(click, CURVE[[0] * 9])
    strokes = inputs.strokes(9)
    assert np.array_equal(strokes[0], curved) and np.array_equal(strokes[1], CURVE[[0, 2]])
    assert Drawing(IMAGE, [CURVE], times=[None]).times is None


def test_an_ease_is_the_speed_along_the_way_and_adds_no_point(tmp_path):
    """The part of the way that is covered at the part t of the clip: t^2, 1 - (1 - t)^2 and (1 - cos(pi t)) / 2."""
    line, bent = CURVE[[0, 2]], np.array([[5.0, 5.0], [5.0, 15.0], [35.0, 15.0]])
    eases = ["in", "out", "in and out", None, "in", "in"]
    write_drawing(tmp_path, Drawing(IMAGE, [line] * 4 + [bent, CURVE[:1]], eases=eases))
    written = json.loads((tmp_path / "meta_data.json").read_text())
    assert written["ease"] == eases and written["traj_key_points"][:4] == [line.tolist()] * 4 and "times" not in written
    inputs, t = read_drawing(tmp_path), np.linspace(0, 1, 9)
    covered = [t**2, 1 - (1 - t) ** 2, (1 - np.cos(np.pi * t)) / 2, t]
    paths, strokes = inputs.paths(9), inputs.strokes(9)
    for path, part in zip(paths, covered):
        assert np.allclose(path, line[0] + part[:, None] * (line[1] - line[0]), atol=1e-12)
    assert [len(stroke) for stroke in strokes] == [9, 9, 9, 2, 9, 9] and np.array_equal(strokes[4], paths[4])
    assert np.allclose(paths[4][4], bent[1])  # a quarter of 40 pixels at half of the clip
    assert np.array_equal(paths[5], CURVE[[0] * 9])
    larger = inputs.framed(Framing.of(inputs.size, (80, 120)))
    assert larger.eases == eases and np.allclose(larger.paths(9)[0] + 0.5, (paths[0] + 0.5) * 2)
    assert inputs.fingerprint() != Drawing(IMAGE, inputs.tracks).fingerprint()
    assert Drawing(IMAGE, [line], eases=[None]).eases is None
    near = np.array([[5.0, 6.0], [5 + 1e-200, 6.0], [30.0, 21.0], [30.0, 21 + 4e-15]])
    assert np.allclose(Drawing(IMAGE, [near], eases=["in"]).paths(9)[0], paths[0])
    same_spot = Drawing(IMAGE, [line[[0, 0, 1]], line[[0, 0]]], eases=["in", "out"]).paths(9)
    assert np.allclose(same_spot[0], paths[0], atol=1e-3) and np.array_equal(same_spot[1], line[[0] * 9])


def test_arrays_of_a_tracker(tmp_path):
    """Hidden frames are bridged, also where the tracker left NaN; a point hidden in frame 1 is left out."""
    points = np.stack([np.linspace((4, 5), (44, 25), 9)] * 3).astype(np.float32)
    seen = np.ones((3, 9), dtype=bool)
    seen[0, 3:6], seen[1, 0] = False, False
    points[0, 3:6] = np.nan
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    np.save(tmp_path / "tracks.npy", points)
    np.save(tmp_path / "visibility.npy", seen)
    inputs = read_drawing(tmp_path)
    assert len(inputs.tracks) == 2 and inputs.brush is None and inputs.masks() is None
    assert np.allclose(inputs.paths(9), points[2]) and inputs.times[1] is None
    assert np.array_equal(inputs.strokes(9)[1], points[2])
    (tmp_path / "visibility.npy").unlink()
    with pytest.raises(UserError, match=r"tracks.npy: track 0: expected finite"):
        read_drawing(tmp_path)
    np.save(tmp_path / "tracks.npy", np.asfortranarray(points[1:]))
    assert np.allclose(read_drawing(tmp_path / "image.png", tmp_path / "tracks.npy").tracks[1], points[2])


def test_pictures_of_many_kinds(tmp_path):
    assert np.array_equal(read_image(png(IMAGE)), IMAGE)
    turned = Image.fromarray(IMAGE)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    turned.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "phone.png"), np.rot90(IMAGE, -1))
    grey = np.arange(2400, dtype=np.uint8).reshape(40, 60)
    assert np.array_equal(read_image(png(grey)), np.repeat(grey[..., None], 3, 2))
    painted = np.dstack([np.zeros((40, 60, 3), np.uint8), grey])
    assert np.array_equal(read_mask(png(painted)), grey)  # a layer of a painting program
    opaque = np.dstack([np.repeat(grey[..., None], 3, 2), np.full((40, 60), 255, np.uint8)])
    assert np.array_equal(read_mask(png(opaque)), grey)


def header_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels and holds almost none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


IMAGES = {
    "nothing": (b"", "the file is empty"),
    "no image": (b"GIF? no", "not a readable picture"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable picture"),
    "wide": (png(np.zeros((2, 20000, 3), np.uint8)), "2 x 20000 pixels, expected at most 8192 a side"),
    "bomb": (header_of(60000, 60000), "more pixels than"),
    "smaller bomb": (header_of(8000, 9000), "9000 x 8000 pixels"),
    "half": (png(IMAGE)[:2000], "not a readable picture"),
    "float": (saved(np.zeros((40, 60), np.float32), "TIFF"), "a picture of numbers of 32 bits, expected RGB, grey"),
}
MASKS = {
    "other size": (png(np.zeros((41, 60), np.uint8)), "41 x 60, expected the size of the image, 40 x 60"),
    "no mask": (b"x", "not a readable picture"),
}
POINTS = [[[5, 6], [10, 20]]]
TEXTS = {
    "empty": (b"", "the file is empty"),
    "no json": (b"{", "expected {"),
    "binary": (bytes(range(128, 256)), "expected {"),
    "deep": (b"[" * 100_000, "expected {"),
    "list": (b"[]", "expected {"),
    "other": ({"points": POINTS}, "expected {"),
    "text": ({"traj_key_points": "many"}, "traj_key_points: expected a list"),
    "null": ({"traj_key_points": None}, "traj_key_points: expected a list"),
    "none": ({"traj_key_points": []}, "at least one track"),
    "no point": ({"traj_key_points": [[]]}, "traj_key_points[0]: expected at least one point"),
    "nan": ({"traj_key_points": [[[5, 6], [float("nan"), 3]]]}, "traj_key_points[0]: expected finite"),
    "infinite": ({"traj_key_points": [[[float("inf"), 6]]]}, "finite"),
    "null number": ({"traj_key_points": [[[None, 6]]]}, "expected (n, 2) numbers"),
    "huge": ({"traj_key_points": [[[5, 6], [1e30, 3]]]}, "within 100000 pixels"),
    "integer": ({"traj_key_points": [[[5, 6], [10**400, 3]]]}, "a number of more than 100 digits"),
    "three": ({"traj_key_points": [[[1, 2, 3]]]}, "shape (n, 2)"),
    "flat": ({"traj_key_points": [[1, 2]]}, "shape (n, 2)"),
    "ragged": ({"traj_key_points": [[[1, 2], [3]]]}, "of other kinds"),
    "words": ({"traj_key_points": [[["a", "b"]]]}, "of other kinds"),
    "objects": ({"traj_key_points": [[{"x": 1, "y": 2}]]}, "of other kinds"),
    "right": ({"traj_key_points": [[[60, 5]]]}, "starts at (60, 5), outside the 40 x 60 image"),
    "above": ({"traj_key_points": [[[5, 5]], [[5, -0.01]]]}, "traj_key_points[1] starts at (5, -0.01), outside"),
    "many": ({"traj_key_points": [[[5, 6]]] * 10_001}, "at most 10000 tracks"),
    "times short": ({"traj_key_points": POINTS, "times": []}, "times: expected one entry for each of 1 tracks"),
    "times text": ({"traj_key_points": POINTS, "times": "slow"}, "times: expected a list"),
    "times count": ({"traj_key_points": POINTS, "times": [[0]]}, "times[0]: expected one number for each of the 2"),
    "times back": ({"traj_key_points": POINTS, "times": [[1, 0]]}, "times[0]: expected growing numbers"),
    "times same": ({"traj_key_points": POINTS, "times": [[0.5, 0.5]]}, "times[0]: expected growing numbers"),
    "times beyond": ({"traj_key_points": POINTS, "times": [[0, 2]]}, "times[0]: expected growing numbers from 0 to 1"),
    "times nan": ({"traj_key_points": POINTS, "times": [[0, float("nan")]]}, "times[0]: expected growing"),
    "times words": ({"traj_key_points": POINTS, "times": [["a", "b"]]}, "times[0]: expected numbers"),
    "ease short": ({"traj_key_points": POINTS, "ease": []}, "ease: expected one entry for each of 1 tracks"),
    "ease text": ({"traj_key_points": POINTS, "ease": "in"}, "ease: expected a list"),
    "ease word": (
        {"traj_key_points": POINTS, "ease": ["fast"]},
        "ease[0]: expected null or one of in, out, in and out",
    ),
    "ease list": ({"traj_key_points": POINTS, "ease": [["in"]]}, "ease[0]: expected null or one of"),
    "ease true": ({"traj_key_points": POINTS, "ease": [True]}, "ease[0]: expected null or one of"),
    "ease and times": ({"traj_key_points": POINTS, "times": [[0, 1]], "ease": ["in"]}, "ease[0]: expected null for"),
    "brush short": ({"traj_key_points": POINTS, "brush": [1, 2]}, "brush: expected one entry"),
    "brush none": ({"traj_key_points": POINTS, "brush": [9]}, "brush[0]: expected null or a value of the mask"),
    "brush zero": ({"traj_key_points": POINTS, "brush": [0]}, "brush[0]: expected null or a value of the mask"),
    "brush colour": ({"traj_key_points": POINTS, "brush": ["red"]}, "brush[0]"),
    "brush true": ({"traj_key_points": POINTS, "brush": [True]}, "brush[0]"),
    "brush one": ({"traj_key_points": POINTS, "brush": 1}, "brush: expected a list"),
}
TRACKS = np.full((2, 5, 2), 7.0)
ARRAYS = {
    "empty": (b"", "the file is empty"),
    "text": (b"1 2 3", "expected an .npy file"),
    "pickle": (npy(np.array([[[None, 1]]], dtype=object)), "got 1 x 1 x 2 of what is no number"),
    "flat": (npy(TRACKS[0]), "as CoTracker and Wan-Move have them, got 5 x 2"),
    "three": (npy(np.zeros((2, 5, 3))), "expected shape (N, L, 2)"),
    "none": (npy(np.zeros((0, 5, 2))), "as CoTracker and Wan-Move have them, got 0 x 5 x 2"),
    "words": (npy(np.full((2, 5, 2), "a")), "numbers"),
    "half": (npy(TRACKS)[:-8], "expected 160 bytes"),
    "bomb": (npy(TRACKS, **{"(2, 5, 2)": "(9**9, 5, 2)"}), "tracks.npy"),
    "larger": (npy(TRACKS, **{"(2, 5, 2)": "(2, 9, 2)"}), "expected 288 bytes"),
    "negative": (npy(TRACKS, **{"(2, 5, 2)": "(-2,5,2)"}), "tracks.npy"),
    "nan": (npy(np.full((2, 5, 2), np.nan)), "track 0: expected finite"),
    "outside": (npy(np.full((2, 5, 2), 50.0)), "outside the 40 x 60 image"),
    "many": (npy(np.zeros((10_001, 1, 2))), "at most 10000 tracks"),
}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("kind", IMAGES)
def test_bad_images(tmp_path, kind):
    data, said = IMAGES[kind]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_drawing(path)
    assert said in one_line(error) and str(path) in str(error.value)
    if data:
        with pytest.raises(UserError, match="upload 3: "):
            read_image(data, "upload 3")


@pytest.mark.parametrize("kind", MASKS)
def test_bad_masks(tmp_path, kind):
    write_drawing(tmp_path, Drawing(IMAGE, [CURVE]))
    (tmp_path / "first_frame_mask.png").write_bytes(MASKS[kind][0])
    with pytest.raises(UserError) as error:
        read_drawing(tmp_path)
    assert MASKS[kind][1] in one_line(error) and "first_frame_mask.png" in str(error.value)


@pytest.mark.parametrize("kind", TEXTS)
def test_bad_texts(tmp_path, kind):
    content, said = TEXTS[kind]
    path = tmp_path / "tracks.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (tmp_path / "image.png").write_bytes(png(IMAGE))
    (tmp_path / "mask.png").write_bytes(png(np.ones((40, 60), np.uint8)))
    with pytest.raises(UserError) as error:
        read_drawing(tmp_path / "image.png", path, tmp_path / "mask.png")
    assert said in one_line(error) and str(path) in str(error.value)


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_arrays(tmp_path, kind):
    (tmp_path / "image.png").write_bytes(png(IMAGE))
    (tmp_path / "tracks.npy").write_bytes(ARRAYS[kind][0])
    with pytest.raises(UserError) as error:
        read_drawing(tmp_path)
    assert ARRAYS[kind][1] in one_line(error) and "tracks.npy" in str(error.value)


def test_bad_visibility_and_folders(tmp_path):
    (tmp_path / "image.png").write_bytes(png(IMAGE))
    np.save(tmp_path / "tracks.npy", TRACKS)
    for array, said in ((np.ones((2, 4)), r"expected shape \(2, 5\) as tracks.npy"), (np.zeros((2, 5)), "no point is")):
        np.save(tmp_path / "visibility.npy", array)
        with pytest.raises(UserError, match=f"visibility.npy: {said}"):
            read_drawing(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither first_frame.png nor image.png"):
        read_drawing(tmp_path / "empty")
    with pytest.raises(UserError, match="no inputs, expected"):
        find_drawings(tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_drawing(tmp_path / "nowhere")


def test_two_hundred_bad_requests(tmp_path):
    """Sound inputs with bytes changed, cut or swapped at random: read, or one line; nothing else, nothing written."""
    brush = np.zeros((40, 60), np.uint8)
    brush[:20], brush[20:] = 1, 2
    write_drawing(
        tmp_path / "good", Drawing(IMAGE, [CURVE, CURVE[:1]], brush, [np.array([0, 0.2, 1]), None], [1, None])
    )
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays/image.png").write_bytes(png(IMAGE))
    (tmp_path / "arrays/tracks.npy").write_bytes(npy(TRACKS))
    (tmp_path / "arrays/visibility.npy").write_bytes(npy(np.ones((2, 5), dtype=bool)))
    rng = np.random.default_rng(1)
    refused = 0
    for index in range(200):
        folder = tmp_path / ("good", "arrays")[index % 2]
        files = sorted(folder.iterdir())
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        data = bytearray(before)
        match index // 2 % 4:
            case 0:
                del data[rng.integers(len(data)) :]
            case 1:
                for at in rng.integers(0, len(data), 4):
                    data[at] = rng.integers(256)
            case 2:
                data = bytearray(files[rng.integers(len(files))].read_bytes())
            case 3:
                at = rng.integers(len(data))
                data[at:at] = rng.bytes(8)
        path.write_bytes(data)
        try:
            read_drawing(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        path.write_bytes(before)
    assert 80 < refused < 200
    assert read_drawing(tmp_path / "good").brush_ids == [1, None] and len(read_drawing(tmp_path / "arrays").tracks) == 2


def test_of_a_page_without_files():
    inputs = drawing_from_json(json.dumps({"traj_key_points": POINTS}), IMAGE, png(np.full((40, 60), 9, np.uint8)))
    assert inputs.masks().all() and inputs.json() == {"traj_key_points": [[[5.0, 6.0], [10.0, 20.0]]]}
    for wrong, said in (
        (dict(image=IMAGE[..., 0]), "image is"),
        (dict(image=np.zeros((9, 9000, 3), np.uint8)), "image: 9 x 9000 pixels"),
        (dict(tracks=[CURVE, CURVE + 90]), "track 1 starts at"),
        (dict(brush=np.zeros((4, 4))), "brush: 4 x 4, expected the size of the image, 40 x 60"),
        (dict(brush_ids=[3]), r"brush_ids\[0\]"),
    ):
        with pytest.raises(UserError, match=said):
            Drawing(**{"image": IMAGE, "tracks": [CURVE], **wrong})
