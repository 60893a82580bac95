"""MD-Vid and MD-Img: how far generated motion is from the drawn tracks (ReMoCo sec. 4.1; tables 2 and 3)."""

from typing import Any, Protocol

import torch
from torch import Tensor

from metrics.base import Clip, VideoMetric, check_video
from metrics.correspondence import PointFeatures, RandomPointFeatures, match
from remoco.common.errors import UserError

BLOCK = 8  # pixels around each start that the tracker is asked for (released evaluation)


class PointTracker(Protocol):
    """Video (L, 3, H, W) uint8 and queries (M, 3) frame, x, y to tracks (L, M, 2) x, y in pixels and visible (L, M)."""

    name: str
    version: str

    def __call__(self, video: Any, queries: Any) -> Any:  # Any: a config's class is compared annotation by annotation
        ...


def start_pixels(starts: Tensor, height: int, width: int) -> Tensor:
    """(N, 2) int64: the pixel that each start (N, 2) x, y lies on, rounded down as a drawing's regions are.

    Raises:
        UserError: a start outside the frame.
    """
    pixels = starts.floor().long() if starts.is_floating_point() else starts.long()
    inside = (pixels >= 0) & (pixels < pixels.new_tensor([width, height]))
    if not inside.all():
        x, y = starts[~inside.all(1)][0].tolist()
        raise UserError(f"start ({x:g}, {y:g}) lies outside the frame of {height} x {width}")
    return pixels


