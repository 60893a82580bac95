"""The settings of `remoco prepare`: of the clips, and of the processes that make them. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from datamodules.drawings.framing import LEAST_STEP
from datamodules.shards.flow_codec import STEP
from datamodules.shards.index import ClipShape
from datamodules.trackers.options import DotOptions
from remoco.common.errors import UserError
from remoco.common.pictures import colour_of
from remoco.common.ranges import number, within

DOT_SIDE = 128  # pixels of the least clip that DOT tracks
MAX_CLIPS = 10_000  # starts that are tried in one video
VIDEO_TIMEOUT = 6 * 3600.0
CACHED, CAMERA = "cached", "camera"  # no trackers: clips that come with their tracks, a camera over stills

if not TYPE_CHECKING:  # jsonargparse runs what stands below `if TYPE_CHECKING`
    Frames = number(int, 2)
    Number = number(int, 1)
    Quantum = number(float, 0, 1, above=True)
    Positive = number(float, 0, above=True)
else:
    Frames: TypeAlias = int
    Number: TypeAlias = int
    Quantum: TypeAlias = float
    Positive: TypeAlias = float


@dataclass(frozen=True)
class Settings:
    """What the bytes of a clip depend on."""

    tracker: str = "dis"
    """Tracker: `dis` is optical flow without weights. `tracks` adds sparse tracks to it and takes three times the time.
    `dot` is the tracker of the paper. `cached` takes the tracks that lie beside each video, as in MotionPro's released
    data. `camera` moves a camera over stills. Or the class path of your own, for example my_module.Tracker."""
    dot: DotOptions = DotOptions()
    frames: Frames = 16
    """Frames per clip."""
    fps: Positive = 8.0
    """Frames per second of a clip."""
    height: Number = 320
    """Height of a clip in pixels, a multiple of 16; Stable Video Diffusion takes multiples of 64."""
    width: Number = 512
    """Width of a clip in pixels, a multiple of 16; see `--height`."""
    every: Positive | None = None
    """Seconds from the start of a clip to the start of the next. Default: one clip from the middle of each video."""
    shots: bool = False
    """Detect cuts, and let no clip cross one. With --every, clips start anew in each shot."""
    step: Quantum = STEP
    """Flow quantisation in pixels. It bounds the error of the stored flow where a pixel is visible."""
    fill: Literal["smooth", "none"] | None = None
    """Flow to store where a pixel is not visible. `smooth` stores what takes fewest bytes, about half. `none` keeps
    the tracker's flow, for the dense condition and `visibility_rule: block`. Default: smooth; none for --tracker
    cached."""
    background: str = "white"
    """Colour behind transparent parts of videos, for example `black` or `#00ff00`."""
    max_clips: Number = MAX_CLIPS
    """Most clips to try in one video."""

    def __post_init__(self) -> None:
        within("--frames", self.frames, 2, whole=True)
        within("--fps", self.fps, 0, above=True)
        for name, size in (("--height", self.height), ("--width", self.width)):
            within(name, size, 1, whole=True)
            if size % LEAST_STEP:
                below = size // LEAST_STEP * LEAST_STEP
                nearest = f"{below} or {below + LEAST_STEP}" if below else f"{LEAST_STEP}"
                raise UserError(f"{name} {size}: expected a multiple of {LEAST_STEP}, such as {nearest}")
            if self.tracker == "dot" and size < DOT_SIDE:
                raise UserError(f"{name} {size}: expected at least {DOT_SIDE} for --tracker dot")
        if self.every is not None:
            within("--every", self.every, 0, above=True)
        within("--step", self.step, 0, 1, above=True)
        if self.fill not in ("smooth", "none", None):
            raise UserError(f"--fill is {self.fill!r:.60}, expected smooth or none")
        if self.tracker in (CACHED, CAMERA) and (self.every is not None or self.shots):
            option = "--shots" if self.shots else "--every"
            raise UserError(f"{option}: not with --tracker {self.tracker}, which makes one clip of each source")
        within("--max-clips", self.max_clips, 1, whole=True)
        colour_of(self.background, "--background")

    @property
    def shape(self) -> ClipShape:
        """Shape of the clips."""
        return ClipShape(self.frames, self.height, self.width, float(self.fps))

    @property
    def filling(self) -> str:
        """`fill`, with its default."""
        return self.fill or ("none" if self.tracker == CACHED else "smooth")

    @property
    def colour(self) -> tuple[int, int, int]:
        """R, G, B of the background."""
        return colour_of(self.background)


@dataclass(frozen=True)
class Processes:
    """The processes that prepare videos, and their limits."""

    workers: Number | None = None
    """Number of processes. Default: the number of cores; for --tracker dot the number of GPUs. On a CPU
    --tracker dot takes 2.2 GB for each."""
    timeout: Positive = 600.0
    """Seconds that a clip may take before its video is left out. --tracker dot takes about 240 per clip on
    one CPU core that does nothing else."""
    video_timeout: Positive = VIDEO_TIMEOUT
    """Seconds after which no further clip of a video is started."""
    ray: str | None = None
    """Ray cluster to run on: `auto`, HOST:PORT, or `local` for one that is started here."""

    def __post_init__(self) -> None:
        if self.workers is not None:
            within("--workers", self.workers, 1, whole=True)
        within("--timeout", self.timeout, 0, above=True)
        within("--video-timeout", self.video_timeout, 0, above=True)
