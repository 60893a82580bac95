"""The options of DOT. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from remoco.common.errors import UserError
from remoco.common.ranges import number, within

LEAST_SIDE = 64  # pixels of the refiner

if not TYPE_CHECKING:  # jsonargparse runs what stands below `if TYPE_CHECKING`
    DotSide = number(int, LEAST_SIDE)
    DotTracks = number(int, 1)
else:
    DotSide: TypeAlias = int
    DotTracks: TypeAlias = int


@dataclass(frozen=True)
class DotOptions:
    """Files and settings of DOT. Checkpoints are read without running code from them."""

    estimator_path: str | None = None
    """Checkpoint of the motion boundaries, `cvo_raft_patch_8.pth` of DOT's README."""
    refiner_path: str | None = None
    """Checkpoint of the refiner, `movi_f_raft_patch_4_alpha.pth` of DOT's README."""
    points: Literal["lk", "tapir", "cotracker3", "cotracker2"] = "lk"
    """Sparse tracker: `lk` (OpenCV, needs nothing), `tapir` (Apache-2.0), `cotracker3` or `cotracker2` (CC-BY-NC:
    tracks for non-commercial use)."""
    points_path: str | None = None
    """Checkpoint of the sparse tracker; `lk` has none."""
    points_code: str | None = None
    """Code of the sparse tracker, which is run: for CoTracker a checkout or a name for torch.hub, for TAPIR a checkout
    of tapnet, or nothing where tapnet is installed."""
    height: DotSide = 512
    """Height in pixels at which the refiner works. The clip is resized to it, and the tracks back."""
    width: DotSide = 512
    """Width in pixels at which the refiner works."""
    num_tracks: DotTracks = 2048
    """Number of sparse tracks that the dense ones start from."""
    statistics: Literal["batch", "running"] = "batch"
    """Statistics of the estimator's batch norm: `batch` as in DOT's scripts, or `running` as trained."""

    def __post_init__(self) -> None:
        within("--dot-num-tracks", self.num_tracks, 1, whole=True)
        for name, size in (("height", self.height), ("width", self.width)):
            within(f"--dot-{name}", size, LEAST_SIDE, whole=True)
            if size % 4:
                raise UserError(f"--dot-{name} is {size}, expected a multiple of 4")
