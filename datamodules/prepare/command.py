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
    """Turn videos into shards with tracks. Run the same command again to go on after an interruption.

    Args:
        videos: folder of videos and video2dataset tars, searched with its subfolders; or a video, .tar or WebVid .csv.
        shards: folder for the shards, made if missing; or a URL as s3://bucket/set, where each goes when done.
        root: folder of a WebVid .csv's videos (page_dir/videoid.mp4); the CSV's own when not given.
        tracker: what makes the tracks: `dis` is optical flow without weights, `tracks` it helped by sparse tracks,
            at twice the time; `dot` the method's own tracker; or the class path of your own, as my_module.Tracker.
        dot: of --tracker dot.
        frames: frames per clip.
        fps: frames per second of a clip.
        height: of a clip in pixels, a multiple of 64.
        width: of a clip in pixels, a multiple of 64.
        every: start a clip every so many seconds; without it, one clip from the middle of each video.
        shots: look for cuts, and let no clip cross one; with --every, within each shot.
        step: flow quantisation in pixels; the stored flow is off by at most this where a pixel is visible.
        fill: `smooth` stores what costs least where a pixel is not visible, half of the bytes; `none` keeps what the
            tracker said there too, for the dense condition and `visibility_rule: block`.
        background: colour behind transparent parts of videos, as `black` or `#00ff00`.
        clips_per_shard: videos that go into a shard, and the most clips it holds.
        workers: processes; when not given as many as there are cores, or GPUs for --tracker dot, which
            takes 2.2 GB for each on a CPU.
        timeout: seconds that each clip may take before its video is given up; --tracker dot takes about 240 for
            each on one CPU core that it has to itself.
        video_timeout: seconds after which no further clip of a video is begun.
        max_clips: clips that are tried in one video at most.
        retry: try the videos that were left out again.
        ray: run on a Ray cluster: `auto`, HOST:PORT, or `local` for one started here.
        work: local folder for the state of the work when `shards` is a URL; the same whenever the command is run again.
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
    """Read everything: checksums, shapes, bounds. Prints what is bad; the exit code is 1 when something is.

    Args:
        shards: a folder of shards, a glob or a brace pattern.
        workers: processes; as many as there are cores when not given.
    """
    from datamodules.prepare.verify import verify_shards

    bad = verify_shards(shards, cores() if workers is None else workers)
    for line in bad:
        print(line)
    return 1 if bad else 0
