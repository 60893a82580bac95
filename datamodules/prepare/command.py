"""The commands `remoco prepare` and `remoco verify`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from datamodules.prepare import folder, pool, starts
from datamodules.prepare.job import Job
from datamodules.prepare.sources import videos_in
from datamodules.prepare.video import MAX_CLIPS, VIDEO_TIMEOUT, Settings, prepare_video
from datamodules.shards import flow_codec
from datamodules.shards.remote import Remote, is_remote
from datamodules.trackers import DotOptions, make_tracker
from remoco.common.errors import UserError
from remoco.common.machine import cores
from remoco.common.pictures import colour_of

_DOT = DotOptions()
SIZE_FACTOR = 64  # of the networks: 8 by the VAE, and three halvings in the UNet; training refuses other sizes


def prepare(
    videos: str,
    shards: str,
    root: str | None = None,
    tracker: str = "dis",
    dot: DotOptions = _DOT,
    frames: int = 16,
    fps: float = 8.0,
    height: int = 320,
    width: int = 512,
    every: float | None = None,
    shots: bool = False,
    step: float = flow_codec.STEP,
    fill: Literal["smooth", "none"] = "smooth",
    background: str = "white",
    clips_per_shard: int = 500,
    workers: int | None = None,
    timeout: float = 600.0,
    video_timeout: float = VIDEO_TIMEOUT,
    max_clips: int = MAX_CLIPS,
    retry: bool = False,
    ray: str | None = None,
    work: str | None = None,
) -> None:
    """Turn videos into shards with tracks. After an interruption, run the same command again: it resumes.

    Args:
        videos: Folder of videos and video2dataset tars, searched with its subfolders; or a video, .tar or WebVid .csv.
        shards: Folder for the shards, created if missing; or a URL such as s3://bucket/set, which gets each finished
            shard.
        root: Folder of the videos of a WebVid .csv (page_dir/videoid.mp4). Default: the folder of the CSV.
        tracker: Tracker: `dis` is optical flow without weights. `tracks` adds sparse tracks to it and takes twice the
            time. `dot` is the tracker of the paper. Or the class path of your own, for example my_module.Tracker.
        dot: Options of --tracker dot.
        frames: Frames per clip.
        fps: Frames per second of a clip.
        height: Height of a clip in pixels, a multiple of 64.
        width: Width of a clip in pixels, a multiple of 64.
        every: Seconds from the start of a clip to the start of the next. Default: one clip from the middle of each
            video.
        shots: Detect cuts, and let no clip cross one. With --every, clips start anew in each shot.
        step: Flow quantisation in pixels. It bounds the error of the stored flow where a pixel is visible.
        fill: Flow to store where a pixel is not visible. `smooth` stores what takes fewest bytes, about half. `none`
            keeps the tracker's flow, for the dense condition and `visibility_rule: block`.
        background: Colour behind transparent parts of videos, for example `black` or `#00ff00`.
        clips_per_shard: Number of videos in a shard, and the most clips that it holds.
        workers: Number of processes. Default: the number of cores; for --tracker dot the number of GPUs. On a CPU
            --tracker dot takes 2.2 GB for each.
        timeout: Seconds that a clip may take before its video is left out. --tracker dot takes about 240 per clip on
            one CPU core that does nothing else.
        video_timeout: Seconds after which no further clip of a video is started.
        max_clips: Most clips to try in one video.
        retry: Try again the videos that were left out.
        ray: Ray cluster to run on: `auto`, HOST:PORT, or `local` for one that is started here.
        work: Local folder for the state of the work when `shards` is a URL. Give the same one at each run.
    """
    settings = Settings(
        frames,
        height,
        width,
        float(fps),
        tracker,
        every,
        step,
        clips_per_shard,
        shots,
        dot,
        max_clips,
        fill,
        colour_of(background, "--background"),
    )
    gpus = _gpus() if tracker == "dot" else 0
    workers = (gpus or cores()) if workers is None else workers
    _check(settings, workers, timeout, video_timeout)
    version = make_tracker(tracker, dot).version
    store = Remote(shards) if is_remote(shards) else None
    if store is not None and work is None:
        raise UserError(f"--work is missing, expected a local folder for the state of the work on {shards}")
    if store is None and work is not None:
        raise UserError(f"--work {work}: only for shards at a URL, {shards} is a folder")
    sources, target = videos_in(videos, root), Path(shards if work is None else work).absolute()
    with folder.alone(target):
        job = Job(target, sources, settings, version, retry, timeout, video_timeout, store)
        if not job.complete:
            job.run(_runner(ray, workers, gpus))
            job.finish()
        job.publish()
        print(job.summary())


def _runner(ray: str | None, workers: int, gpus: int) -> Callable:
    if ray is None:
        return functools.partial(pool.run, prepare_video, workers=workers)
    from datamodules.prepare import cluster

    return functools.partial(cluster.run, prepare_video, address=ray, workers=workers, gpus=min(gpus, 1))


def _check(settings: Settings, workers: int, timeout: float, video_timeout: float) -> None:
    def require(good: bool, name: str, value: Any, expected: str) -> None:
        if not good:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {expected}")

    require(settings.frames >= 2, "frames", settings.frames, "at least 2")
    for name in ("height", "width"):
        size = getattr(settings, name)
        below = size // SIZE_FACTOR * SIZE_FACTOR
        nearest = f"{below} or {below + SIZE_FACTOR}" if below > 0 else f"{SIZE_FACTOR}"
        require(size > 0 and size % SIZE_FACTOR == 0, name, size, f"a multiple of {SIZE_FACTOR}, such as {nearest}")
        require(settings.tracker != "dot" or size >= 128, name, size, "at least 128 for --tracker dot")
    require(settings.fps > 0, "fps", settings.fps, "a positive number")
    require(settings.every is None or settings.every > 0, "every", settings.every, "a positive number of seconds")
    require(0 < settings.step <= 1, "step", settings.step, "a number in (0, 1]")
    require(settings.clips_per_shard >= 1, "clips_per_shard", settings.clips_per_shard, "at least 1")
    require(workers >= 1, "workers", workers, "at least 1")
    require(timeout > 0, "timeout", timeout, "a positive number of seconds")
    require(video_timeout > 0, "video_timeout", video_timeout, "a positive number of seconds")
    require(settings.max_clips >= 1, "max_clips", settings.max_clips, "at least 1")
    if settings.shots:
        starts.require_scenedetect()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def verify(shards: str, workers: int | None = None) -> int:
    """Read everything and check checksums, shapes and bounds. Each fault is printed; the exit code is then 1.

    Args:
        shards: Folder of shards, glob or brace pattern.
        workers: Number of processes. Default: the number of cores.
    """
    from datamodules.prepare.verify import verify_shards

    bad = verify_shards(shards, cores() if workers is None else workers)
    for line in bad:
        print(line)
    return 1 if bad else 0
