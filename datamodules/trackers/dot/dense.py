"""Dense Optical Tracking (Le Moing, Ponce, Schmid, CVPR 2024): sparse tracks, spread and refined to every pixel.

1. The estimator's flow between neighbouring frames says where the motion changes; points are drawn there and anywhere.
2. A point tracker follows them through the clip.
3. From the source frame to each other, every pixel takes over the nearest point's motion, which the refiner corrects.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.trackers.dot import queries as sampling
from datamodules.trackers.dot.interpolation import nearest, spread, unit_grid
from datamodules.trackers.dot.raft import Features, Raft
from datamodules.trackers.points import PointTracker

VISIBLE = 0.8  # probability above which a pixel counts as seen, as in DOT's evaluation
AT_ONCE = 2048  # points that the point tracker follows together

Sources = Literal["all", "first", "last"]


class DenseTracker:
    """DOT's three questions about a clip (T, 3, h, w) uint8; computes where the networks lie, in their dtype.

    The point tracker and the estimator see the clip as it is, the refiner at `size`. The estimator takes sides of at
    least 128 pixels in multiples of 8, the refiner of at least 64 in multiples of 4.

    Args:
        points: the sparse tracker.
        estimator: weights loaded (`raft.estimator`).
        refiner: weights loaded (`raft.refiner`).
        size: height and width in pixels at which the refiner works.
        num_tracks: points to follow.
        threshold: threshold of the motion boundaries.
        seeds: seeds of the points drawn, for numpy's and torch's stream; the same for every clip.
    """

    def __init__(
        self,
        points: PointTracker,
        estimator: Raft,
        refiner: Raft,
        size: tuple[int, int] = (512, 512),
        num_tracks: int = 2048,
        at_once: int = AT_ONCE,
        threshold: float = sampling.THRESHOLD,
        seeds: tuple[int, int] = (0, 0),
    ) -> None:
        self.points, self.estimator, self.refiner = points, estimator, refiner
        self.size, self.num_tracks, self.at_once, self.threshold, self.seeds = (
            size,
            num_tracks,
            at_once,
            threshold,
            seeds,
        )

    @torch.no_grad()
    def tracks(self, video: Tensor) -> Tensor:
        """(T, H, W, 3): x, y in pixels of `size`, and 0 or 1 for seen, of every pixel of frame 0 in every frame."""
        h, w = self.size
        init, frames = self._init(video, "all"), self._resized(video)
        source = self.refiner.encode(frames[:1])
        index = self._index(init[0])
        x, y = unit_grid(h, w, like=frames).mul(frames.new_tensor([w - 1, h - 1])).unbind(-1)
        frames_tracks = [torch.stack([x, y, torch.ones_like(x)], -1)]
        for t in range(1, len(frames)):
            flow, seen = self._refined(source, self.refiner.encode(frames[t : t + 1], context=False), init, 0, t, index)
            frames_tracks.append(torch.stack([x + flow[..., 0], y + flow[..., 1], seen], -1))
        return torch.stack(frames_tracks)

    @torch.no_grad()
    def tracks_for_queries(self, video: Tensor, queries: Tensor) -> Tensor:
        """(T, S, 3): x, y in pixels of the clip, and 0 or 1 for seen, of each query in every frame.

        Args:
            video: (T, 3, h, w) uint8.
            queries: (S, 3) = frame, **y, x** in pixels of the clip (the order of DOT's evaluation).
        """
        (h, w), (height, width) = self.size, video.shape[2:]
        init, frames = self._init(video, "all"), self._resized(video)
        features = [self.refiner.encode(frame[None]) for frame in frames]
        unit, ends = unit_grid(h, w, like=frames), frames.new_tensor([w - 1, h - 1])
        queries = queries.to(frames)
        clip_ends = frames.new_tensor([width - 1, height - 1])
        tracks = frames.new_zeros(len(frames), len(queries), 3)
        for s in queries[:, 0].unique().int().tolist():
            of = (queries[:, 0] == s).nonzero()[:, 0]
            where = (queries[of][:, [2, 1]] / clip_ends * 2 - 1)[None, :, None]
            index = self._index(init[s])
            for t in range(len(frames)):
                dense = torch.cat([unit, torch.ones_like(unit[..., :1])], -1)
                if t != s:
                    flow, seen = self._refined(features[s], features[t], init, s, t, index)
                    dense = torch.cat([unit + flow / ends, seen[..., None]], -1)
                read = F.grid_sample(dense.permute(2, 0, 1)[None], where, align_corners=True)[0, :, :, 0].T
                tracks[t, of] = torch.cat([read[:, :2] * clip_ends, (read[:, 2:] > 0).to(read)], 1)
        return tracks

    @torch.no_grad()
    def flow_last_to_first(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Flow (H, W, 2) in pixels of `size` from the last frame to the first, and 0 or 1 for seen (H, W).

        DOT's protocol on CVO: points of the last frame only, followed backwards.
        """
        init, frames = self._init(video, "last"), self._resized(video)
        last = len(frames) - 1
        source, target = self.refiner.encode(frames[last:]), self.refiner.encode(frames[:1], context=False)
        return self._refined(source, target, init, last, 0, self._index(init[last]))

    def sparse(self, video: Tensor, sources: Sources = "all") -> Tensor:
        """(T, num_tracks, 3): x, y in pixels of the clip and 0 or 1 for seen, of points drawn in `all` frames, in the
        `first` only, or in the `last` only (then followed backwards).
        """
        weight = self._like()
        if sources == "last":
            video = video.flip(0)
        length, _, height, width = video.shape
        draws = sampling.Draws(*self.seeds)
        boundaries: dict[int, Tensor] = {}
        features: dict[int, Features] = {}
        parts = []
        for first in range(0, self.num_tracks, self.at_once):
            count = min(self.at_once, self.num_tracks - first)
            counts = sampling.per_frame(count, length) if sources == "all" else [count] + [0] * (length - 1)
            drawn = []
            for t, points in enumerate(counts):
                if not points:
                    continue
                if t not in boundaries:
                    boundaries[t] = self._boundaries(video, t, features)
                drawn.append(sampling.sample_queries(t, boundaries[t], points, draws))
            tracks, seen = self.points(video, torch.cat(drawn).to(video.device))
            parts.append(torch.cat([tracks.to(weight), seen[..., None].to(weight)], -1))
        tracks = torch.cat(parts, 1)
        return tracks.flip(0) if sources == "last" else tracks

    def _boundaries(self, video: Tensor, t: int, features: dict[int, Features]) -> Tensor:
        """Of frame t against the one before it; of the first against the second. `features` are filled as needed."""
        pair = (t, t - 1 if t else 1)
        for each in pair:
            if each not in features:
                features[each] = self.estimator.encode(self._unit(video[each : each + 1]))
        flow, _ = self.estimator(*(features[each] for each in pair))
        features.pop(t - 2, None)
        return sampling.motion_boundaries(flow, threshold=self.threshold)[0]

    def _init(self, video: Tensor, sources: Sources) -> Tensor:
        """(T, S, 3): the sparse tracks in shares of the clip's width and height."""
        tracks = self.sparse(video, sources)
        height, width = video.shape[2:]
        return tracks / tracks.new_tensor([width - 1, height - 1, 1])

    def _index(self, points: Tensor) -> Tensor:
        h, w = self.size
        return nearest(points[None], unit_grid(h // 4, w // 4, like=points))

    def _refined(
        self, source: Features, target: Features, init: Tensor, s: int, t: int, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        flow, seen = self.refiner(source, target, *spread(init[s][None], init[t][None], index))
        return flow[0], (seen[0] > VISIBLE).to(flow)

    def _like(self) -> Tensor:
        return next(self.refiner.parameters())

    def _unit(self, video: Tensor) -> Tensor:
        return video.to(self._like()) / 255

    def _resized(self, video: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] at `size`."""
        frames = self._unit(video)
        if tuple(frames.shape[2:]) == tuple(self.size):
            return frames
        return F.interpolate(frames, size=self.size, mode="bilinear", align_corners=False)
