"""What moves behind the objects, in the inputs' own layout: written, read, told apart, refused in a line."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from callbacks.strips import write_mp4
from datamodules.bench import read_pair
from datamodules.drawings import Drawing, Framing, drawing_from_json, read_drawing, write_drawing
from datamodules.drawings.backdrop import Backdrop, video_kind
from remoco.common.errors import BadClip, UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
POSES = b"1 0.9 1.2 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0\n" * 2


def depth() -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((40, 60), 2.0, np.float32))
    return file.getvalue()


def png_depth() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60), 2000, np.uint16)).save(file, "PNG")
    return file.getvalue()


def video(folder) -> bytes:
    write_mp4(folder / "moving.mp4", np.stack([np.roll(IMAGE, i, 1) for i in range(4)]), 8)
    return (folder / "moving.mp4").read_bytes()


def test_what_is_written_is_read(tmp_path):
    backdrops = {
        "presets": (Backdrop({"pan": 0.25, "zoom": 1.5}), {"camera": {"pan": 0.25, "zoom": 1.5}}),
        "npy": (
            Backdrop(poses=POSES, depth=depth()),
            {"camera": {"poses": "poses.txt", "depth": "depth.npy"}},
        ),
        "png": (
            Backdrop(poses=POSES, depth=png_depth()),
            {"camera": {"poses": "poses.txt", "depth": "depth.png"}},
        ),
        "driving": (Backdrop(driving=video(tmp_path)), {"driving": "driving.mp4"}),
    }
    prints = set()
    for name, (backdrop, said) in backdrops.items():
        inputs = Drawing(IMAGE, [], backdrop=backdrop)
        write_drawing(tmp_path / name, inputs)
        meta = json.loads((tmp_path / name / "meta_data.json").read_text())
        assert meta == {"traj_key_points": []} | said, name
        again = read_drawing(tmp_path / name)
        assert again.backdrop is not None and again.tracks == []
        files = {key: (tmp_path / name / key).read_bytes() for key in again.backdrop.files()}
        assert files == backdrop.files() and again.backdrop.presets == backdrop.presets
        assert again.framed(Framing.of(again.size, (64, 64))).backdrop == again.backdrop
        again.brush = None  # a written mask is an empty one where there was none
        assert again.fingerprint() == inputs.fingerprint()
        prints.add(inputs.fingerprint())
        single = read_drawing(tmp_path / name / "first_frame.png", tmp_path / name / "meta_data.json")
        assert single.fingerprint() == inputs.fingerprint()
    assert len(prints | {Drawing(IMAGE, []).fingerprint()}) == 5


def test_the_fingerprint_is_of_every_part():
    brush = np.zeros((40, 60), np.uint8)
    brush[3, 4] = 1
    track, times = np.array([[5.0, 6.0], [9.0, 9.0]]), [np.array([0.0, 0.5])]
    made = [
        Drawing(IMAGE, [track]), Drawing(255 - IMAGE, [track]), Drawing(IMAGE, [track + 0.25]),
        Drawing(IMAGE, [track] * 2),
        Drawing(IMAGE, [track], brush), Drawing(IMAGE, [track], 1 - brush), Drawing(IMAGE, [track], brush, times),
        Drawing(IMAGE, [track], brush, None, [1]), Drawing(IMAGE, [track], backdrop=Backdrop({"pan": 0.1})),
        Drawing(IMAGE, [track], backdrop=Backdrop(driving=b"1")),
        Drawing(IMAGE, [track], backdrop=Backdrop(driving=b"2")),
    ]  # fmt: skip
    assert len({inputs.fingerprint() for inputs in made}) == len(made)
    assert Drawing(IMAGE.copy(), [track.copy()]).fingerprint() == made[0].fingerprint()


@pytest.mark.parametrize(
    "said, message",
    [
        ({"camera": {"spin": 3}}, "tracks: camera: 'spin': expected pan, tilt, zoom, roll"),
        ({"camera": {"pan": "far"}}, "tracks: camera: pan: expected a number, got 'far'"),
        ({"camera": {"pan": True}}, "camera: pan: expected a number"),
        ({"camera": {"zoom": 0}}, "tracks: camera: zoom: expected a number from 0.1 to 10"),
        ({"camera": {"roll": 10**90}}, "tracks: camera: roll"),
        ({"camera": []}, "tracks: camera: expected {"),
        ({"camera": {}}, "tracks: camera: expected {"),
        ({"camera": {"poses": "poses.txt"}}, "camera: expected both poses and depth"),
        ({"camera": {"poses": "poses.txt", "depth": "d.npy", "pan": 1}}, "camera: expected both poses and depth"),
        ({"camera": {"poses": "../poses.txt", "depth": "d.npy"}}, "poses: expected the name of a file beside it"),
        ({"camera": {"poses": "poses.txt", "depth": "d.npy"}}, "depth: d.npy: no such file beside it"),
        ({"driving": "/etc/passwd"}, "driving: expected the name of a file beside it"),
        ({"driving": 5}, "driving: expected the name of a file beside it"),
        ({"driving": ".."}, "driving: "),
        ({"driving": "v.mp4", "camera": {"pan": 1}}, "driving: expected either a camera or a driving video, got both"),
        ({}, "expected at least one track"),
    ],
)
def test_what_it_cannot_be_is_a_line(said, message):
    with pytest.raises(UserError) as error:
        drawing_from_json(json.dumps({"traj_key_points": []} | said), IMAGE, beside={"poses.txt": POSES})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_only_videos_are_videos(tmp_path):
    assert video_kind(video(tmp_path)) == "mp4"
    assert video_kind(b"\x1a\x45\xdf\xa3rest") == "webm" and video_kind(b"RIFF....AVI LIST") == "avi"
    for data in (b"", b"#EXTM3U\nhttp://127.0.0.1/x.ts", b"ffconcat version 1.0\nfile '/etc/passwd'", IMAGE.tobytes()):
        assert video_kind(data) is None


def test_a_benchmark_has_none(tmp_path):
    write_drawing(tmp_path / "object_control" / "a", Drawing(IMAGE, [], backdrop=Backdrop({"pan": 0.1})))
    with pytest.raises(BadClip, match="a camera or a driving video, expected tracks and a brush alone"):
        read_pair(tmp_path, "object_control/a")
