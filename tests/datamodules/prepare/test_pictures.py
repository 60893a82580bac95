"""Numbered pictures and stills as sources: which pictures become frames, and that the camera's flow is exact."""

import numpy as np
import pytest
from PIL import Image

from conditions.camera import preset_camera
from datamodules.prepare import clips, starts, stills
from datamodules.prepare.settings import Settings
from datamodules.prepare.sources import videos_in
from datamodules.prepare.video import encode_clip
from remoco.common.errors import BadClip, UserError
from remoco.common.videos import decode
from tests.support.commands import prepare as run
from tests.support.places import REPO
from tests.support.prepared import metas, report
from tests.support.videos import number_of, numbered, write_video

SIZE = {"height": 48, "width": 80}
SMALL = ["--frames", 4, "--height", 48, "--width", 80, "--workers", 1]


def write_frames(folder, numbers, name="{:05d}.png", **size):
    folder.mkdir(parents=True, exist_ok=True)
    for index, number in enumerate(numbers):
        Image.fromarray(numbered(index, **size)).save(folder / name.format(number))


def frames_of(folder, start=0.0, rate=None):
    """Which pictures a clip takes, by the number that each shows."""
    (video,) = videos_in(str(folder), None, Settings(frames=4, **SIZE), rate)
    return [number_of(frame.transpose(1, 2, 0)) for frame in clip_of(video, start).frames]


def clip_of(video, start=0.0, count=4, fps=8.0):
    return clips.read_clip(video.source(), start, count, fps, **SIZE)


# Numbered pictures


def test_each_picture_is_a_frame(tmp_path):
    write_frames(tmp_path / "bear", range(7))
    assert frames_of(tmp_path) == [0, 1, 2, 3] and frames_of(tmp_path, 3 / 8) == [3, 4, 5, 6]


