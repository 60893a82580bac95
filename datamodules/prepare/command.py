"""The commands `remoco prepare` and `remoco verify`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from datamodules.prepare import folder, pool, starts
from datamodules.prepare.job import Job
from datamodules.prepare.settings import Positive, Processes, Settings
from datamodules.prepare.sources import videos_in
from datamodules.prepare.video import WITH_TRACKS, prepare_video
from datamodules.shards.remote import Remote, is_remote
from datamodules.trackers import make_tracker
from remoco.common.errors import UserError
from remoco.common.machine import cores
from remoco.common.ranges import within

_SETTINGS, _PROCESSES = Settings(), Processes()


def prepare(
    videos: str,
    shards: str,
    root: str | None = None,
    frame_rate: Positive | None = None,
    settings: Settings = _SETTINGS,
    clips_per_shard: int = 500,
    processes: Processes = _PROCESSES,
    retry: bool = False,
    work: str | None = None,
) -> None:
    """Turn videos into shards with tracks. After an interruption, run the same command again: it resumes.

    Args:
        videos: Folder of videos and video2dataset tars, searched with its subfolders; or a video, .tar or WebVid .csv.
            Or a folder of numbered pictures; for --tracker camera a still or a folder of stills.
        shards: Folder for the shards, created if missing; or a URL such as s3://bucket/set, which gets each finished
            shard.
        root: Folder of the videos of a WebVid .csv (page_dir/videoid.mp4). Default: the folder of the CSV.
        frame_rate: Pictures per second of folders of numbered pictures. Default: that of --fps, so that each picture is
            a frame.
        settings: What the bytes of a clip depend on.
        clips_per_shard: Number of videos in a shard, and the most clips that it holds.
        processes: The processes that prepare videos, and their limits.
        retry: Try again the videos that were left out.
        work: Local folder for the state of the work when `shards` is a URL. Give the same one at each run.

    Example:
        remoco prepare videos data/mine --tracker dis --height 128 --width 192
    """
    within("--clips-per-shard", clips_per_shard, 1, whole=True)
    if frame_rate is not None:
        within("--frame-rate", frame_rate, 0, above=True)
    if settings.shots:
        starts.require_scenedetect()
    gpus = _gpus() if settings.tracker == "dot" else 0
    exact = WITH_TRACKS.get(settings.tracker)
    version = exact.VERSION if exact else make_tracker(settings.tracker, settings.dot).version
    store = Remote(shards) if is_remote(shards) else None
    if store is not None and work is None:
        raise UserError(f"--work is missing, expected a local folder for the state of the work on {shards}")
    if store is None and work is not None:
        raise UserError(f"--work {work}: only for shards at a URL, {shards} is a folder")
    sources, target = videos_in(videos, root, settings, frame_rate), Path(shards if work is None else work).absolute()
    limits = processes.timeout, processes.video_timeout
    with folder.alone(target):
        job = Job(target, sources, settings, version, clips_per_shard, retry, *limits, store)
        if not job.complete:
            job.run(_runner(processes, gpus))
            job.finish()
        job.publish()
        print(job.summary())


def _runner(processes: Processes, gpus: int) -> Callable:
    workers = processes.workers or gpus or cores()
    if processes.ray is None:
        return functools.partial(pool.run, prepare_video, workers=workers)
    from datamodules.prepare import cluster

    return functools.partial(cluster.run, prepare_video, address=processes.ray, workers=workers, gpus=min(gpus, 1))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def verify(shards: str, workers: int | None = None) -> int:
    """Read everything and check checksums, shapes and bounds. Each fault is printed; the exit code is then 1.

    Args:
        shards: Folder of shards, glob or brace pattern.
        workers: Number of processes. Default: the number of cores.

    Example:
        remoco verify data/mine
    """
    from datamodules.prepare.verify import verify_shards

    bad = verify_shards(shards, cores() if workers is None else workers)
    for line in bad:
        print(line)
    return 1 if bad else 0
