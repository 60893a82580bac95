"""MD-Vid: how far generated motion is from the drawn tracks, by a point tracker (ReMoCo sec. 4.1; tables 2, 3)."""

from typing import Any

import torch
import torchmetrics
from torch import Tensor

BLOCK = 8  # pixels around each start that the tracker is asked for (released evaluation)


def track_queries(starts: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What a point tracker is asked for: the 8 x 8 block of pixels around each start, in frame 0.

    A tracker follows a point better among its neighbours; only the start itself is scored. Near the border the block is
    cut off, and the released script then reads other points' tracks; here the returned index stays with its start.

    Args:
        starts: (N, 2) integer pixels x, y of the tracks' first points, inside the frame.
        height: Height of the frame.
        width: Width of the frame.

    Returns:
        (M, 3) float32 queries frame, x, y, and (N,) int64 index of each start among them.

    Raises:
        ValueError: a start outside the frame.
    """
    queries: list[tuple[float, float, float]] = []
    centres: list[int] = []
    for x, y in starts.tolist():
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"start ({x}, {y}) lies outside the frame of {height} x {width}")
        xs = range(max(0, x - BLOCK // 2), min(width, x + BLOCK // 2))
        ys = range(max(0, y - BLOCK // 2), min(height, y + BLOCK // 2))
        block = [(0.0, float(column), float(row)) for column in xs for row in ys]
        centres.append(len(queries) + block.index((0.0, float(x), float(y))))
        queries += block
    return torch.tensor(queries).reshape(-1, 3), torch.tensor(centres, dtype=torch.int64)


class MeanTrackDistance(torchmetrics.Metric):
    """MD-Vid: Euclidean distance in pixels between the points of generated and of drawn tracks in frames 1..L-1.

    Mean over tracks and frames per video, then over videos. The state is a float64 sum and a count: the result does not
    depend on the number of processes, if each video is given once.

    Example:
        >>> import torch
        >>> from metrics import MeanTrackDistance
        >>> metric = MeanTrackDistance()
        >>> metric.update(torch.zeros(1, 15, 2), torch.tensor([3.0, 4.0]).expand(1, 15, 2))
        >>> metric.compute().item()
        5.0
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    total: Tensor
    videos: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("videos", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, tracks: Tensor, target: Tensor) -> None:
        """Add one video.

        Args:
            tracks: (N, L-1, 2) x, y that the tracker found for the N starts, in frames 1..L-1.
            target: (N, L-1, 2) x, y of the drawn tracks, PCHIP through their key points.

        Raises:
            ValueError: the shapes differ, or there is no track.
        """
        if tracks.shape != target.shape or tracks.ndim != 3 or tracks.shape[2] != 2 or tracks.numel() == 0:
            raise ValueError(
                f"tracks {tuple(tracks.shape)} and target {tuple(target.shape)}: expected the same (N, L-1, 2)"
            )
        self.total += torch.linalg.vector_norm(tracks.double() - target.double(), dim=-1).mean()
        self.videos += 1

    def compute(self) -> Tensor:
        """The mean over videos, float64 in pixels.

        Raises:
            RuntimeError: no video was given.
        """
        if self.videos == 0:
            raise RuntimeError("MD-Vid needs at least one video")
        return self.total / self.videos