def test_pixels_are_those_of_the_files(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    for number in range(4):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (video,) = videos_in(str(tmp_path))
    assert (clip_of(video).frames == image.transpose(2, 0, 1)).all()


def test_the_rate_of_the_pictures(tmp_path):
    """24 pictures a second taken at 8 are every third."""
    write_frames(tmp_path / "bear", range(12))
    assert frames_of(tmp_path, rate=24.0) == [0, 3, 6, 9]


def test_numbers_count_and_may_grow_by_any_step(tmp_path):
    """2 comes before 10, and YouTube-VOS numbers every fifth picture of its videos."""
    write_frames(tmp_path / "a", range(1, 13), "frame{}.png")
    assert frames_of(tmp_path, 8 / 8) == [8, 9, 10, 11]
    write_frames(tmp_path / "b" / "c", range(0, 40, 5))
    assert frames_of(tmp_path / "b", 1 / 8) == [1, 2, 3, 4]


def test_each_row_of_a_folder_is_a_video(tmp_path):
    write_frames(tmp_path / "a", range(4), "left_{:03d}.png")
    write_frames(tmp_path / "a", range(4), "right_{:03d}.jpg")
    write_frames(tmp_path / "b.v2", range(4))
    (tmp_path / "b.v2.txt").write_text("a text")
    Image.fromarray(numbered(0)).save(tmp_path / "cover.png")
    Image.fromarray(numbered(0)).save(tmp_path / "a" / "alone_1.png")
    found = {video.name: video.caption for video in videos_in(str(tmp_path))}
    assert found == {"a/left_*.png": "", "a/right_*.jpg": "", "b.v2/*.png": "a text"}


def test_pictures_beside_videos_are_not_taken(tmp_path):
    """Thumbnails, masks: a folder with a video gives its videos alone, as ever."""
    write_video(tmp_path / "a.mp4")
    write_frames(tmp_path / "thumbs", range(4))
    assert [video.name for video in videos_in(str(tmp_path))] == ["a.mp4"]


def test_damaged_and_missing_pictures_cost_the_clips_that_take_them(tmp_path):
    write_frames(tmp_path / "a", [*range(5), *range(8, 14)])
    (tmp_path / "a" / "00002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.fromarray(numbered(1, 64, 80)).save(tmp_path / "a" / "00013.png")
    (video,) = videos_in(str(tmp_path))
    for start in (0, 2 / 8, 3 / 8, 4 / 8, 7 / 8, 10 / 8):
        with pytest.raises(clips.Damaged):
            clip_of(video, start)
    assert [number_of(f.transpose(1, 2, 0)) for f in clip_of(video, 1.0).frames] == [5, 6, 7, 8]
    parts = starts.find_parts(video.source())
    assert [round(first * 8) for first, _ in parts] == [0, 3, 8] and decode.video_seconds(video.source()) == 14 / 8


def test_hostile_numbers_end(tmp_path):
    write_frames(tmp_path / "a", [0, 1, 2, 3, 999_999_999])
    Image.fromarray(numbered(9)).save(tmp_path / "a" / f"{'9' * 60}.png")
    videos = videos_in(str(tmp_path))
    assert [video.name for video in videos] == ["a/*.png"] and len(list(decode.pictures(videos[0].source()))) == 7


def test_another_rate_is_another_set(tmp_path, capsys):
    write_frames(tmp_path / "a", range(24))
    assert run(tmp_path, tmp_path / "out", "--tracker", "dis", *SMALL, "--frame-rate", 0) == 2
    assert "--frame-rate" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "out", "--tracker", "dis", *SMALL, "--frame-rate", 24) == 0
    assert run(tmp_path, tmp_path / "out", "--tracker", "dis", *SMALL) == 2
    assert "the videos have changed" in capsys.readouterr().err


def lines():
    """The commands of docs/data.md, by what stands before SHARDS."""
    text = (REPO / "docs/data.md").read_text("utf-8").splitlines()
    words = [line.split("#")[0].split() for line in text if line.startswith("remoco prepare ")]
    return {each[2]: each[2:] for each in words}


def test_the_documents_commands(tmp_path, monkeypatch):
    """FRAMES and STILLS of docs/data.md, at a small size: clips, and what is no picture is a line of the report."""
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "FRAMES" / "bear", range(12))
    write_frames(tmp_path / "FRAMES" / "short", range(2))
    assert run(*lines()["FRAMES"], *SMALL) == 0
    assert [meta["source"] for meta in metas(tmp_path / "SHARDS")] == [{"name": "bear/*.png", "start": 0.5}]
    assert report(tmp_path / "SHARDS")["short/*.png"]["bad"][0]["reason"].startswith("lasts 0.25 s, a clip needs")
    still = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (tmp_path / "STILLS").mkdir()
    Image.fromarray(still).save(tmp_path / "STILLS" / "a.png")
    (tmp_path / "STILLS" / "a.txt").write_text("noise")
    (tmp_path / "STILLS" / "b.jpg").write_bytes(b"<html>")
    (tmp_path / "SHARDS").rename(tmp_path / "before")
    assert run(*lines()["STILLS"], *SMALL) == 0
    (meta,) = metas(tmp_path / "SHARDS")
    assert meta["tracker"] == {"name": "camera", "version": "1"} and meta["source"]["name"] == "a.png"
    assert "picture: not a readable picture" in report(tmp_path / "SHARDS")["b.jpg"]["bad"][0]["reason"]


# Stills


