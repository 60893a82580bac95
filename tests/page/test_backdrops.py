"""What moves the scene, on the page: files in and out, what is shown of it, and that it is what is generated."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.strips import write_mp4
from conditions import RegionWise
from datamodules.drawings import Drawing, Framing, read_drawing
from datamodules.drawings.backdrop import Backdrop
from datamodules.drawings.motion import scene_motion
from remoco.common.errors import UserError
from remoco.page import backdrops, exchange
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint
from tests.support.page import png, sent, unloaded

HEIGHT, WIDTH = 48, 72
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ASKED = {"frames": 5, "fps": 8, "size": "64 x 64", "fine": 4}
POSE = "{} 0.9 1.2 0.5 0.5 0 0 1 0 0 {} 0 1 0 0 0 0 1 0"
POSES = "\n".join(["https://x", *(POSE.format(i, -0.1 * i) for i in range(5))]).encode()


def npy(depth):
    file = io.BytesIO()
    np.save(file, depth)
    return file.getvalue()


DEPTH = npy(np.full((HEIGHT, WIDTH), 2.0, np.float32))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A texture that moves 2 pixels to the right in a frame."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 40, 3), dtype=np.uint8)).resize(
        (160, 48), Image.Resampling.BICUBIC
    )
    path = tmp_path_factory.mktemp("video") / "moving.mp4"
    write_mp4(path, np.stack([np.asarray(coarse)[:, 80 - 2 * i : 152 - 2 * i] for i in range(12)]), 8)
    return path.read_bytes()


def drawn(backdrop, tracks=(((20.0, 20.0), (40.0, 30.0)),), brush=None):
    return Drawing(IMAGE, [np.array(track) for track in tracks], brush, backdrop=backdrop)


def kinds(video):
    return {
        "presets": Backdrop({"pan": 0.25, "zoom": 1.5}),
        "poses": Backdrop(poses=POSES, depth=DEPTH),
        "driving": Backdrop(driving=video),
    }


@pytest.mark.parametrize("kind", ["presets", "poses", "driving"])
@pytest.mark.parametrize("tracks", [(), (((20.0, 20.0), (40.0, 30.0)),)])
def test_the_zip_opens_again_and_generates_the_same(kind, tracks, video, tmp_path):
    """On the page, and by `remoco generate` from the folder: one control tensor."""
    inputs = drawn(kinds(video)[kind], tracks)
    drawing = json.loads(json.dumps(exchange.shown(inputs)))
    data = exchange.zipped(exchange.parsed(drawing))
    again = exchange.opened(sent(inputs__zip=data))
    assert again["meta"] == drawing["meta"] and again["files"] == drawing["files"] and "note" not in again
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
        files = {name.replace(".", "__"): archive.read(name) for name in archive.namelist()}
    assert exchange.opened(sent(**files)) == again
    condition, controls, buckets = RegionWise(), [], []
    for made in (exchange.parsed(again), read_drawing(tmp_path)):
        framing = Framing.of(made.size, (64, 64))
        motion = scene_motion(made.backdrop, backdrops.follow, made.size).framed(framing)
        control, bucket = motion.control(condition, made.framed(framing), 5, 8, seed=3)
        controls.append(control)
        buckets.append(bucket())
        if not tracks and kind == "driving":  # a brush alone says where, whichever track it would be of
            made.brush = np.zeros((HEIGHT, WIDTH), np.uint8)
            made.brush[:, 36:], made.brush_ids = 2, []
            part, less = motion.control(condition, made.framed(framing), 5, 8, seed=3)
            assert not part[..., :32].any() and part[..., 32:].any() and 0.3 < less() / buckets[-1] < 0.7
    assert buckets[0] == buckets[1] > 1
    assert torch.equal(*controls) and controls[0][1:, :2].abs().max() > 1


def moving(body):
    return Studio(Checkpoint(unloaded())).moving(body)


def test_points_and_tracks_are_where_the_camera_sees_them():
    """In closed form: the middle goes by a quarter of the frame's width; a plane at depth 2 moves as one."""
    middle = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    found = moving(ASKED | {"drawing": exchange.shown(drawn(Backdrop({"pan": 0.25}), [[middle]]))})
    (seen,) = found["tracks"]
    assert len(seen) == 17 and np.allclose(seen[0], middle, atol=0.01)
    assert np.allclose(seen[-1], (middle[0] - 0.25 * HEIGHT, middle[1]), atol=0.02)  # the frame is a square
    assert len(found["points"]) == 9 * 9 and all(len(path) == 17 for path in found["points"])
    turned = moving(ASKED | {"drawing": exchange.shown(drawn(Backdrop({"roll": 90}), [[middle]]))})
    assert np.allclose(turned["tracks"][0], middle, atol=0.01)

    drawing = exchange.shown(drawn(Backdrop(poses=POSES, depth=DEPTH), [[(20.0, 20.0), (30.0, 20.0)]]))
    found = moving(ASKED | {"drawing": drawing})
    shift = 0.9 * WIDTH * -0.4 / 2  # focal length, way, depth
    for path in np.array(found["points"], dtype=float):
        assert np.allclose(path[-1] - path[0], (shift, 0), atol=0.03)
    assert np.allclose(found["tracks"][0][-1], (30 + shift, 20), atol=0.03)


