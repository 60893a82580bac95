"""`remoco generate`: a picture and a folder, going on after a kill, and a line for each mistake."""

import io
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.strips import write_mp4
from conditions import RegionWise, motion_bucket
from conditions.camera import camera_tracks, preset_camera
from conditions.strokes import drawn_bucket
from datamodules.drawings import Drawing, write_drawing
from datamodules.drawings.backdrop import Backdrop
from datamodules.drawings.motion import SceneMotion, first_frames, scene_motion
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import render
from lightning_modules import MotionControlModule
from lightning_modules.config import Control, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco import generation as source
from remoco.common.errors import UserError
from remoco.common.videos.files import read_video
from remoco.generate import Motion, SamplingChanges, generate
from tests.support.commands import remoco
from tests.support.toy import Toy

FEW = ("--steps", "2", "--num-frames", "3")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder in the benchmark's layout with two samples of an object, its brush and a path."""
    root = tmp_path_factory.mktemp("bench")
    for number in (3, 5):
        scene = plain_scene([0, 2, number], [0, 2, number, 1], 8, 64, 64)
        centre = scene.layers[1].motion.centre[0]
        y, x = np.mgrid[:64, :64].astype(float)
        image = render(scene)[0].transpose(1, 2, 0)
        brush = scene.layers[1].covers(0, x, y).astype(np.uint8)
        inputs = Drawing(image, [np.stack([centre, (centre + 32) / 2])], brush)
        write_drawing(root / "object_control" / f"sprite-{number}", inputs)
    return root


@pytest.fixture
def written(monkeypatch) -> dict[str, np.ndarray]:
    """Name of the file -> frames that were written to it: a codec's threads are not the same every time."""
    found = {}
    write = source.write_mp4

    def kept(path, video, fps):
        found[path.name] = video
        write(path, video, fps)

    monkeypatch.setattr(source, "write_mp4", kept)
    return found


def test_a_picture_becomes_a_video_and_a_strip(bench, tmp_path, written):
    sample = bench / "object_control" / "sprite-3"
    files = ["--tracks", sample / "meta_data.json", "--brush", sample / "first_frame_mask.png"]
    out = tmp_path / "new" / "clip.mp4"
    assert remoco("generate", "embedded-sprites", sample / "first_frame.png", *files, "--out", out, *FEW) == 0
    assert remoco("generate", "embedded-sprites", sample, "--out", tmp_path / "same.mp4", *FEW) == 0
    video, fps = read_video(out)
    assert video.shape == (3, 64, 64, 3) and fps == 8
    assert read_video(out.with_name("clip-strip.mp4"))[0].shape[2] > 3 * 192
    assert np.array_equal(written["clip.mp4"], written["same.mp4"])


def test_without_out_it_says_before_the_work_what_it_writes_and_where(bench, tmp_path, capsys, monkeypatch):
    assert remoco("generate", "--help") == 0
    text = "".join(capsys.readouterr().out.split())  # words are broken at hyphens
    parts = ("NAME-strip.mp4 and NAME-strip.png", "Default: clip.mp4 in the working folder", "`generated` by default")
    for part in parts:
        assert part.replace(" ", "") in text
    sample = bench / "object_control" / "sprite-3"
    files = ["--tracks", sample / "meta_data.json", "--brush", sample / "first_frame_mask.png"]
    monkeypatch.chdir(tmp_path)
    said, sampled = [], MotionControlPipeline.__call__

    def heard(self, *arguments, **options):
        said.append(capsys.readouterr().out)
        return sampled(self, *arguments, **options)

    monkeypatch.setattr(MotionControlPipeline, "__call__", heard)
    for given, names in (
        ([sample / "first_frame.png", *files], ["clip.mp4", "clip-strip.mp4", "clip-strip.png"]),
        ([sample], ["generated/videos", "generated/strips"]),
    ):
        assert remoco("generate", "embedded-sprites", *given, *FEW) == 0
        line = f"{', '.join(names[:-1])} and {names[-1]}"
        assert said.pop().splitlines() == [f"without --out this writes {line} in {tmp_path}"]
        assert capsys.readouterr().out.splitlines() == [f"wrote {line}"]
        assert all((tmp_path / name).exists() for name in names)


