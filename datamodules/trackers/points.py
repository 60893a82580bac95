"""Tracks of single points: where pixels of some frames are in all frames, and whether they are seen there.

| tracker | needs | licence |
|---|---|---|
| `LucasKanade` | nothing | Apache-2.0 (OpenCV) |
| `Tapir` | tapnet's code and a checkpoint | both Apache-2.0 |
| `CoTracker` | co-tracker's code (torch.hub or a checkout) and a checkpoint | CC-BY-NC 4.0: not for commercial use |
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datamodules.trackers.weights import digest, existing, load_weights, read_weights
from remoco.common.errors import UserError, one_line

CO_TRACKER = "facebookresearch/co-tracker"


class PointTracks(NamedTuple):
    """tracks (L, M, 2) float32: x, y in pixels, centres at integers; visible (L, M) bool. In its own frame a query is
    where it was asked, and visible.
    """

    tracks: Tensor
    visible: Tensor


class PointTracker(Protocol):
    """Follows points of any frames through all frames.

    Call it with `video` (L, 3, H, W) uint8 and `queries` (M, 3) float: frame, x, y of each point; frames count from 0.
    It computes where `video` lies, and answers there. The same input gives the same bits on a CPU. `name` and `version`
    say what the tracks depend on.
    """

    name: str
    version: str

    def __call__(self, video: Tensor, queries: Tensor) -> PointTracks:
        """Follow the queries."""
        ...


class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2001, in OpenCV), frame by frame from the query's, forwards and backwards.

    A step counts where the way back ends within `tolerance` of its start. A point that the steps lose is matched with
    its own query frame from where they led, which finds it again after it was hidden. Where that fails too it is not
    visible, and continues with the step that failed, or with `fallback`'s.

    Args:
        window: side of the matched patch in pixels.
        tolerance: distance in pixels that the way forth and back may miss its start by.
        fallback: `dis` looks where the steps lose a point whether dense optical flow (DIS) holds it.
    """

    name = "lk"

    def __init__(self, window: int = 11, tolerance: float = 0.3, fallback: Literal["dis"] | None = None) -> None:
        if not 3 <= window <= 255:
            raise UserError(f"LucasKanade.window is {window}, expected 3 to 255 pixels")
        if not 0 <= tolerance < float("inf"):
            raise UserError(f"LucasKanade.tolerance is {tolerance}, expected a number of at least 0")
        self.window, self.tolerance, self.fallback = window, tolerance, fallback
        self.version = f"1-opencv-{cv2.__version__}-{window}-{tolerance:g}-{fallback or 'none'}"

    def __call__(self, video: Tensor, queries: Tensor) -> PointTracks:
        asked = queries.detach().cpu().numpy().astype(np.float32)
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the bits must not depend on the machine's cores
        try:
            tracks, visible = self._follow(_grey(video), asked)
        finally:
            cv2.setNumThreads(threads)
        return PointTracks(torch.from_numpy(tracks).to(video.device), torch.from_numpy(visible).to(video.device))

    def _follow(self, grey: list[np.ndarray], queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length, start = len(grey), queries[:, 0].astype(int)
        tracks = np.repeat(queries[None, :, 1:], length, axis=0)
        visible = np.ones((length, len(queries)), dtype=bool)
        for step in (1, -1):
            order = range(length)[::step]
            for before, now in zip(order, order[1:]):
                moving = np.flatnonzero((start <= before) if step > 0 else (start >= before))
                if not len(moving):
                    continue
                points, held = self._step(grey[before], grey[now], tracks[before, moving])
                held &= visible[before, moving]
                for frame in np.unique(start[moving[~held]]):
                    of = np.flatnonzero(~held & (start[moving] == frame))
                    starts = queries[moving[of], 1:]
                    matched, good = self._match(grey[frame], grey[now], starts, points[of], levels=1)
                    points[of[good]], held[of] = matched[good], good
                tracks[now, moving], visible[now, moving] = points, held & _inside(points, grey[now].shape)
        return tracks, visible

    def _step(self, first: np.ndarray, second: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matched, held = self._match(first, second, points, points, levels=4)
        if self.fallback == "dis" and not held.all():
            forth, back = _dis(first, second), _dis(second, first)
            moved = points + _read(forth, points)
            miss = np.linalg.norm(moved + _read(back, moved) - points, axis=-1)
            matched = np.where(held[:, None], matched, moved)
            held |= miss < self.tolerance
        return matched, held

    def _match(
        self, first: np.ndarray, second: np.ndarray, points: np.ndarray, guess: np.ndarray, levels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(found, held): points of `first` in `second`, searched from `guess`; held where the way back returns."""
        options: dict[str, Any] = dict(
            winSize=(self.window, self.window),
            maxLevel=levels,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        points = np.ascontiguousarray(points, dtype=np.float32)
        matched, good, _ = cv2.calcOpticalFlowPyrLK(first, second, points, guess.copy(), **options)
        # from the displacement mirrored, not from the answer: a match that is wrong should not find its own start
        back, good_back, _ = cv2.calcOpticalFlowPyrLK(second, first, matched, matched - (guess - points), **options)
        miss = np.linalg.norm(back - points, axis=-1)
        return matched, (good[:, 0] > 0) & (good_back[:, 0] > 0) & (miss < self.tolerance)


class _Network(ABC):
    """A tracker of other people's code, with weights that are read on the first call.

    Args:
        path: path of the checkpoint.
        what: it is, for the error where there is none.
    """

    def __init__(self, path: str | None, what: str) -> None:
        self._file = existing(path, "--dot-points-path", what)
        self.version = f"1-{digest(self._file)}"
        self._model: Any = None

    def __call__(self, video: Tensor, queries: Tensor) -> PointTracks:
        if self._model is None:
            self.load()
        self._model.to(video.device)
        with torch.no_grad(), own_streams(video.device):
            return self._follow(video, queries.to(video.device, torch.float32))

    def load(self) -> None:
        """Build the model and read its weights, which the first call does otherwise."""
        with own_streams():
            model, network = self._build()
        load_weights(network, self._file, "--dot-points-path")
        self._model = model.eval()

    @abstractmethod
    def _build(self) -> tuple[nn.Module, nn.Module]:
        """What is called, and the part of it that the checkpoint holds."""

    @abstractmethod
    def _follow(self, video: Tensor, queries: Tensor) -> PointTracks:
        """`__call__` on one device."""


class CoTracker(_Network):
    """CoTracker3 offline, or CoTracker2 (Karaev et al., ECCV 2024 and 2024), by its own code. CC-BY-NC 4.0.

    Args:
        path: checkpoint: `scaled_offline.pth` of CoTracker3; `cotracker2.pth`, or the one that DOT tuned on MOVi-F.
        code: a checkout of https://github.com/facebookresearch/co-tracker, or its name for torch.hub, which downloads
            it on first use; both run that code.
        model: which of its models `path` belongs to.

    Raises:
        UserError: no such file or checkout; with `load`, weights that do not fit the model.
    """

    def __init__(
        self,
        path: str | None,
        code: str = CO_TRACKER,
        model: Literal["cotracker3", "cotracker2"] = "cotracker3",
    ) -> None:
        super().__init__(path, f"a checkpoint of {model}")
        self.name: str = model
        self._code = code
        self._local = _is_folder(code)
        if self._local and not (Path(os.path.expanduser(code)) / "hubconf.py").is_file():
            raise UserError(
                f"--dot-points-code {code}: hubconf.py is missing there, expected a checkout of {CO_TRACKER}"
            )

    def _build(self) -> tuple[nn.Module, nn.Module]:
        entry = "cotracker3_offline" if self.name == "cotracker3" else "cotracker2"
        source = str(Path(os.path.expanduser(self._code))) if self._local else self._code
        try:
            model = torch.hub.load(
                source, entry, source="local" if self._local else "github", trust_repo=True, pretrained=False
            )
        except Exception as error:  # any program may lie there
            raise UserError(f"--dot-points-code {self._code}: {entry} does not load: {one_line(error)}") from error
        return model, model.model

    def _follow(self, video: Tensor, queries: Tensor) -> PointTracks:
        backward = bool((queries[:, 0] > 0).any())
        tracks, visible = self._model(video.float()[None], queries=queries[None], backward_tracking=backward)
        return PointTracks(tracks[0].float(), visible[0].bool())


class Tapir(_Network):
    """TAPIR or BootsTAPIR (Doersch et al., ICCV 2023 and ACCV 2024), DeepMind's PyTorch release. Apache-2.0.

    The checkpoint shows which of the two it is. Visible where (1 - occlusion) (1 - expected distance) > 0.5. Its own
    coordinates count from the frame's corner: a pixel's centre is at + 0.5 (`tapnet/torch/utils.py`).

    Args:
        path: `bootstapir_checkpoint_v2.pt` or `tapir_checkpoint_panning.pt`, or those that DOT's README names.
        code: a checkout of https://github.com/google-deepmind/tapnet (needs dm-tree and einshape installed); where
            None, the installed `tapnet`.
        centres: how it gets pixels. `half`: as it counts them. `whole`: as we and DOT's released code do, which
            follows points half a pixel left of and above those that are meant.

    Raises:
        UserError: no such file or code; with `load`, weights that do not fit.
    """

    name = "tapir"

    def __init__(self, path: str | None, code: str | None = None, centres: Literal["half", "whole"] = "half") -> None:
        super().__init__(path, "a checkpoint of TAPIR or BootsTAPIR")
        self._corner = 0.5 if centres == "half" else 0.0
        if centres == "half":
            self.version = self.version.replace("1-", "2-", 1)
        self._code = Path(os.path.expanduser(code)).absolute() if code else None
        if self._code and not (self._code / "tapnet" / "torch" / "tapir_model.py").is_file():
            raise UserError(
                f"--dot-points-code {code}: tapnet/torch/tapir_model.py is missing there, "
                "expected a checkout of https://github.com/google-deepmind/tapnet"
            )

    def _build(self) -> tuple[nn.Module, nn.Module]:
        boots = any(name.startswith("extra_convs.") for name in read_weights(self._file, "--dot-points-path"))
        try:
            with _importable(self._code):
                module = importlib.import_module("tapnet.torch.tapir_model")
            # configs/tapir_config.py and configs/tapir_bootstrap_config.py of the release
            settings = {"pyramid_level": int(boots), "extra_convs": boots}
            model = module.TAPIR(softmax_temperature=10.0 if boots else 20.0, **settings)
        except Exception as error:  # any program may lie there
            where = self._code or "not given"
            raise UserError(f"--dot-points-code {where}: TAPIR does not load: {one_line(error)}") from error
        return model, model

    def _follow(self, video: Tensor, queries: Tensor) -> PointTracks:
        asked = queries + queries.new_tensor([0, self._corner, self._corner])
        out = self._model(video.permute(0, 2, 3, 1)[None].float() / 127.5 - 1, asked[None, :, [0, 2, 1]])
        tracks = out["tracks"][0].transpose(0, 1).float() - self._corner
        seen = (1 - out["occlusion"][0].sigmoid()) * (1 - out["expected_dist"][0].sigmoid())
        visible = seen.T > 0.5
        frame, place = queries[:, 0].long(), torch.arange(len(queries), device=queries.device)
        tracks[frame, place], visible[frame, place] = queries[:, 1:], True
        return PointTracks(tracks, visible)


def _grey(video: Tensor) -> list[np.ndarray]:
    frames = video.cpu().numpy().transpose(0, 2, 3, 1)
    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]


def _dis(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return method.calc(first, second, None)  # type: ignore[call-overload]  # OpenCV's stub wants a first guess


def _read(flow: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(M, 2): the flow at points; beyond the border its last value."""
    x, y = np.ascontiguousarray(points[:, :1]), np.ascontiguousarray(points[:, 1:])
    return cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]


def _inside(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    x, y = points.T
    return (x >= -0.5) & (x < size[1] - 0.5) & (y >= -0.5) & (y < size[0] - 0.5)


def _is_folder(code: str) -> bool:
    """Whether `code` is a path; `owner/name` for torch.hub is one only where such a folder lies."""
    return Path(os.path.expanduser(code)).is_dir() or code.startswith((".", "~", os.sep)) or code.count("/") != 1


@contextlib.contextmanager
def own_streams(device: torch.device | None = None) -> Iterator[None]:
    """Let other people's code draw, from seeds of its own; torch's, numpy's and Python's generators are then put back.

    TAPIR permutes its queries by torch's global generator, and CoTracker's modules reseed it where they are imported.

    Args:
        device: whose generator is kept, beside the CPU's and those of the GPUs in use.
    """
    gpus = torch.cuda.is_initialized() or (device is not None and device.type == "cuda")
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if gpus else []):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _importable(root: Path | None) -> Iterator[None]:
    if root is None:
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
