"""What may happen to a preparation: decoders that hang or crash, full disks, videos to try again, a cluster."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import deque

import pytest

from datamodules.prepare import pool
from datamodules.prepare import video as work
from datamodules.prepare.sources import videos_in
from datamodules.shards import Shards, sidecar, unpack
from tests.support.commands import prepare as run
from tests.support.installed import need
from tests.support.videos import write_video

SMALL = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--clips-per-shard", "2"]
SETTINGS = work.Settings(frames=3, height=64, width=64, fps=6.0, every=0.5, step=1 / 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for seed in range(5):
        write_video(root / f"{seed}.mp4", seed=seed)
    (root / "1.mp4").write_bytes(b"not yet")
    return root


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def report(folder):
    lines = map(json.loads, (folder / "report.jsonl").read_text("utf-8").splitlines())
    return {line["video"]: line for line in lines}


# Decoders that hang or crash


def hangs_or_crashes(task, worker):
    """A worker whose decoder, at the second clip of video 1, loops in C and, of video 3, segfaults."""
    real, calls = work.encode_clip, []

    def encode_clip(video, start, settings, worker):
        calls.append(start)
        if len(calls) == 2 and task.number == 1:
            deque(iter(int, 1), maxlen=0)  # never comes back, nor to Python's signal handlers
        if len(calls) == 2 and task.number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(video, start, settings, worker)

    work.encode_clip = encode_clip
    try:
        return work.prepare_video(task, worker)
    finally:
        work.encode_clip = real


def test_a_decoder_that_hangs_or_crashes_costs_its_video_and_keeps_its_finished_clips(tmp_path):
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", seed=number)
    videos = videos_in(str(tmp_path))
    parts = tmp_path / "parts"
    tasks = [work.Task(video, number, parts, SETTINGS, timeout=2.0) for number, video in enumerate(videos)]
    died = 0
    for task, result in pool.run(hangs_or_crashes, tasks, 2):
        if isinstance(result, pool.Died):
            died += 1
            work.give_up(task, result.exit_code)
    results = [json.loads(work.result_path(parts, number).read_bytes()) for number in range(5)]
    assert died == 2 and [len(result["clips"]) for result in results] == [4, 1, 4, 1, 4]
    assert results[1]["bad"][0]["reason"] == "a clip took longer than --timeout 2 s"
    assert results[3]["bad"][0]["reason"] == "the process that read it died (exit code -11)"


def own_number(task, worker):
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return worker


def test_workers_are_numbered_and_replaced_by_one_of_the_same_number():
    found = dict(pool.run(own_number, ["a", "b", "die", "c"], 2))
    assert {found["a"], found["b"]} == {0, 1} and found["die"] == pool.Died(-9) and found["c"] in (0, 1)
    worker = pool.Worker(own_number, 7)
    os.kill(worker.process.pid, signal.SIGKILL)  # while it waits
    worker.process.join()
    worker.give("d")
    assert worker.take() == ("d", 7)
    worker.stop()


def test_the_timeout_is_one_clips_and_ends_with_it(folder, tmp_path):
    task = work.Task(videos_in(str(folder))[0], 0, tmp_path / "parts", SETTINGS, timeout=60.0)
    assert work.prepare_video(task) is None and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert run(folder, tmp_path / "o", *SMALL, "--timeout", 0) == 2


# Trying again


def test_bad_videos_are_tried_again_only_with_retry(folder, tmp_path, capsys):
    videos, out, fresh = tmp_path / "v", tmp_path / "o", tmp_path / "fresh"
    videos.mkdir()
    for path in folder.iterdir():
        os.symlink(path, videos / path.name)
    assert run(videos, out, *SMALL, "--workers", 1) == 0
    before = contents(out)
    assert report(out)["1.mp4"]["bad"] and len(Shards(str(out))) == 4
    assert run(videos, out, *SMALL, "--retry") == 0  # still bad
    assert contents(out) == before
    (videos / "1.mp4").unlink()
    write_video(videos / "1.mp4", seed=1)
    capsys.readouterr()
    assert run(videos, out, *SMALL) == 2
    assert "files have changed (--retry accepts it)" in capsys.readouterr().err and contents(out) == before
    assert run(videos, out, *SMALL, "--workers", 1, "--retry") == 0
    assert run(videos, fresh, *SMALL, "--workers", 1) == 0
    assert contents(out) == contents(fresh) and len(Shards(str(out))) == 5


def test_retry_does_nothing_but_the_bad_videos(folder, tmp_path, monkeypatch):
    out = tmp_path / "o"
    assert run(folder, out, *SMALL, "--workers", 1) == 0
    tried = []

    def run_here(function, tasks, workers):
        for task in tasks:
            tried.append(task.video.name)
            yield task, function(task, 0)

    monkeypatch.setattr(pool, "run", run_here)
    assert run(folder, out, *SMALL, "--workers", 1, "--retry") == 0
    assert tried == ["1.mp4"]


def test_retry_of_changed_shards_is_one_line(folder, tmp_path, capsys):
    out = tmp_path / "o"
    assert run(folder, out, *SMALL, "--workers", 1) == 0
    shard = out / "00000-000.tar"
    data = bytearray(shard.read_bytes())
    data[json.loads(sidecar(shard).read_bytes())["members"]["mp4"][0][0] + 5] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    capsys.readouterr()
    assert run(folder, out, *SMALL, "--workers", 1, "--retry") == 2
    error = capsys.readouterr().err
    assert "has changed since it was written" in error and error.count("\n") == 1


def test_unpack_gives_what_was_written(folder, tmp_path):
    assert run(folder, tmp_path / "o", *SMALL, "--workers", 1) == 0
    found = Shards(str(tmp_path / "o"))
    for shard in range(len(found.counts)):
        for clip, (key, members) in enumerate(unpack(found.path(shard))):
            assert key == found.key(shard, clip) and members == found.read(shard, clip, list(members))
            assert set(members) == {"mp4", "flow.z", "masks.tif", "txt", "json"}


# Full disks


def limited(size, *arguments):
    """Run prepare where no file can grow beyond `size` bytes, as on a disk that fills up at that moment."""
    return subprocess.run(
        [sys.executable, "-m", "remoco", "prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def last_line(process):
    return process.stderr.strip().splitlines()[-1].rpartition("\r")[2]


def test_a_disk_that_fills_up_stops_with_one_line_and_the_rerun_goes_on(folder, tmp_path):
    whole = tmp_path / "whole"
    assert run(folder, whole, *SMALL, "--workers", 1) == 0
    tar = max(path.stat().st_size for path in whole.glob("*.tar"))
    out = tmp_path / "o"
    # parts fit, tars do not
    found = limited(tar - 4096, folder, out, *SMALL, "--workers", 1)
    assert found.returncode == 2 and "Traceback" not in found.stderr, found.stderr
    assert last_line(found).startswith("remoco prepare: error: ") and "File too large" in last_line(found)
    parts = {path.name: path.stat().st_mtime_ns for path in out.rglob("*.part")}
    assert parts and not list(out.rglob("*.tmp")) and not (out / "index.json").exists()
    # nothing fits: it is the disk's fault, not the videos'
    found = limited(2048, folder, tmp_path / "p", *SMALL, "--workers", 1)
    assert found.returncode == 2 and "File too large" in last_line(found) and "same command resumes" in last_line(found)
    assert not list((tmp_path / "p").rglob("*.part")) and not list((tmp_path / "p").rglob("0000000[0234].json"))
    assert {path.name: path.stat().st_mtime_ns for path in out.rglob("*.part")} == parts
    for unfinished in (out, tmp_path / "p"):
        assert run(folder, unfinished, *SMALL, "--workers", 1) == 0
        assert contents(unfinished) == contents(whole)


# Ray


@pytest.mark.slow
def test_ray_gives_the_same_bytes(folder, tmp_path):
    need("ray", "ray")
    assert run(folder, tmp_path / "here", *SMALL, "--every", 0.5, "--workers", 1) == 0
    assert run(folder, tmp_path / "ray", *SMALL, "--every", 0.5, "--workers", 2, "--ray", "local") == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


@pytest.mark.slow
def test_ray_reports_a_decoder_that_crashes_or_hangs(tmp_path):
    need("ray", "ray")
    from datamodules.prepare import cluster

    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", seed=number)
    videos = videos_in(str(tmp_path))
    tasks = [work.Task(video, number, tmp_path / "p", SETTINGS, timeout=2.0) for number, video in enumerate(videos)]
    found = {task.number: result for task, result in cluster.run(hangs_or_crashes, tasks, "local", 2)}
    assert found == {0: None, 1: pool.Died(-signal.SIGALRM), 2: None, 3: pool.Died(-signal.SIGSEGV), 4: None}


@pytest.mark.slow
def test_ray_goes_on_after_kill_9(folder, tmp_path):
    need("ray", "ray")
    out, arguments = tmp_path / "o", [str(folder), *SMALL, "--every", "0.1", "--workers", "1"]
    command = [sys.executable, "-m", "remoco", "prepare", arguments[0], str(out), *arguments[1:], "--ray", "local"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list(out.glob(".prepare/**/*.json"))) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (out / ".00000-000.tar.1.tmp").write_bytes(b"what it was writing")
    assert run(folder, out, *arguments[1:], "--ray", "local") == 0
    assert run(folder, tmp_path / "whole", *arguments[1:]) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_cluster_that_is_not_there_is_one_line(folder, tmp_path, capsys, monkeypatch):
    need("ray", "ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x"):
        assert run(folder, tmp_path / "o", *SMALL, "--ray", address) == 2
        assert f"--ray {address}: no cluster there" in capsys.readouterr().err.strip().splitlines()[-1]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(folder, tmp_path / "o", *SMALL, "--ray", "auto") == 2
    assert "Ray is not installed: pip install -e '.[ray]' -c constraints.txt" in capsys.readouterr().err
