"""Dense Optical Tracking (Le Moing, Ponce, Schmid, CVPR 2024), the tracker of the method, with its released weights.

The networks are ours and compute what the released code computes (docs/dot.md); the weights are not part of this
project, and whose they are is in docs/data.md.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from datamodules.trackers.base import Tracks
from datamodules.trackers.dot.dense import DenseTracker
from datamodules.trackers.dot.raft import estimator, refiner
from datamodules.trackers.options import DotOptions
from datamodules.trackers.points import CO_TRACKER, CoTracker, LucasKanade, PointTracker, Tapir
from datamodules.trackers.weights import digest, existing, load_weights
from remoco.common.errors import UserError

ESTIMATOR = "cvo_raft_patch_8.pth"
REFINER = "movi_f_raft_patch_4_alpha.pth"


class DOT:
    """Tracks of DOT; workers take the GPUs that torch sees in turn, with the first clip.

    Clips have sides of at least 128 pixels. On a CPU the same clip gives the same bits for any number of workers:
    each runs on one thread. `version` holds what the tracks depend on: hashes of the checkpoints, the sparse tracker,
    sizes, number of tracks and the batch norm's statistics.

    Args:
        options: see DotOptions.
        worker: number of this process among those of its machine; it picks the GPU, modulo their count.

    Raises:
        UserError: a file is missing, weights do not fit, or a number that DOT cannot work with; a clip too small.
    """

    name = "dot"

    def __init__(self, options: DotOptions, worker: int = 0) -> None:
        self.options, self.worker = options, worker
        files = {
            "--dot-estimator-path": existing(
                options.estimator_path, "--dot-estimator-path", f"{ESTIMATOR}, see docs/data.md"
            ),
            "--dot-refiner-path": existing(options.refiner_path, "--dot-refiner-path", f"{REFINER}, see docs/data.md"),
        }
        points = make_points(options)
        with torch.random.fork_rng(devices=[]):
            networks = estimator(), refiner()
        for network, (option, path) in zip(networks, files.items()):
            load_weights(network, path, option)
            network.requires_grad_(False)
        networks[0].use_statistics(options.statistics)
        parts = (
            f"{options.height}x{options.width}-{options.num_tracks}-{options.statistics}",
            *map(digest, files.values()),
            f"{points.name}-{points.version}",
        )
        self.version = "2-" + "-".join(parts)
        self._dense = DenseTracker(points, *networks, (options.height, options.width), options.num_tracks)

    def __call__(self, frames: np.ndarray) -> Tracks:
        """Track a clip, (L, 3, H, W) uint8."""
        threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
        torch.set_num_threads(1)  # the bits must not depend on the machine's cores
        try:
            with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
                gpus = torch.cuda.device_count()
                device = torch.device(f"cuda:{self.worker % gpus}" if gpus else "cpu")
                self._dense.estimator.to(device), self._dense.refiner.to(device)
                video = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
                tracks = self._dense.tracks(video).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise UserError(f"--workers: DOT does not fit the GPU's memory: {str(error).splitlines()[0]}") from error
        finally:
            torch.set_num_threads(threads)
        return to_clip(tracks, *frames.shape[2:])


def make_points(options: DotOptions) -> PointTracker:
    """The sparse tracker that the options name, its weights read.

    Raises:
        UserError: a file or its code is missing, or the weights do not fit.
    """
    path, code = options.points_path, options.points_code
    if options.points == "lk":
        if path or code:
            raise UserError(
                f"--dot-points lk: expected neither --dot-points-path nor --dot-points-code, got {path or code}"
            )
        return LucasKanade()
    tracker: Any  # Tapir or CoTracker: the networks in them have their own types
    if options.points == "tapir":
        tracker = Tapir(path, code, centres="whole")
    else:
        tracker = CoTracker(path, code or CO_TRACKER, options.points)
    tracker.load()
    return tracker


def to_clip(tracks: np.ndarray, height: int, width: int) -> Tracks:
    """Points in pixels of the refiner's size to displacements and visibility of a clip.

    Args:
        tracks: (L, h, w, 3) = x, y and 0 or 1 for seen, of every pixel of frame 1.
        height: height of the clip.
        width: width of the clip.
    """
    h, w = tracks.shape[1:3]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    moved = (tracks[..., :2] - np.stack([x, y], axis=-1)).astype(np.float32)
    seen = tracks[..., 2].astype(np.float32)
    if (h, w) != (height, width):
        size = (width, height)
        moved = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in moved])
        seen = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in seen])
        moved *= np.array([width / w, height / h], dtype=np.float32)
    visibility = seen > 0.5
    moved[0], visibility[0] = 0, True
    return Tracks(np.ascontiguousarray(moved.transpose(0, 3, 1, 2)), visibility)