def test_a_video_moves_the_points_and_a_brush_alone_says_where(video):
    brush = np.zeros((HEIGHT, WIDTH), np.uint8)
    brush[:, : WIDTH // 2] = 1
    for fit, shown in (("crop", HEIGHT), ("pad", WIDTH), ("stretch", WIDTH)):
        drawing = exchange.shown(drawn(Backdrop(driving=video)))
        found = moving(ASKED | {"drawing": drawing, "fit": fit})
        paths = [path for path in found["points"] if None not in path]
        ways = np.array([np.subtract(path[-1], path[0]) for path in paths])
        assert np.allclose(np.median(ways, axis=0), (8, 0), atol=0.3), fit  # 2 pixels a frame of video and image
        places = np.array([path[0][0] for path in paths])
        assert abs(np.ptp(places) / shown - 0.75) < 0.2, fit
    counts = {}
    for name, tracks, painted in (("all", (), None), ("brushed", (), brush), ("both", [[(9.0, 9.0)]], brush)):
        drawing = exchange.shown(drawn(Backdrop(driving=video), tracks, painted))
        found = moving(ASKED | {"drawing": drawing})
        assert found["tracks"] is None
        counts[name] = [path for path in found["points"] if None not in path]
    assert 0.3 < len(counts["brushed"]) / len(counts["all"]) < 0.7 and len(counts["both"]) > len(counts["brushed"])
    assert all(path[0][0] < WIDTH / 2 for path in counts["brushed"])


def test_without_a_backdrop_nothing_moves():
    assert moving(ASKED | {"drawing": exchange.shown(drawn(None))}) == {"points": [], "tracks": None}


def attach(kind, name, data, size=(HEIGHT, WIDTH)):
    body = {"kind": kind, "name": name, "data": base64.b64encode(data).decode(), "height": size[0], "width": size[1]}
    return exchange.attached(body)


def test_a_file_is_attached_as_the_inputs_hold_it(video):
    found = attach("poses", "way.txt", POSES)
    assert found["name"] == "poses.txt" and base64.b64decode(found["data"]) == POSES and found["about"] == "5 poses"
    found = attach("driving", "holiday.MOV", video)
    assert found["name"] == "driving.mp4" and base64.b64decode(found["data"]) == video
    assert found["about"] == "1.5 s"
    millimetres = png(np.full((HEIGHT, WIDTH), 2000, np.uint16))
    for data in (millimetres, npy(np.full((2 * HEIGHT, 2 * WIDTH), 2.0)), DEPTH):
        found = attach("depth", "depth.any", data)
        depth = np.load(io.BytesIO(base64.b64decode(found["data"])))
        assert found["name"] == "depth.npy" and depth.shape == (HEIGHT, WIDTH) and (depth == 2).all()


def test_a_depth_is_scaled_with_its_image():
    large = Drawing(
        np.zeros((1500, 3000, 3), np.uint8),
        [],
        backdrop=Backdrop(poses=POSES, depth=npy(np.ones((1500, 3000), np.float32))),
    )
    found = exchange.opened(sent(inputs__zip=exchange.zipped(large)))
    inputs = exchange.parsed(found)
    assert inputs.size == (1024, 2048) and scene_motion(inputs.backdrop, backdrops.follow, inputs.size).depth.min() == 1


@pytest.mark.parametrize(
    "kind, name, data, message",
    [
        ("poses", "a.txt", b"1 2 3\n", "a.txt: line 1: expected 19 numbers"),
        ("poses", "a.txt", b"\xff\xfe", "a.txt: expected text"),
        ("poses", "a.txt", b"1\n" * 2**20, "a.txt: expected at most 1 MB"),
        ("depth", "a.npy", b"no depth", "a.npy: expected an .npy file"),
        ("depth", "a.npy", npy(np.ones((9, 9))), "a.npy: 9 x 9, expected the size of the image, 48 x 72"),
        ("depth", "a.npy", npy(np.zeros((HEIGHT, WIDTH))), "a.npy: expected a depth above 0"),
        ("depth", "a.npy", npy(np.array({}, dtype=object)), "a.npy: expected"),
        ("depth", "a.png", png(IMAGE), "a.png: a picture of mode RGB, expected grey values of 16 bits"),
        ("driving", "a.mp4", b"no video", "a.mp4: expected a video"),
        ("driving", "a.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "a.mp4: expected a video"),
        ("driving", "a.mp4", b"\0\0\0\x20ftypisom" + b"\0" * 99, "driving: does not decode"),
        ("driving", "a.mp4", b"\0\0\0\x20ftypisom" + b"\0" * 18 * 2**20, "a.mp4: 18 MB, expected at most 17"),
        ("nothing", "a.txt", b"x", "kind: expected poses, depth or driving"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_attached_are_one_line(kind, name, data, message):
    with pytest.raises(UserError) as caught:
        attach(kind, name, data)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "meta, files, message",
    [
        ({"camera": {"spin": 1}}, {}, "drawing: camera: 'spin'"),
        ({"camera": {"pan": 1e9}}, {}, "drawing: camera: pan: expected a number from -1 to 1"),
        ({"camera": 5}, {}, "drawing: camera"),
        ({"driving": "driving.mp4"}, {}, "driving.mp4: no such file beside it"),
        ({"driving": "/etc/passwd"}, {}, "expected the name of a file beside it"),
        ({"driving": "a.mp4"}, {"a.mp4": "&"}, "a.mp4: not base64"),
        ({"driving": "a.mp4"}, {"a.mp4": 5}, "a.mp4: expected a text"),
        ({"driving": "a.mp4"}, {"a.mp4": "AAAA"}, "driving: expected a video"),
        ({"driving": "a.mp4"}, [1], "files: expected an object"),
        ({"driving": "a.mp4"}, {str(i): "AAAA" for i in range(9)}, "files: expected an object of at most 2"),
    ],
)
def test_drawings_whose_scene_cannot_move_are_one_line(meta, files, message):
    drawing = exchange.shown(drawn(None))
    drawing = drawing | {"meta": drawing["meta"] | meta, "files": files}
    for ask in (exchange.parsed, lambda body: moving(ASKED | {"drawing": body})):
        with pytest.raises(UserError) as caught:
            ask(drawing)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_video_that_ends_too_early_is_one_line(video):
    drawing = exchange.shown(drawn(Backdrop(driving=video)))
    with pytest.raises(UserError, match="driving: ends too early: 64 frames at 8 fps"):
        moving(ASKED | {"drawing": drawing, "frames": 64})