def track_queries(starts: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What a point tracker is asked for: an 8 x 8 block of points, a pixel apart, around each start, in frame 0.

    A tracker follows a point better among its neighbours; only the start itself is scored. Near the border the block is
    cut off, and the released script then reads other points' tracks; here the returned index stays with its start. A
    start between pixels is asked for where it is: its block is the one of the pixel it lies on, moved by the fraction.

    Args:
        starts: (N, 2) pixels x, y of the tracks' first points, inside the frame.
        height: Height of the frame.
        width: Width of the frame.

    Returns:
        (M, 3) float32 queries frame, x, y, and (N,) int64 index of each start among them.

    Raises:
        UserError: a start outside the frame.
    """
    queries: list[tuple[float, float, float]] = []
    centres: list[int] = []
    pixels = start_pixels(starts, height, width)
    for (x, y), (more_x, more_y) in zip(pixels.tolist(), (starts - pixels).tolist(), strict=True):
        xs = range(max(0, x - BLOCK // 2), min(width, x + BLOCK // 2))
        ys = range(max(0, y - BLOCK // 2), min(height, y + BLOCK // 2))
        block = [(column, row) for column in xs for row in ys]
        centres.append(len(queries) + block.index((x, y)))
        queries += [(0.0, column + more_x, row + more_y) for column, row in block]
    return torch.tensor(queries).reshape(-1, 3), torch.tensor(centres, dtype=torch.int64)


class MeanTrackDistance(VideoMetric):
    """Euclidean distance in pixels between the points of generated and of drawn tracks in frames 1..L-1.

    Mean over tracks and frames per video, then over videos (macro, the value); `micro` is the mean over all points.
    What finds the points makes it MD-Vid or MD-Img.

    Example:
        >>> import torch
        >>> from metrics import MeanTrackDistance
        >>> metric = MeanTrackDistance()
        >>> metric.update(torch.zeros(1, 15, 2), torch.tensor([3.0, 4.0]).expand(1, 15, 2))
        >>> metric.compute().item()
        5.0
    """

    name = "mean_track_distance"
    needs = ("tracks",)
    in_pixels = True
    total: Tensor
    point_total: Tensor
    points: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, dtype in (("total", torch.float64), ("point_total", torch.float64), ("points", torch.int64)):
            self.add_state(name, torch.tensor(0, dtype=dtype), dist_reduce_fx="sum")

    def update(self, tracks: Tensor, target: Tensor) -> None:
        """Add one video.

        Args:
            tracks: (N, L-1, 2) x, y that were found for the N starts, in frames 1..L-1.
            target: (N, L-1, 2) x, y of the drawn tracks, PCHIP through their key points.

        Raises:
            UserError: the shapes differ, there is no track, or a coordinate is not finite.
        """
        if tracks.shape != target.shape or tracks.ndim != 3 or tracks.shape[2] != 2 or tracks.numel() == 0:
            raise UserError(
                f"tracks {tuple(tracks.shape)} and target {tuple(target.shape)}: expected the same (N, L-1, 2), "
                "N and L-1 at least 1"
            )
        distance = torch.linalg.vector_norm(tracks.double() - target.double(), dim=-1)
        if not distance.isfinite().all():
            raise UserError("tracks: expected finite coordinates")
        self.total += distance.mean()
        self.point_total += distance.sum()
        self.points += distance.numel()
        self.clips += 1

    def find(self, video: Tensor, starts: Tensor) -> Tensor:
        """(L, 3, H, W) uint8 and (N, 2) starts x, y in frame 0 -> (N, L-1, 2) x, y in frames 1..L-1."""
        raise NotImplementedError

    def add(self, clip: Clip) -> None:
        check_video(clip.video)
        if clip.tracks.shape[1] != len(clip.video):
            raise UserError(f"tracks have {clip.tracks.shape[1]} frames, the video {len(clip.video)}")
        # a track of a rescaled benchmark starts between pixels: rounding its start would be an error of its own
        tracks = self.find(clip.video, clip.tracks[:, 0])
        self.update(tracks.to(self.total.device), clip.tracks[:, 1:].to(self.total.device))

    def value(self) -> Tensor:
        return self.total / self.clips

    def describe(self) -> str:
        return (
            "distance in pixels, starts with their fractions, frames 1 to L-1, mean per video, then over videos "
            "(micro: over points)"
        )

    def extra(self) -> dict[str, float]:
        return {"micro": float(self.point_total / self.points)}


class MDVid(MeanTrackDistance):
    """MD-Vid: the points are followed by a video tracker, asked for the 8 x 8 pixels around each start.

    Named `md_vid` with CoTracker3, the published one; `md_vid_<tracker>` with any other.

    Args:
        tracker: a point tracker, for instance of `datamodules.trackers.points`.
    """

    def __init__(self, tracker: PointTracker, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tracker = tracker
        self.name = "md_vid" if tracker.name == "cotracker3" else f"md_vid_{tracker.name}"

    def find(self, video: Tensor, starts: Tensor) -> Tensor:
        queries, centres = track_queries(starts, *video.shape[-2:])
        tracks, _ = self.tracker(video.to(self.total.device), queries.to(self.total.device))
        return tracks[1:, centres.to(tracks.device)].transpose(0, 1)

    def describe(self) -> str:
        return (
            f"tracker {self.tracker.name} {self.tracker.version}, 8 x 8 queries around each start; {super().describe()}"
        )


class MDImg(MeanTrackDistance):
    """MD-Img (DragDiffusion, Shi et al. 2024): the start's feature is matched by cosine in every generated frame.

    The feature is that of the pixel which the start lies on; the pixel that it matches is moved by the start's
    fraction.

    Named `md_img` with DIFT on Stable Diffusion 2.1, the published one; otherwise after the features.

    Args:
        feature: features of every pixel: `DIFTFeatures`, or seeded random ones when not given.
    """

    def __init__(self, feature: PointFeatures | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature = RandomPointFeatures() if feature is None else feature
        self.name = "md_img" if self.feature.name == "dift" else f"md_img_{self.feature.name}"

    def load(self) -> None:
        self.feature.load()

    def find(self, video: Tensor, starts: Tensor) -> Tensor:
        pixels = start_pixels(starts, *video.shape[-2:])
        video = video.to(self.total.device)
        first = self.feature(video[0])
        tracks = [match(first, self.feature(frame), pixels, *video.shape[-2:]) for frame in video[1:]]
        return torch.stack(tracks, dim=1) + (starts - pixels).to(self.total.device)[:, None]

    def describe(self) -> str:
        return f"{self.feature.protocol}; cosine argmax over the frame; {super().describe()}"
