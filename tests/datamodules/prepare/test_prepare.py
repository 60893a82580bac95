"""Videos to shards: what is chosen, what is left out and why, and that neither workers nor kill -9 change a byte."""

import json
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from datamodules.prepare import clips
from datamodules.prepare import video as work
from datamodules.prepare.sources import videos_in
from datamodules.shards import Shards
from remoco.common.errors import BadClip
from tests.support.commands import prepare as run
from tests.support.videos import write_video

SMALL = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--clips-per-shard", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five good videos with awkward names, and four that cannot be used."""
    root = tmp_path_factory.mktemp("videos")
    (root / "sub").mkdir()
    for seed, name in enumerate(["a.v2.mp4", "sub/a.v2.mp4", "ünï 視.mp4", "b.mkv", "c.MOV"]):
        write_video(root / name, seed=seed)
    (root / "a.v2.txt").write_text("a caption")
    write_video(root / "short.mp4", frames=3)
    (root / "zero.mp4").write_bytes(b"")
    (root / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    whole = (root / "c.MOV").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    assert run(folder, out, *SMALL, "--workers", 1) == 0
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_video_is_a_clip_or_a_reason(shards):
    report = [json.loads(line) for line in (shards / "report.jsonl").read_text("utf-8").splitlines()]
    good = {line["video"] for line in report if line["clips"]}
    assert good == {"a.v2.mp4", "sub/a.v2.mp4", "ünï 視.mp4", "b.mkv", "c.MOV"}
    reasons = {line["video"]: line["bad"][0]["reason"] for line in report if line["bad"]}
    assert set(reasons) == {"short.mp4", "zero.mp4", "noise.mp4", "cut.mp4"}
    assert "lasts 0.25 s" in reasons["short.mp4"] and all("\n" not in reason for reason in reasons.values())
    found = Shards(str(shards))
    keys = [found.key(s, c) for s, count in enumerate(found.counts) for c in range(count)]
    assert len(keys) == len(set(keys)) == 5 and not any("." in key for key in keys)
    first = next(
        (s, c) for s, count in enumerate(found.counts) for c in range(count) if found.read(s, c, ["txt"])["txt"]
    )
    meta = json.loads(found.read(*first, ["json"])["json"])
    assert found.read(*first, ["txt"])["txt"] == b"a caption" and meta["source"]["name"] == "a.v2.mp4"
    assert meta["tracker"]["name"] == "dis" and meta["source"]["start"] == 0.75


def test_the_bytes_do_not_depend_on_the_workers(folder, shards, tmp_path):
    assert run(folder, tmp_path / "again", *SMALL, "--workers", 3) == 0
    assert contents(tmp_path / "again") == contents(shards)


def test_a_finished_job_is_left_alone_and_another_is_refused(folder, shards, capsys):
    before = contents(shards)
    assert run(folder, shards, *SMALL) == 0 and contents(shards) == before
    capsys.readouterr()
    assert run(folder, shards, *SMALL, "--every", 1) == 2
    error = capsys.readouterr().err
    assert error.startswith("remoco prepare: error: ") and "every is None, not 1.0" in error and error.count("\n") == 1


def test_the_size_is_one_that_a_base_takes(folder, tmp_path):
    """480 x 832 is no multiple of 64: Wan's and CogVideoX's clips are of multiples of 16."""
    assert run(folder / "sub", tmp_path / "o", *SMALL, "--height", 48, "--width", 80, "--workers", 1) == 0
    found = Shards(str(tmp_path / "o"))
    assert (found.shape.height, found.shape.width) == (48, 80) and found.counts.sum() == 1


def test_every_n_seconds(folder, tmp_path):
    assert run(folder / "sub", tmp_path / "o", *SMALL, "--every", 0.5, "--workers", 1) == 0
    found = Shards(str(tmp_path / "o"))
    starts = [
        json.loads(found.read(s, c, ["json"])["json"])["source"]["start"]
        for s, n in enumerate(found.counts)
        for c in range(n)
    ]
    assert starts == [0.0, 0.5, 1.0, 1.5] and found.counts.tolist() == [2, 2]


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (False, (), "is not there, expected a folder"),
        (True, (), "no video file under"),
        (True, ("--height", 10), "--height 10: expected a multiple of 16, such as 16"),
        (True, ("--width", 500), "--width 500: expected a multiple of 16, such as 496 or 512"),
        (True, ("--frames", 1), "--frames: Expected a whole number of at least 2"),
        (True, ("--workers", 0), "--workers: Expected a whole number of at least 1"),
        (True, ("--every", -1), "--every: Expected a number above 0"),
        (True, ("--dot-width", 66), "--dot-width is 66, expected a multiple of 4"),
        (True, ("--clips-per-shard", 0), "--clips-per-shard is 0, expected a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, make, arguments, message):
    if make:
        (tmp_path / "v").mkdir()
    assert run(tmp_path / "v", tmp_path / "o", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_only_bad_videos_is_one_line(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    (tmp_path / "v/x.mp4").write_bytes(b"no video")
    assert run(tmp_path / "v", tmp_path / "o", *SMALL, "--workers", 1) == 2
    assert "none of the 1 videos gave a clip" in capsys.readouterr().err.splitlines()[-1]


def test_verify_lists_what_is_bad(shards, tmp_path, capsys):
    import shutil

    assert run("verify", shards, "--workers", 1) == 0
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    name = sorted(path.name for path in broken.glob("*.tar"))[0]
    index = json.loads((broken / name.replace(".tar", ".index.json")).read_bytes())
    offset, size, _ = index["members"]["flow.z"][0]
    (broken / name).chmod(0o644)
    data = bytearray((broken / name).read_bytes())
    data[offset + size // 2] ^= 1
    (broken / name).write_bytes(data)
    capsys.readouterr()
    assert run("verify", broken, "--workers", 1) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "SHA-256" in lines[0] and f"{index['keys'][0]}.flow.z has changed" in lines[1]


@pytest.mark.slow
def test_kill_9_loses_no_clip_and_changes_no_byte(folder, shards, tmp_path):
    out = tmp_path / "o"
    command = [sys.executable, "-m", "remoco", "prepare", str(folder), str(out), *SMALL, "--workers", "1"]
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        known = _finished(out)
        while process.poll() is None and _finished(out) <= known:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        break
    assert kills >= 3 and contents(out) == contents(shards)


def _finished(out):
    """The results of videos and blocks that are on disk."""
    try:
        return {path.name for path in out.glob(".prepare/**/*.json")}
    except FileNotFoundError:  # the job cleared a folder between two looks
        return set()


def test_a_clip_that_is_done_is_not_redone(folder, tmp_path, monkeypatch):
    videos = videos_in(str(folder / "sub"))
    settings = work.Settings(frames=3, height=64, width=64, fps=6.0, every=0.5, step=1 / 8)
    task = work.Task(videos[0], 0, tmp_path / "parts", settings)
    real, calls = work.encode_clip, []

    def dies_at_the_third(video, start, settings, worker):
        calls.append(start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(video, start, settings, worker)

    monkeypatch.setattr(work, "encode_clip", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        work.prepare_video(task)
    assert work.prepare_video(task) is None
    assert calls == [0.0, 0.5, 1.0, 1.0, 1.5]
    assert len(json.loads((tmp_path / "parts/00000000.json").read_bytes())["clips"]) == 4


def test_a_full_disk_stops_the_job_and_leaves_no_half_written_file(folder, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    task = work.Task(
        videos_in(str(folder / "sub"))[0],
        0,
        tmp_path / "p",
        work.Settings(frames=3, height=64, width=64, fps=6.0, step=1 / 8),
    )
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in work.prepare_video(task)
    assert list((tmp_path / "p").iterdir()) == []


# Clips


def test_frames_are_taken_by_their_times(tmp_path):
    # 4 frames a second, then 20: what is shown at 0, 0.5, 1.0, 1.5 s is frames 0, 2, 4, 14
    times = [0, 250, 500, 750] + [1000 + 50 * n for n in range(16)]
    video = write_video(tmp_path / "v.mp4", frames=20, times=times)
    clip = clips.read_clip(tmp_path / "v.mp4", 0.0, 4, 2.0, 48, 64)
    for got, index in zip(clip.frames, [0, 2, 4, 14]):
        errors = [np.abs(got.astype(int) - frame).mean() for frame in video]
        assert int(np.argmin(errors)) == index


def test_a_start_inside_is_reached_by_seeking_exactly(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=40, fps=10)
    clip = clips.read_clip(tmp_path / "v.mp4", 2.5, 3, 5.0, 48, 64)
    for got, index in zip(clip.frames, [25, 27, 29]):
        assert int(np.argmin([np.abs(got.astype(int) - frame).mean() for frame in video])) == index


@pytest.mark.parametrize("height, width", [(24, 32), (32, 32), (24, 64), (96, 128)])
def test_the_crop_is_central_and_fills_the_frame(tmp_path, height, width):
    write_video(tmp_path / "v.mp4")
    clip = clips.read_clip(tmp_path / "v.mp4", 0, 2, 8, height, width)
    assert clip.frames.shape == (2, 3, height, width) and clip.frames.std() > 5


def test_odd_sizes(tmp_path):
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 51, 67, "yuv444p"
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((51, 67, 3), 30 * index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert clips.read_clip(tmp_path / "odd.mkv", 0, 8, 8, 32, 40).frames[:, 0, 0, 0].tolist() == pytest.approx(
        [30 * n for n in range(8)], abs=2
    )


def test_rotation_is_undone(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=4, fps=8)
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    one = (1 << 16).to_bytes(4, "big")
    minus = ((1 << 32) - (1 << 16)).to_bytes(4, "big")
    nothing = bytes(4)
    unit = [one, nothing, nothing, nothing, one, nothing, nothing, nothing, (1 << 30).to_bytes(4, "big")]
    place = data.index(b"".join(unit), data.index(b"tkhd"))
    # a quarter turn clockwise for the player: x' = -y, y' = x
    quarter = [nothing, one, nothing, minus, nothing, nothing, nothing, nothing, (1 << 30).to_bytes(4, "big")]
    data[place : place + 36] = b"".join(quarter)
    (tmp_path / "r.mp4").write_bytes(data)
    clip = clips.read_clip(tmp_path / "r.mp4", 0, 3, 8, 64, 48)
    upright = np.rot90(video[0].transpose(1, 2, 0), -1)
    assert np.abs(clip.frames[0].transpose(1, 2, 0).astype(int) - upright).mean() < 5


def test_too_short_says_how_much_is_missing(tmp_path):
    write_video(tmp_path / "v.mp4", frames=12, fps=12)
    with pytest.raises(BadClip, match="ends too early: 16 frames at 8 fps from 0.00 s need 1.88 s, 8 found"):
        clips.read_clip(tmp_path / "v.mp4", 0, 16, 8, 48, 64)
