"""Tracks of other tools: each one's conventions, and files that are not what they seem, in one line."""

import io
import json
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.drawings import drawing_from_json, read_drawing
from remoco.common.errors import UserError
from remoco.page import exchange
from tests.support.commands import remoco
from tests.support.page import png, sent
from tests.support.places import REPO

SIZE = (80, 120)
FEW = ("--steps", "2", "--num-frames", "3")
IMAGE = np.zeros((*SIZE, 3), np.uint8)
EASY = np.linspace(0, 1, 121)
LINE = np.stack([10 + 90 * EASY**2, 20 + 30 * EASY], -1)  # (121, 2), faster towards the end
BACK = np.stack([100 - 60 * EASY, 60 + 5 * np.sin(6 * EASY)], -1)


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def ati_array(*tracks, seen=None):
    """(N, 121, 1, 3) as ATI's editor stores it: times 8, the rest of a shorter track zeros."""
    array = np.zeros((len(tracks), 121, 1, 3), np.float32)
    for out, track in zip(array[:, :, 0], tracks):
        out[: len(track), :2], out[: len(track), 2] = track, 1
    return 8 * array if seen is None else 8 * np.concatenate([array[..., :2], seen[..., None, None]], -1)


def ati(*tracks, dtype=np.float32):
    return saved(npz(array=ati_array(*tracks).astype(dtype)))


@pytest.fixture
def drawn(tmp_path):
    """A drawing of files beside an image, the first of them the tracks."""
    Image.fromarray(IMAGE).save(tmp_path / "image.png")

    def read(**files):
        names = [name.replace("__", ".") for name in files]
        for name, data in zip(names, files.values()):
            (tmp_path / name).write_bytes(data)
        return read_drawing(tmp_path / "image.png", tmp_path / names[0])

    return read


def close(drawing, *tracks, frames=121, within=1e-5):
    assert len(drawing.tracks) == len(tracks)
    for path, track in zip(drawing.paths(frames), tracks):
        np.testing.assert_allclose(path, track, rtol=0, atol=within)


# ATI


def test_ati(drawn):
    """121 moments over the clip, pixels of the image; a frame between two moments is between their places."""
    drawing = drawn(a__pth=ati(LINE, BACK))
    close(drawing, LINE, BACK)
    close(drawing, LINE[::8], BACK[::8], frames=16)


def test_ati_of_whole_numbers_and_in_the_other_order(drawn):
    """Older files hold uint16, an eighth of a pixel each; (121, N, 1, 3) is what ATI's network is given."""
    close(drawn(a__pth=ati(LINE, dtype=np.uint16)), LINE, within=1 / 8)
    close(drawn(b__pth=saved(npz(array=ati_array(LINE, BACK).transpose(1, 0, 2, 3)))), LINE, BACK)


def test_ati_where_points_are_unseen(drawn):
    """A short track stays at its end; what is unseen in frame 1 starts nowhere; what is unseen between is bridged, and
    may be no number there."""
    (track,) = drawn(a__pth=ati(LINE[:61])).paths(121)
    np.testing.assert_allclose(track[:61], LINE[:61], atol=1e-5)
    np.testing.assert_allclose(track[61:], np.tile(LINE[60], (60, 1)), atol=1e-5)
    seen = np.ones((3, 121))
    seen[1, 0], seen[2, 40:50] = 0, 0
    array = ati_array(LINE, BACK, LINE, seen=seen)
    array[2, 40:50, 0, :2] = np.nan
    close(drawn(b__pth=saved(npz(array=array))), LINE, LINE, within=0.1)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (Harmful.path,)


def pickled_npz():
    return npz(array=np.array([Harmful(), Harmful()], dtype=object))


