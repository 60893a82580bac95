"""What strangers' videos, tars and folders may do to a preparation: cost themselves, and nothing else."""

import json
import math
import os
import resource
import subprocess
import sys
import tarfile
import threading
import time

import av
import numpy as np
import pytest

from datamodules.prepare import clips, folder, job, sources
from datamodules.prepare import video as work
from datamodules.prepare.sources import videos_in
from lightning_modules.record import check_size
from remoco.common.videos import decode
from remoco.common.whole_files import held
from tests.support.commands import prepare as run
from tests.support.videos import number_of, numbered, write_pictures, write_video

SMALL = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--workers", "1"]


def report(out):
    lines = map(json.loads, (out / "report.jsonl").read_text("utf-8").splitlines())
    return {line["video"]: line for line in lines}


# Lengths that are not true


def test_starts_are_bounded_by_what_decodes(tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/long.mp4")
    monkeypatch.setattr(decode, "video_seconds", lambda source: 4e9)  # as a container may say
    settings = work.Settings(frames=3, height=64, width=64, fps=6.0, every=0.5, step=1 / 8)
    task = work.Task(videos_in(str(tmp_path / "v"))[0], 0, tmp_path / "parts", settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert work.prepare_video(task) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3  # KiB
    result = json.loads(work.result_path(tmp_path / "parts", 0).read_bytes())
    assert len(result["clips"]) == 4 and len(result["bad"]) == 1 and "ends too early" in result["bad"][0]["reason"]


@pytest.mark.parametrize(
    "limits, reason", [({"max_clips": 2}, "--max-clips 2 was"), ({"video_timeout": 0.0}, "--video-timeout 0 s was")]
)
def test_a_video_has_limits(tmp_path, limits, reason):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4")
    settings = work.Settings(
        frames=3, height=64, width=64, fps=6.0, every=0.5, step=1 / 8, max_clips=limits.pop("max_clips", 100)
    )
    work.prepare_video(work.Task(videos_in(str(tmp_path / "v"))[0], 0, tmp_path / "p", settings, **limits))
    result = json.loads(work.result_path(tmp_path / "p", 0).read_bytes())
    assert len(result["clips"]) == (2 if "clips" in reason else 0)
    assert len(result["bad"]) == 1 and result["bad"][0]["reason"].startswith(reason)


def test_pictures_that_would_take_the_memory_are_refused(tmp_path):
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("png", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "v.avi").read_bytes())
    place = -1
    while (place := data.find(b"IHDR", place + 1)) >= 0:
        data[place + 4 : place + 12] = (40000).to_bytes(4, "big") * 2
    (tmp_path / "v.avi").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(clips.BadClip):
        clips.read_clip(tmp_path / "v.avi", 0, 3, 8.0, 64, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3


# Containers that cannot be sought in


CONTAINERS = [("v.ts", "libx264"), ("v.m2ts", "libx264"), ("v.ts", "libx265"), ("v.avi", "libx264")]


@pytest.mark.parametrize("name, codec", CONTAINERS)
def test_sound_videos_of_any_container_are_used(tmp_path, name, codec):
    """Default options: key frames 10 s apart, B-frames; MPEG-TS has no index, AVI no time stamps of its pictures."""
    (tmp_path / "v").mkdir()
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    write_pictures(tmp_path / "v" / name, [numbered(number) for number in range(500)], 25, codec, **options)
    for start in (0.0, 0.5, 9.0, 11.0, 17.0):
        found = clips.read_clip(tmp_path / "v" / name, start, 16, 8.0, 48, 80).frames
        shown = [number_of(frame.transpose(1, 2, 0)) for frame in found]
        true = [math.ceil(start * 25 + k * 25 / 8 - 0.5) for k in range(16)]  # of two as near the earlier
        # AVI's times may be off by the codec's delay, which nothing in the file tells
        late = true[-1] - shown[-1] if name == "v.avi" else 0
        assert abs(late) <= 3 and shown == [max(0, number - late) for number in true]
    assert run(tmp_path / "v", tmp_path / "o", *SMALL) == 0 and not report(tmp_path / "o")[name]["bad"]


# Captions and members that are none


def test_captions_are_bounded_regular_files_and_every_refusal_is_listed(tmp_path):
    root = tmp_path / "v"
    root.mkdir()
    for name in "abcde":
        write_video(root / f"{name}.mp4", frames=12)
    (root / "a.txt").symlink_to("/dev/zero")
    os.mkfifo(root / "b.txt")
    (root / "c.txt").write_bytes(b"x" * (sources.CAPTION_BYTES["txt"] + 1))
    (root / "d.txt").write_text("a caption")
    os.mkfifo(root / "f.mp4")
    os.mkfifo(root / "g.tar")
    found = {each.name: each for each in videos_in(str(root))}
    assert found["f.mp4"].fault == found["g.tar"].fault == "is not a file"
    assert found["d.mp4"].caption == "a caption" and not found["d.mp4"].note and not found["e.mp4"].note
    for name in "abc":
        assert found[f"{name}.mp4"].caption == "" and "its caption" in found[f"{name}.mp4"].note
    assert run(root, tmp_path / "o", *SMALL) == 0
    made = report(tmp_path / "o")
    assert all(len(made[f"{name}.mp4"]["clips"]) == 1 for name in "abcde")
    assert [len(made[f"{name}.mp4"]["bad"]) for name in "abcde"] == [1, 1, 1, 0, 0]
    assert made["f.mp4"]["bad"] and made["g.tar"]["bad"]


def test_folders_that_do_not_read_are_listed(tmp_path, monkeypatch):
    (tmp_path / "v/closed").mkdir(parents=True)
    (tmp_path / "v/stat").mkdir()
    for name in ("a.mp4", "closed/b.mp4", "stat/c.mp4"):
        write_video(tmp_path / "v" / name, frames=12)
    real_scan, real_stat = os.scandir, os.stat

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_scan(path)

    def stat(path, *args, **kwargs):
        if str(path).endswith("c.mp4"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", scandir)  # the one who runs the tests may be root, who may read all
    monkeypatch.setattr(os, "stat", stat)
    found = {each.name: each.fault for each in videos_in(str(tmp_path / "v"))}
    assert found == {
        "a.mp4": "",
        "closed/": "the folder does not read: Permission denied",
        "stat/c.mp4": "does not open: Permission denied",
    }


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pad(data):
    return data + bytes(-len(data) % 512)


def hostile_members(video):
    """name -> what a tar holds between two sound samples."""
    deep = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    sparse = b"\x00".join([b""]) + header("bad.mp4", 512, tarfile.GNUTYPE_SPARSE)
    return {
        "deep JSON": header("bad.json", len(deep)) + pad(deep) + header("bad.mp4", len(video)) + pad(video),
        "endless caption": header("bad.txt", 20 << 30),
        "caption of 4 MB": header("bad.txt", 4 << 20) + bytes(4 << 20) + header("bad.mp4", len(video)) + pad(video),
        "pax header of 2^40": header("bad", 2**40, tarfile.XHDTYPE),
        "long name of 2^40": header("bad", 2**40, tarfile.GNUTYPE_LONGNAME),
        "negative size": header("bad.mp4", -(10**6)),
        "sparse": sparse + bytes(512),
        "pax size": header("p", 512, tarfile.XHDTYPE) + pad(b"22 size=1099511627776\n") + header("bad.mp4", 10),
        "pax sparse": header("p", 512, tarfile.XHDTYPE)
        + pad(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
        + header("bad.mp4", 512)
        + pad(b"x\n"),
    }


@pytest.mark.parametrize("kind", list(hostile_members(b"")))
def test_a_bad_member_costs_itself(tmp_path, kind):
    write_video(tmp_path / "video.mp4", frames=12)
    video = (tmp_path / "video.mp4").read_bytes()
    (tmp_path / "v").mkdir()
    sound = header("a.mp4", len(video)) + pad(video) + header("a.txt", 4) + pad(b"text")
    (tmp_path / "v/x.tar").write_bytes(sound + hostile_members(video)[kind] + bytes(1024))
    (tmp_path / "v/y.tar").write_bytes(sound + bytes(1024))
    if kind == "endless caption":
        os.truncate(tmp_path / "v/x.tar", (20 << 30) + 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {each.name: each for each in videos_in(str(tmp_path / "v"))}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3
    assert not found["x.tar/a"].fault and found["x.tar/a"].caption == "text"
    assert not found["y.tar/a"].fault and any(each.fault or each.note for each in found.values())
    assert all("\n" not in each.fault + each.note for each in found.values())


# Two at once, damaged records


def test_a_second_job_in_a_folder_is_refused(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4", frames=12)
    code = "import sys, time; from pathlib import Path; from remoco.common.whole_files import held\n"
    code += "with held(Path(sys.argv[1])):\n print(1, flush=True); time.sleep(60)"
    lock = str(tmp_path / "o" / folder.LOCK)
    other = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        assert run(tmp_path / "v", tmp_path / "o", *SMALL) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'o'}: another process is at work in it" in error and error.count("\n") == 1
    finally:
        other.kill()
        other.wait()
    assert run(tmp_path / "v", tmp_path / "o", *SMALL) == 0  # the lock died with it
    assert not (tmp_path / "o" / folder.LOCK).exists()


def test_of_many_who_want_a_lock_one_has_it(tmp_path):
    inside, most, entered = 0, 0, 0

    def enter():
        nonlocal inside, most, entered
        had = 0
        while had < 13:
            with held(tmp_path / "lock") as free:
                if free:
                    inside += 1
                    most, entered, had = max(most, inside), entered + 1, had + 1
                    time.sleep(1e-4)
                    inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and entered == 8 * 13 and not (tmp_path / "lock").exists()


@pytest.mark.parametrize("damage", [b"", b"[1]", b"[" * 100_000, b'{"a": Infinity}', b"\xff", b"{}"])
@pytest.mark.parametrize("name", [job.PLAN, "index.json", folder.REPORT])
def test_damaged_records_are_one_line(tmp_path, capsys, damage, name):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4", frames=12)
    (tmp_path / "v/b.mp4").write_bytes(b"bad")
    assert run(tmp_path / "v", tmp_path / "o", *SMALL) == 0
    (tmp_path / "o" / name).write_bytes(damage)
    capsys.readouterr()
    for more in ([], ["--retry"]):
        assert run(tmp_path / "v", tmp_path / "o", *SMALL, *more) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1, error


def test_sizes_that_training_refuses_are_refused():
    from conditions import DenseFlow
    from datamodules.prepare.settings import SIZE_FACTOR
    from lightning_modules.bases import SVD

    check_size(SVD.grid, DenseFlow(), SIZE_FACTOR, 3 * SIZE_FACTOR)
    for size in range(8, 2 * SIZE_FACTOR, 8):
        if size % SIZE_FACTOR:
            with pytest.raises(Exception, match="a multiple of"):
                check_size(SVD.grid, DenseFlow(), size, SIZE_FACTOR)