def smooth(height, width):
    """(height, width, 3) uint8 of long waves, whose values between pixels are known in closed form."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return np.stack([waves(x, y, phase) for phase in range(3)], -1).round().astype(np.uint8)


def waves(x, y, phase):
    return 127.5 + 60 * np.sin(x / 17 + phase) + 55 * np.cos(y / 23 - x / 61 + phase)


def test_the_flow_of_a_still_is_exact():
    """Where frame 1's pixel is visible in frame t, the picture there is frame 1's, for all six degrees at once."""
    still = smooth(480, 700)
    camera = preset_camera(5, 96, 128, pan=0.1, tilt=-0.08, zoom=0.9, roll=6)
    frames = stills.render(still, camera, 96, 128).astype(np.float64)
    y, x = np.mgrid[:96, :128]
    for index in range(1, 5):
        points, _ = camera.seen(index, np.stack([x, y], -1).astype(np.float64), np.ones((96, 128)))
        u, v = points[..., 0], points[..., 1]
        inside = (u >= 0) & (u < 127) & (v >= 0) & (v < 95)
        there = bilinear(frames[index], u.clip(0, 126.999), v.clip(0, 94.999))
        error = np.abs(there - frames[0])[:, inside]
        assert inside.mean() > 0.7 and error.mean() < 1 and error.max() < 5
        still_there = np.abs(frames[index] - frames[0])[:, inside].mean()
        assert still_there > 5 * error.mean()


def bilinear(image, u, v):
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - left, v - top
    rows = [(1 - a) * image[:, top + down, left] + a * image[:, top + down, left + 1] for down in (0, 1)]
    return (1 - b) * rows[0] + b * rows[1]


def test_a_still_camera_shows_the_middle_of_the_still():
    """Without motion frame 1 is the largest crop of its shape: pixel (x, y) is at scale * (x + 0.5) of the still."""
    still = smooth(240, 400)
    frames = stills.render(still, preset_camera(2, 96, 128), 96, 128)
    y, x = np.mgrid[:96, :128]
    expected = [waves((x + 0.5) * 2.5 - 0.5 + (400 - 320) / 2, (y + 0.5) * 2.5 - 0.5, phase) for phase in range(3)]
    assert np.abs(frames[0] - np.stack(expected)).max() < 3 and (frames[1] == frames[0]).all()


@pytest.mark.parametrize("shift", [{"pan": 0.2}, {"tilt": 0.3}, {"zoom": 0.5}, {"roll": 20}])
def test_no_frame_shows_what_is_beyond_the_still(shift):
    """Over a still of one colour with a border of another, just the outermost pixels may mix."""
    still = np.full((200, 300, 3), 200, np.uint8)
    still[0], still[-1], still[:, 0], still[:, -1] = 0, 0, 0, 0
    frames = stills.render(still, preset_camera(4, 64, 96, **shift), 64, 96)
    assert (frames[:, :, 2:-2, 2:-2] > 190).all()
    assert (frames < 190).any()  # it does reach the border


def test_cameras_differ_and_are_drawn_from_the_name():
    drawn = [stills.camera_over(name, 4, 48, 80) for name in ("a.png", "b.png", "a.png")]
    assert np.array_equal(drawn[0].poses, drawn[2].poses) and not np.allclose(drawn[0].poses, drawn[1].poses)


def test_a_still_becomes_a_clip(tmp_path):
    Image.fromarray(smooth(100, 160)).save(tmp_path / "a.png")
    settings = Settings("camera", frames=4, height=48, width=80)
    (video,) = videos_in(str(tmp_path / "a.png"), None, settings)
    assert set(encode_clip(video, 0.0, settings)) == {"mp4", "flow.z", "masks.tif", "txt", "json"}


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (2000, 3)])
def test_stills_of_any_shape(tmp_path, size):
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / "a.png")
    settings = Settings("camera", frames=4, height=48, width=80)
    (video,) = videos_in(str(tmp_path), None, settings)
    clip, tracks = stills.read(video, settings)
    assert clip.frames.shape == (4, 3, 48, 80) and np.isfinite(tracks.flow).all() and not tracks.flow[0].any()


def test_what_is_no_still_is_one_line(tmp_path):
    settings = Settings("camera", frames=4, height=48, width=80)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (video,) = videos_in(str(tmp_path), None, settings)
    with pytest.raises(BadClip, match="^picture: not a readable picture"):
        stills.read(video, settings)
    (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    for source in (tmp_path, tmp_path / "a.mp4", tmp_path / "none"):
        with pytest.raises(UserError, match=r"^videos: no picture .* for --tracker camera$"):
            videos_in(str(source), None, settings)
    (tmp_path / "w.csv").write_text("videoid,contentUrl,page_dir,name\n1,u,p,n\n")
    with pytest.raises(UserError, match="^--root .*: not with --tracker camera, which takes a picture"):
        videos_in(str(tmp_path / "w.csv"), str(tmp_path), Settings("camera"))
    with pytest.raises(UserError, match="^--every: not with --tracker camera"):
        Settings("camera", every=1.0)