def bomb(names=("array.npy",), size=1 << 31):
    """An .npz of 2 MB that unpacks to 2 GB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=True) as entry:
                for _ in range(size >> 24):
                    entry.write(bytes(1 << 24))
    return file.getvalue()


ATI_BAD = {
    "a harmful object": (lambda: saved(Harmful()), "posix.mkdir.*nothing of it was run"),
    "a harmful array": (lambda: saved(pickled_npz()), "array: expected .*no number"),
    "a bare pickle": (lambda: pickle.dumps(npz(array=LINE)), "which torch.save wrote as a zip"),
    "a tensor": (lambda: saved(torch.ones(3)), "expected ATI's tracks, the bytes of an .npz"),
    "numbers": (lambda: saved({"array": 5}), "expected ATI's tracks, the bytes of an .npz"),
    "other bytes": (lambda: saved(b"bytes"), "expected ATI's tracks, the bytes of an .npz"),
    "a zip": (lambda: npz(array=LINE), "which torch.save wrote"),
    "another name": (lambda: saved(npz(tracks=LINE)), "expected array.npy in ATI's tracks, got tracks.npy"),
    "another length": (lambda: saved(npz(array=np.ones((2, 81, 1, 3)))), r"array: expected \(N, 121, 1, 3\)"),
    "two columns": (lambda: saved(npz(array=np.ones((2, 121, 1, 2)))), r"array: expected \(N, 121, 1, 3\)"),
    "three axes": (lambda: saved(npz(array=np.ones((2, 121, 3)))), "array: expected .*got 2 x 121 x 3"),
    "nothing seen": (lambda: saved(npz(array=ati_array(LINE) * 0)), "no point is visible in the first frame"),
    "not a number": (lambda: ati(LINE * np.nan), "track 0: expected finite points"),
    "infinite": (lambda: ati(LINE * np.inf), "track 0: expected finite points"),
    "far away": (lambda: ati(LINE, 1e9 * LINE), "track 1: expected points within"),
    "outside": (lambda: ati(LINE + 500), r"track 0 starts at \(510, 520\), outside the 80 x 120 image"),
    "too many": (lambda: saved(npz(array=np.ones((10_001, 121, 1, 3), np.uint8))), "at most 10000 tracks, got 10001"),
    "cut short": (lambda: ati(LINE)[:-40], "not a readable zip"),
    "an inner zip cut short": (lambda: saved(npz(array=ati_array(LINE))[:-40]), "not a readable zip"),
    "empty": (lambda: b"", "the file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATI_BAD)
def test_a_pth_that_is_none_is_one_line_and_nothing_of_it_is_run(drawn, tmp_path, kind):
    Harmful.path = str(tmp_path / "harmed")
    make, expected = ATI_BAD[kind]
    with pytest.raises(UserError, match=expected) as error:
        drawn(a__pth=make())
    assert "a.pth" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["a__npz", "a__pth"])
def test_a_bomb_takes_little_memory(drawn, name):
    data = bomb(("array.npy", "tracks.npy"), 1 << 28)
    data = saved(data) if name == "a__pth" else data
    tracemalloc.start()
    with pytest.raises(UserError, match="expected at most 64 MB in all"):
        drawn(**{name: data})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


# Wan-Move and CoTracker


def batch(*tracks):
    """(1, L, N, 2) float32."""
    return np.stack(tracks, 1)[None].astype(np.float32)


def test_wan_move(drawn):
    """NAME_tracks.npy and NAME_visibility.npy, in pixels of the image."""
    seen = np.ones((1, 81, 2), bool)
    seen[0, 50:, 0] = False
    tracks = npy(batch(LINE[:81], BACK[:81]))
    other = npy(np.zeros((2, 81), bool))
    first, second = drawn(x_tracks__npy=tracks, x_visibility__npy=npy(seen), visibility__npy=other).paths(81)
    np.testing.assert_allclose(second, BACK[:81], atol=1e-5)
    np.testing.assert_allclose(first[:50], LINE[:50], atol=1e-5)
    np.testing.assert_allclose(first[50:], np.tile(LINE[49], (31, 1)), atol=1e-5)


def test_cotracker(drawn):
    """pred_tracks and pred_visibility as its predictor returns them: (1, L, N, 2), and bool, or its 0 to 1."""
    tracks = batch(LINE, BACK, LINE)
    sure = np.ones((1, 121, 3), np.float32) * 0.95
    sure[:, 0, 2] = 0.85
    close(drawn(a__npz=npz(pred_tracks=tracks, pred_visibility=sure)), LINE, BACK)
    close(drawn(b__npz=npz(pred_tracks=tracks, pred_visibility=sure[..., None] > 0.9)), LINE, BACK)
    close(drawn(c__npz=npz(pred_tracks=tracks[0])), LINE, BACK, LINE)
    close(drawn(pred_tracks__npy=npy(tracks), pred_visibility__npy=npy(sure > 0.9)), LINE, BACK)


def test_three_axes_are_tracks_first(drawn):
    """As a folder of inputs has them: what was read before is read alike."""
    tracks, seen = np.stack([LINE, BACK]), np.array([[1] * 121, [0] + [1] * 120], np.uint8)
    close(drawn(tracks__npy=npy(tracks), visibility__npy=npy(seen)), LINE)
    close(drawn(a__npz=npz(tracks=tracks, visibles=seen)), LINE)


ARRAYS_BAD = {
    "no tracks": ({"a__npz": npz(points=LINE)}, "a.npz: expected pred_tracks or tracks in it, got points"),
    "a batch of two": ({"a__npy": npy(np.ones((2, 5, 3, 2)))}, "a.npy: holds 2 clips of a batch, expected 1"),
    "five axes": ({"a__npy": npy(np.ones((1, 1, 5, 3, 2)))}, "got 1 x 1 x 5 x 3 x 2"),
    "three columns": ({"a__npy": npy(np.ones((1, 5, 3, 3)))}, "expected shape .*x and y in pixels, got"),
    "other visibility": (
        {"a__npz": npz(pred_tracks=batch(LINE), pred_visibility=np.ones((1, 120, 1)))},
        r"a.npz: pred_visibility: expected shape \(121, 1\) as a.npz: pred_tracks, got \(120, 1\)",
    ),
    "a pickle": ({"a__npz": npz(tracks=np.array([{}], dtype=object))}, "a.npz: tracks: expected .*no number"),
    "texts": ({"a__npy": npy(np.array([[["a", "b"]]]))}, "a.npy: expected .*no number"),
    "not a number": ({"a__npz": npz(pred_tracks=batch(LINE * np.nan))}, "a.npz: track 0: expected finite points"),
    "empty": ({"a__npy": npy(np.zeros((1, 0, 3, 2)))}, "a.npy: expected"),
    "an npy": ({"a__npz": npy(batch(LINE))}, "a.npz: not a readable zip"),
    "an npz": ({"a__npy": npz(tracks=LINE)}, "a.npy: expected an .npy file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARRAYS_BAD)
def test_arrays_that_are_no_tracks_are_one_line(drawn, kind):
    files, expected = ARRAYS_BAD[kind]
    with pytest.raises(UserError, match=expected) as error:
        drawn(**files)
    assert "\n" not in str(error.value)


# KJNodes


def points(track):
    return [{"x": float(x), "y": float(y)} for x, y in track]


@pytest.mark.parametrize("text", [json.dumps, repr])
def test_kjnodes_coordinates(text):
    """A place for each frame: one list of points, or one for each spline; also as Python prints them."""
    for entries, tracks in ((points(LINE), [LINE]), ([points(LINE), points(BACK)], [LINE, BACK])):
        close(drawing_from_json(text(entries), IMAGE), *tracks)
    close(drawing_from_json(text([points(LINE), points(BACK[:1])]).encode(), IMAGE), LINE, np.tile(BACK[0], (121, 1)))


def test_kjnodes_points_store():
    """Splines with control points: passed at one speed, whatever their distances; a single point stays."""
    spline = {"points": points([[10, 10], [20, 10], [20, 10], [60, 10]]), "color": "#1f77b4", "name": "Spline 1"}
    single = {"points": points([[30, 40]]), "isSinglePoint": True}
    drawing = drawing_from_json(json.dumps([spline, single]), IMAGE)
    close(drawing, np.stack([np.linspace(10, 60, 11), np.full(11, 10)], -1), np.tile([30, 40], (11, 1)), frames=11)


KJ_BAD = {
    "[]": 'expected {"traj_key_points"',
    "[5]": "spline 0: expected points .* got 5",
    "[[]]": "spline 0: expected a list of",
    "[[[1, 2]]]": "spline 0: expected points .* got a list of 2",
    '[{"x": 1}]': "spline 0: expected points .* got a mapping of 1",
    '[{"points": 5}]': "spline 0: expected a list of .* got 5",
    '[{"points": [{"x": "1", "y": 2}]}]': "spline 0: expected ",
    '[{"x": true, "y": 2}]': r"traj_key_points\[0\]: expected ",
    '[{"x": NaN, "y": 2}]': r"traj_key_points\[0\]: expected finite points",
    '[{"points": [{"x": Infinity, "y": 2}]}]': "spline 0: expected finite points",
    '[{"x": 1e300, "y": 2}, {"x": 0, "y": 0}]': "expected points within",
    '[{"x": 500, "y": 2}]': r"starts at \(500, 2\), outside",
    "[[{'x': 1, 'y': 2}], [{'x': 1}]]": "spline 1: expected points",
    '[{"points": [{"x": 1, "y": 2}]}, [{"x": 1, "y": 2}]]': "spline 0: expected",
    "[": 'expected {"traj_key_points"',
}  # fmt: skip


@pytest.mark.parametrize("text", KJ_BAD)
def test_splines_that_are_none_are_one_line(text):
    with pytest.raises(UserError, match=KJ_BAD[text]) as error:
        drawing_from_json(text, IMAGE, name="a.json")
    assert str(error.value).startswith("a.json: ") and "\n" not in str(error.value)


# The page, and the command


def page_tracks(**files):
    found = exchange.opened(sent(image__png=png(IMAGE), **files))
    return found["meta"], found.get("note", "")


def test_the_page_opens_them_with_a_picture():
    for files in (
        {"a__pth": ati(LINE)},
        {"a__npz": npz(pred_tracks=batch(LINE))},
        {
            "a_tracks__npy": npy(batch(LINE, BACK)),
            "a_visibility__npy": npy(np.arange(2)[None, None].repeat(121, 1) < 1),
        },
        {"a__json": json.dumps([points(LINE)]).encode()},
    ):
        meta, note = page_tracks(**files)
        np.testing.assert_allclose(meta["traj_key_points"], [LINE], atol=0.01)
        assert not note


def test_the_page_takes_fewer_points_and_says_so():
    """1000 points are what it holds: those kept lie on the same paths at their times."""
    tracks = [LINE + [index / 2, 0] for index in range(12)]
    meta, note = page_tracks(a__npz=npz(pred_tracks=batch(*tracks)))
    assert note == "The tracks had 1452 points; here they have 996 of them."
    drawing = drawing_from_json(json.dumps(meta), IMAGE)
    close(drawing, *tracks, within=0.1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a__pth": ati(LINE), "b__npz": npz(tracks=LINE[None])}, "expected an image, or "),
        ({"visibility__npy": npy(np.ones((1, 5)))}, "expected an image, or "),
        ({"a__pth": b"PK\3\4"}, "a.pth: not a readable zip"),
        ({"a__npz": bomb(("tracks.npy",), 1 << 27)}, "a.npz: tracks.npy: expected at most 64 MB"),
        ({"a__npz": npz(tracks=np.tile(LINE, (600, 1, 1)))}, "tracks: 1200 points, expected at most 1000 on the page"),
    ],
)
def test_what_the_page_cannot_open_is_one_line(files, expected):
    with pytest.raises(UserError, match=expected):
        page_tracks(**files)


def test_the_documents_commands(tmp_path, monkeypatch):
    """Each line of docs/inference.md that gives another tool's tracks, with the small model."""
    text = (REPO / "docs/inference.md").read_text("utf-8").split("## Tracks of other tools")[1].split("\n## ")[0]
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("remoco generate")]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("image.png")
    files = {
        "ati.pth": ati(LINE), "clip_tracks.npy": npy(batch(LINE)), "cotracker.npz": npz(pred_tracks=batch(LINE)),
        "splines.json": json.dumps(points(LINE)).encode(),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert [line[line.index("--tracks") + 1] for line in lines] == list(files)
    for index, line in enumerate(lines):
        assert line[:3] == ["remoco", "generate", "embedded"]
        assert remoco("generate", "embedded-sprites", *line[3:], *FEW, "--out", f"{index}.mp4") == 0
        assert (tmp_path / f"{index}.mp4").stat().st_size > 500
