"""Dense Optical Tracking (Le Moing, Ponce, Schmid, CVPR 2024), the tracker of the method, from a checkout of its code.

The checkout's own code loads its own checkpoints. It is somebody else's program: what it does to `sys.path`, the
working folder, the standard streams and the random generators ends with each call (`contained`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np

from datamodules.errors import BadShards, one_line
from datamodules.trackers.base import Tracks
from datamodules.trackers.contained import contained

SIM_TRACKS = 2048
VISIBLE = 0.8  # alpha above it is visible, as in DOT's own evaluation
FILES = ("tracker_config", "tracker_path", "estimator_config", "estimator_path", "refiner_config", "refiner_path")


@dataclass(frozen=True)
class DotOptions:
    """Where DOT's checkout and checkpoints are, and what it runs at.

    Args:
        root: checkout of https://github.com/16lemoing/dot.
        height: that DOT works at, in pixels; the clip is resized to it and the tracks back.
        width: that DOT works at, in pixels.
        num_tracks: sparse tracks that the dense ones start from, a multiple of 2048.
        tracker_config: of the sparse tracker; all files are relative to `root`.
        tracker_path: checkpoint of the sparse tracker.
        estimator_config: of the motion boundaries.
        estimator_path: checkpoint of the motion boundaries.
        refiner_config: of the refiner.
        refiner_path: checkpoint of the refiner.
    """

    root: str | None = None
    height: int = 512
    width: int = 512
    num_tracks: int = SIM_TRACKS
    tracker_config: str = "configs/cotracker2_patch_4_wind_8.json"
    tracker_path: str = "checkpoints/movi_f_cotracker2_patch_4_wind_8.pth"
    estimator_config: str = "configs/raft_patch_8.json"
    estimator_path: str = "checkpoints/cvo_raft_patch_8.pth"
    refiner_config: str = "configs/raft_patch_4_alpha.json"
    refiner_path: str = "checkpoints/movi_f_raft_patch_4_alpha.pth"


class DOT:
    """Tracks of DOT, loaded with the first clip; workers take the GPUs that torch sees in turn.

    `version` holds what the tracks depend on: a hash of the checkout's code, configs and checkpoints, and the sizes.

    Args:
        options: see DotOptions.
        worker: number of this process among those of its machine; it picks the GPU, modulo their count.

    Raises:
        BadShards: no checkout at `root`, a file missing, or a number that DOT cannot work with.
    """

    name = "dot"

    def __init__(self, options: DotOptions, worker: int = 0) -> None:
        self.options, self.worker = options, worker
        self._root, self._files = _check(options)
        sizes = f"{options.height}x{options.width}-{options.num_tracks}"
        self.version = f"1-{_digest(self._root, self._files)}-{sizes}"
        self._modules: dict[str, ModuleType] = {}
        self._model: Any = None

    def __call__(self, frames: np.ndarray) -> Tracks:
        """Track a clip, (L, 3, H, W) uint8."""
        import torch

        with contained(self._root, self._modules), torch.no_grad():
            if self._model is None:
                self._load()
            torch.manual_seed(0)
            np.random.seed(0)
            video = torch.from_numpy(_resized(frames, self.options.height, self.options.width))
            try:
                found = self._model(
                    {"video": video.to(self._device)[None]},
                    mode="tracks_from_first_to_every_other_frame",
                    num_tracks=self.options.num_tracks,
                    sim_tracks=SIM_TRACKS,
                    interpolation_version=self._interpolation,
                )
            except torch.OutOfMemoryError as error:
                raise BadShards(f"--workers: DOT does not fit the GPU's memory: {one_line(error)}") from error
            tracks = found["tracks"].float().cpu().numpy()
        expected = (1, len(frames), self.options.height, self.options.width, 3)
        if tracks.shape != expected:
            raise BadShards(f"--dot-root {self._root}: tracks have shape {tracks.shape}, expected {expected}")
        return to_clip(tracks[0], *frames.shape[2:])

    def _load(self) -> None:
        """Import the checkout's code and let it build its model; runs inside `contained`."""
        import torch

        try:
            from dot.models import create_model

            sizes = {"height": self.options.height, "width": self.options.width}
            model = create_model(SimpleNamespace(model="dot", **sizes, **self._files))
            gpus = torch.cuda.device_count()
            self._device = torch.device(f"cuda:{self.worker % gpus}" if gpus else "cpu")
            self._model = model.to(self._device).eval()
        except Exception as error:  # any program may lie there
            raise BadShards(f"--dot-root {self._root}: DOT does not load: {one_line(error)}") from error
        self._interpolation = _interpolation()


def _interpolation() -> str:
    """DOT's nearest neighbours: its compiled operation where it was built."""
    try:
        import dot.utils.torch3d  # noqa: F401
    except Exception:  # not built, or for another torch
        return "torch"
    return "torch3d"


def _check(options: DotOptions) -> tuple[Path, dict[str, str]]:
    if options.root is None:
        raise BadShards("--tracker dot needs --dot-root, a checkout of https://github.com/16lemoing/dot")
    root = Path(options.root).expanduser().absolute()
    if not (root / "dot" / "models").is_dir() and not (root / "dot" / "models.py").is_file():
        raise BadShards(f"--dot-root {options.root}: dot/models is missing there, expected a checkout of DOT")
    if options.num_tracks < 1 or options.num_tracks % SIM_TRACKS:
        raise BadShards(f"--dot-num-tracks {options.num_tracks}: expected a multiple of {SIM_TRACKS}")
    for name in ("height", "width"):
        if getattr(options, name) < 1 or getattr(options, name) % 8:
            raise BadShards(f"--dot-{name} {getattr(options, name)}: expected a positive multiple of 8")
    files = {name: str(root / getattr(options, name)) for name in FILES}
    for name, path in files.items():
        if not Path(path).is_file():
            raise BadShards(f"--dot-{name.replace('_', '-')} {path}: no such file")
    return root, files


def _digest(root: Path, files: dict[str, str]) -> str:
    digest = hashlib.sha256()
    code = sorted((root / "dot").rglob("*.py"))
    for path in [*code, *(Path(files[name]) for name in FILES)]:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """(L, 3, H, W) uint8 to (L, 3, height, width) float32 in [0, 1]."""
    if frames.shape[2:] != (height, width):
        shrinks = height < frames.shape[2] and width < frames.shape[3]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        frames = np.stack(
            [
                cv2.resize(np.ascontiguousarray(frame.transpose(1, 2, 0)), (width, height), interpolation=method)
                for frame in frames
            ]
        ).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(frames, dtype=np.float32) / 255


def to_clip(tracks: np.ndarray, height: int, width: int) -> Tracks:
    """Points in pixels of DOT's size to displacements and visibility of a clip.

    Args:
        tracks: (L, h, w, 3) = x, y, alpha of every pixel of frame 1.
        height: of the clip.
        width: of the clip.
    """
    h, w = tracks.shape[1:3]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    moved = (tracks[..., :2] - np.stack([x, y], axis=-1)).astype(np.float32)
    seen = (tracks[..., 2] > VISIBLE).astype(np.float32)
    if (h, w) != (height, width):
        size = (width, height)
        moved = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in moved])
        seen = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in seen])
        moved *= np.array([width / w, height / h], np.float32)
    visibility = seen > 0.5
    moved[0], visibility[0] = 0, True
    return Tracks(np.ascontiguousarray(moved.transpose(0, 3, 1, 2)), visibility)