def test_a_folder_goes_on_where_it_was_stopped(bench, tmp_path, capsys, monkeypatch):
    broken = bench / "object_control" / "broken"
    broken.mkdir()
    Image.new("RGB", (9, 9)).save(broken / "first_frame.png")
    out, calls = tmp_path / "out", []
    sampled = MotionControlPipeline.__call__

    def counted(self, *arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sampled(self, *arguments, **options)

    monkeypatch.setattr(MotionControlPipeline, "__call__", counted)
    command = ("generate", "embedded-sprites", bench, "--out", out, *FEW)
    assert remoco(*command) == 130
    first = out / "videos/object_control/sprite-3.mp4"
    before = first.read_bytes()
    assert not (out / "videos/object_control/sprite-5.mp4").exists()
    assert remoco(*command) == 1  # a sample was left out
    text = capsys.readouterr()
    assert "1 of 2 are there already" in text.out and "left out: " in text.err and "broken: neither" in text.err
    assert len(calls) == 3 and calls[1] == calls[2] != calls[0] and first.read_bytes() == before
    assert (out / "strips/object_control/sprite-5.mp4").is_file()
    assert remoco(*command) == 1 and len(calls) == 3
    assert remoco(*command, "--seed", "4") == 2 and len(calls) == 3
    assert "holds clips made with other seed" in capsys.readouterr().err
    broken.joinpath("first_frame.png").unlink()
    fresh = ("generate", "embedded-sprites", bench, "--out", tmp_path / "fresh")
    assert remoco(*fresh, "--steps", "0") == 2  # and is not what the folder holds from now on
    assert not (tmp_path / "fresh").exists()


@pytest.mark.slow
def test_edited_inputs_are_made_again(tmp_path, capsys, monkeypatch, written):
    """What moves, in inputs of one's own; each of its parts edited after its video was there."""
    image, made = np.full((64, 64, 3), 90, np.uint8), []
    sampled = MotionControlPipeline.__call__
    monkeypatch.setattr(
        MotionControlPipeline, "__call__", lambda *args, **options: made.append(1) or sampled(*args, **options)
    )
    poses = "1 0.9 1.2 0.5 0.5 0 0 1 0 0 {} 0 1 0 0 0 0 1 0\n"
    file = io.BytesIO()
    np.save(file, np.full((64, 64), 2.0, np.float32))
    posed = Backdrop(poses=(poses.format(0) + poses.format(-0.4)).encode(), depth=file.getvalue())
    track = [np.array([[20.0, 20.0], [40.0, 30.0]])]
    write_drawing(tmp_path / "in" / "pan", Drawing(image, [], backdrop=Backdrop({"pan": 0.2})))
    write_drawing(tmp_path / "in" / "posed", Drawing(image, track, backdrop=posed))
    write_drawing(tmp_path / "in" / "track", Drawing(image, track))
    command = ("generate", "embedded-sprites", tmp_path / "in", "--out", tmp_path / "out", *FEW)
    assert remoco(*command) == 0 and len(made) == 3 and remoco(*command) == 0 and len(made) == 3
    assert "3 of 3 are there already" in capsys.readouterr().out
    assert len({written[f"{name}.mp4"].tobytes() for name in ("pan", "posed", "track")}) == 3
    (tmp_path / "in" / "posed" / "poses.txt").write_text(poses.format(0) + poses.format(0.4))
    before = (tmp_path / "out" / "videos" / "pan.mp4").read_bytes()
    assert remoco(*command) == 0 and len(made) == 4
    said = capsys.readouterr().out
    assert "2 of 3 are there already" in said and "posed: its inputs have changed; made again" in said
    assert "pan: " not in said and (tmp_path / "out" / "videos" / "pan.mp4").read_bytes() == before
    write_drawing(tmp_path / "in" / "track", Drawing(image + 1, track))
    (tmp_path / "out" / "strips" / "pan.json").unlink()  # as after a kill between the files
    assert remoco(*command) == 0 and len(made) == 6 and remoco(*command) == 0 and len(made) == 6
    picture = tmp_path / "in" / "pan" / "first_frame.png"
    for name, given, flags in (
        ("own", picture.parent, ()),
        ("flag", picture, ("--camera", "pan:0.2")),
        ("over", picture.parent, ("--camera", "pan:-0.2")),
        ("other", picture, ("--camera", "pan:-0.2")),
    ):
        assert remoco("generate", "embedded-sprites", given, *flags, "--out", tmp_path / f"{name}.mp4", *FEW) == 0
    assert np.array_equal(written["own.mp4"], written["flag.mp4"])
    assert np.array_equal(written["over.mp4"], written["other.mp4"])
    assert not np.array_equal(written["own.mp4"], written["over.mp4"])


def test_tracks_of_a_tracker(tmp_path):
    Image.new("RGB", (64, 64), (90, 40, 10)).save(tmp_path / "image.png")
    np.save(tmp_path / "tracks.npy", np.linspace((20, 20), (40, 44), 5)[None])
    np.save(tmp_path / "visibility.npy", np.ones((1, 5), bool))
    assert remoco("generate", "embedded-sprites", tmp_path, "--out", tmp_path / "x.mp4", *FEW) == 0
    assert read_video(tmp_path / "x.mp4")[0].shape == (3, 64, 64, 3)


def test_cameras_and_driving_videos(bench, tmp_path, written):
    sample = bench / "object_control" / "sprite-3"
    image = sample / "first_frame.png"
    pose = "{} 0.9 1.2 0.5 0.5 0 0 1 0 0 {} 0 1 0 0 0 0 1 0"
    (tmp_path / "poses.txt").write_text("\n".join(["https://x", *(pose.format(i, -0.1 * i) for i in range(9))]))
    Image.fromarray(np.full((64, 64), 2000, np.uint16)).save(tmp_path / "depth.png")
    np.save(tmp_path / "depth.npy", np.full((64, 64), 2.0, np.float32))
    drawn = ["--tracks", sample / "meta_data.json", "--brush", sample / "first_frame_mask.png"]
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    video = np.stack([np.repeat(np.roll(ramp, 2 * i, 1)[..., None], 3, 2) for i in range(9)])
    write_mp4(tmp_path / "video.mp4", video, 8)
    ways = {
        "pan": ["--camera", "pan:0.2,zoom:1.2"],
        "object": ["--camera", "pan:0.2,zoom:1.2", *drawn],
        "png": ["--poses", tmp_path / "poses.txt", "--depth", tmp_path / "depth.png"],
        "npy": ["--poses", tmp_path / "poses.txt", "--depth", tmp_path / "depth.npy"],
        "driven": ["--driving", tmp_path / "video.mp4"],
    }
    for name, flags in ways.items():
        assert remoco("generate", "embedded-sprites", image, *flags, "--out", tmp_path / f"{name}.mp4", *FEW) == 0, name
    assert np.array_equal(written["png.mp4"], written["npy.mp4"])
    assert len({written[f"{name}.mp4"].tobytes() for name in ways}) == 4
    (tmp_path / "short.txt").write_text(pose.format(0, 0))
    (tmp_path / "wrong.txt").write_text("https://x\n1 2 3\n")
    (tmp_path / "skew.txt").write_text("\n".join([pose.format(0, 0).replace("1 0 0", "2 0 0", 1)] * 3))
    np.save(tmp_path / "other.npy", np.ones((9, 9)))
    np.save(tmp_path / "zero.npy", np.zeros((64, 64)))
    depth = f"--depth {tmp_path}/depth.npy"
    said_of = {
        "--camera pan": "expected pan:NUMBER",
        "--camera spin:3": "expected pan:NUMBER",
        "--camera pan:far": "pan: expected a number, got 'far'",
        "--camera zoom:0": "--camera: zoom: expected a number from 0.1 to 10",
        "--camera pan:0.1 --driving x.mp4": "--driving: expected either this or --camera, got both",
        f"--poses {tmp_path}/poses.txt": "--poses and --depth: expected both",
        "--driving nowhere.mp4": "--driving nowhere.mp4: no such file",
        f"--driving {image}": f"driving {image}: ends too early",
        f"--driving {tmp_path}/video.mp4 --tracker none": "--tracker none",
        f"--poses {tmp_path}/short.txt {depth}": "short.txt: expected the poses of at least 2 frames",
        f"--poses {tmp_path}/wrong.txt {depth}": "wrong.txt: line 2: expected 19 numbers",
        f"--poses {tmp_path}/skew.txt {depth}": "skew.txt: line 1: expected a rotation",
        f"--poses {tmp_path}/poses.txt --depth {tmp_path}/other.npy": "other.npy: 9 x 9, expected the size of",
        f"--poses {tmp_path}/poses.txt --depth {tmp_path}/zero.npy": "zero.npy: expected a depth above 0",
        f"--poses {tmp_path}/poses.txt --depth {image}": "expected grey values of 16 bits",
        "": "--tracks: expected tracks, or --brush, --camera, --poses or --driving",
    }
    for flags, said in said_of.items():
        with pytest.raises(UserError) as error:
            parsed = flags.split()
            motion = Motion(**{k[2:]: v for k, v in zip(parsed[::2], parsed[1::2], strict=True)})
            generate("embedded-sprites", str(image), motion, str(tmp_path / "x.mp4"), sampling=SamplingChanges(steps=1))
        assert said in str(error.value) and "\n" not in str(error.value), flags


def test_transparent_parts_show_the_background_in_pictures_and_driving_videos(tmp_path, written, capsys):
    rgba = np.full((64, 64, 4), (255, 0, 255, 0), np.uint8)
    rgba[16:48, 16:48] = (200, 30, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "layer.png")
    (tmp_path / "tracks.json").write_text(json.dumps({"traj_key_points": [[[32, 32], [40, 32]]]}))
    drawn = [tmp_path / "layer.png", "--tracks", tmp_path / "tracks.json"]
    for name, background, colour in (
        ("white", [], (255, 255, 255)),
        ("green", ["--background", "#00ff00"], (0, 255, 0)),
    ):
        flat = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.array(colour, np.uint8))
        Image.fromarray(flat.astype(np.uint8)).save(tmp_path / "flat.png")
        assert remoco("generate", "embedded-sprites", *drawn, *background, "--out", tmp_path / f"{name}.mp4", *FEW) == 0
        assert (
            remoco("generate", "embedded-sprites", tmp_path / "flat.png", *drawn[1:], "--out", tmp_path / "f.mp4", *FEW)
            == 0
        )
        assert np.array_equal(written[f"{name}.mp4"], written["f.mp4"])
    assert not np.array_equal(written["white.mp4"], written["green.mp4"])
    with av.open(str(tmp_path / "layer.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "argb"
        for shift in range(3):
            frame = av.VideoFrame.from_ndarray(np.roll(rgba, 4 * shift, 1), format="rgba").reformat(format="argb")
            frame.pts = shift
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    backdrop = Backdrop(driving=tmp_path / "layer.mov")
    motion = scene_motion(backdrop, lambda: lambda frames: frames, (64, 64), (0, 255, 0))
    shown = first_frames(motion.driving, 3, 8, 64, 64, motion.background)
    assert shown[1, :, 2, 2].tolist() == [0, 255, 0] and shown[1, :, 32, 32].tolist() == [200, 30, 30]
    for command in (["generate", "embedded-sprites", *drawn], ["page"]):
        assert remoco(*command, "--background", "no colour") == 2
        assert "--background is no colour, expected a colour as `white`" in capsys.readouterr().err


def test_a_brush_under_a_camera_counts_without_tracks_too():
    """What is brushed moves as it likes, the rest as the camera does."""
    image, brush = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    brush[:, :32] = 1
    motion, condition = SceneMotion({"pan": 0.2}), RegionWise(8)
    alone, brushed = (motion.control(condition, Drawing(image, [], mask), 4, 8.0, 1)[0] for mask in (None, brush))
    assert alone[:, :2, :, :32].any() and not brushed[:, :2, :, :32].any() and brushed[:, 2].all()
    assert torch.equal(alone[..., 32:], brushed[..., 32:])


def test_the_motion_bucket_of_what_is_drawn():
    """Of a camera's dense flow, whatever regions a seed keeps of it, with the drawn object's way in its place."""
    image, brush = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    brush[8:24, 8:24] = 1
    track = [np.array([[16.0, 16.0], [28.0, 16.0]])]
    condition, camera = RegionWise(8), SceneMotion({"pan": 0.25})
    seen = {seed: camera.control(condition, Drawing(image, [], None), 5, 8.0, seed)[1]() for seed in range(4)}
    flow = camera_tracks(preset_camera(5, 64, 64, pan=0.25), 64, 64)[0]
    assert len(set(seen.values())) == 1 and seen[0] > 4
    assert seen[0] == pytest.approx(motion_bucket(flow[None].float()).item(), rel=1e-6)
    way = np.linspace(0, 12, 5).mean()
    drawn = SceneMotion().control(condition, Drawing(image, track, brush), 5, 8.0, 0)[1]()
    assert drawn == pytest.approx(way * 16**2 / 64**2, rel=1e-6)
    both = camera.control(condition, Drawing(image, track, brush), 5, 8.0, 0)[1]()
    rest = seen[0] * (1 - 16**2 / 64**2)
    screen = np.abs(np.linspace(0, 12, 5) + flow[:, 0, 16, 16].numpy()).mean() * 16**2 / 64**2
    assert both == pytest.approx(rest + screen, rel=0.02)
    held = camera.control(condition, Drawing(image, [], brush, brush_ids=[]), 5, 8.0, 0)[1]()
    assert held == pytest.approx(rest, rel=0.02)  # where it is on the screen
    far = torch.zeros(2, 2, 64, 64)
    far[1, 0] = 1e6
    assert drawn_bucket(far) == pytest.approx((2 * 64 - 31.5) / 2)  # mean of where each pixel starts


def bad(tmp_path) -> dict[str, tuple[list, str]]:
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    Image.new("L", (63, 64)).save(tmp_path / "small.png")
    Image.new("RGB", (20000, 2)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no")
    (tmp_path / "empty.json").write_text("")
    for name, point in (("far", [70, 5]), ("nan", [float("nan"), 5]), ("good", [5, 5])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"traj_key_points": [[point]]}))
    (tmp_path / "other.ckpt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    image, good = tmp_path / "image.png", ["--tracks", tmp_path / "good.json"]
    return {
        "outside": ([image, "--tracks", tmp_path / "far.json"], "far.json: traj_key_points[0] starts at (70, 5)"),
        "nan": ([image, "--tracks", tmp_path / "nan.json"], "nan.json: traj_key_points[0]: expected finite"),
        "empty": ([image, "--tracks", tmp_path / "empty.json"], "empty.json: the file is empty"),
        "mask": ([image, *good, "--brush", tmp_path / "small.png"], "small.png: 64 x 63, expected the size"),
        "wide": ([tmp_path / "wide.png"], "wide.png: 2 x 20000 pixels, expected at most 8192"),
        "text": ([tmp_path / "text.png"], "text.png: not a readable picture"),
        "none": ([tmp_path / "nowhere.png"], "nowhere.png: no such file"),
        "folder": ([tmp_path / "folder"], "folder: no inputs, expected folders with first_frame.png"),
        "checkpoint": ([image, *good], f"error: checkpoint {tmp_path / 'other.ckpt'}: not a readable"),
        "out": ([image, *good, "--out", tmp_path / "clip.avi"], "clip.avi: expected the name of an .mp4"),
        "height": ([image, *good, "--height", "100"], "--height is 100, expected a multiple of 16"),
        "size": ([image, *good, "--width", "64000"], "--width is 64000, expected a multiple of 16 up to 8192"),
        "steps": ([image, *good, "--steps", "0"], "--steps: Expected a whole number of 1 to 10000"),
        "frames": ([image, *good, "--num-frames", "1000000"], "--num-frames: Expected a whole number of 2 to 1024"),
        "not writable": ([image, *good, "--out", tmp_path / "text.png" / "x.mp4"], "x.mp4: cannot be written"),
        "device": ([image, *good, "--device", "nothing"], "--device nothing"),
        "no device": ([image, *good, "--device", "meta"], "--device meta"),
    }


def test_mistakes_are_one_line(tmp_path, capsys):
    for kind, (arguments, said) in bad(tmp_path).items():
        checkpoint = tmp_path / "other.ckpt" if kind == "checkpoint" else "embedded-sprites"
        out = [] if "--out" in arguments else ["--out", tmp_path / "clip.mp4"]
        assert remoco("generate", checkpoint, *arguments, *out) == 2, kind
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in line and line.startswith("remoco generate: error: "), (kind, line)
        assert not (tmp_path / "clip.mp4").exists()


def test_a_base_without_a_motion_bucket(bench, tmp_path, monkeypatch, capsys):
    """It gets none; one that is asked for is refused before the folder notes it."""
    module = MotionControlModule(Toy(3), RegionWise(8), Control(["modulation"], None), sampling=Sampling(2))
    module.configure_model()
    monkeypatch.setattr(source, "load_pipeline", lambda *arguments: MotionControlPipeline(module, {"num_frames": 3}))
    command = ("generate", "toy.ckpt", bench, "--out", tmp_path / "out")
    assert remoco(*command, "--motion-bucket-id", "drawing") == 2 and not (tmp_path / "out").exists()
    assert "--motion-bucket-id: motion_bucket_id: unknown, the inputs of this base are none" in capsys.readouterr().err
    assert remoco(*command) == 0 and remoco(*command) == 0
    assert "2 of 2 are there already" in capsys.readouterr().out
