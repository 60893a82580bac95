"""DOT's networks and tracks against recorded ones.

    python -m tests.support.dot FOLDER            every recorded tensor of FOLDER, how far ours is from it

FOLDER holds `fixtures/` and the two `keys_*.json`, as described in docs/dot.md. Sizes, grids and batches are those of
the recorded tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from datamodules.trackers.dot import queries as sampling
from datamodules.trackers.dot.dense import VISIBLE, DenseTracker
from datamodules.trackers.dot.interpolation import nearest, spread, unit_grid
from datamodules.trackers.dot.raft import Raft, Statistics, estimator, refiner
from datamodules.trackers.points import PointTracks

NAMES = ("estimator", "boundaries", "sampling", "interpolation", "refiner", "e2e")
THRESHOLD = 0.3  # of the boundaries in the recorded end-to-end runs: random weights are above 0.025 nearly everywhere


def procedural(seed: int, key: str, shape: list[int], gains: dict[str, float]) -> np.ndarray:
    """One tensor of the recorded weights: uniform from crc32(seed:key), scaled by the kind of tensor."""
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    uniform = 2 * np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode())).random_sample(tuple(shape)) - 1
    if leaf == "weight" and len(shape) == 4:
        gain = math.prod(value for name, value in sorted(gains.items()) if name in key)
        return (gain * math.sqrt(3 / math.prod(shape[1:])) * uniform).astype(np.float32)
    return (1 + 0.2 * uniform if leaf in ("weight", "running_var") else 0.1 * uniform).astype(np.float32)


def recorded_weights(path: Path) -> dict[str, Tensor]:
    """The state dict that a `weights_*.json` describes, its checksum compared."""
    record = json.loads(path.read_text())
    shapes = json.loads((path.parents[1] / Path(record["keys_file"]).name).read_text())["keys"]
    arrays = {key: procedural(record["seed"], key, shape, record["gains"]) for key, shape in shapes.items()}
    found = hashlib.sha256()
    for key in sorted(arrays):
        found.update(key.encode() + np.ascontiguousarray(arrays[key]).tobytes())
    assert found.hexdigest() == record["sha256"], f"{path}: not the weights the outputs were recorded with"
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class Recorded:
    """A point tracker that answers with recorded tracks, in turn, and keeps what it was asked."""

    name, version = "recorded", "1"

    def __init__(self, tracks: Tensor, visible: Tensor) -> None:
        self._tracks, self._visible = tracks, visible
        self.asked: list[Tensor] = []

    def __call__(self, video: Tensor, queries: Tensor) -> PointTracks:
        start = sum(map(len, self.asked))
        self.asked.append(queries)
        some = slice(start, start + len(queries))
        return PointTracks(self._tracks[:, some], self._visible[:, some])


class Fixtures:
    """Recorded tensors of a folder, and the same computed here.

    Args:
        folder: with `fixtures/` in it.
        dtype: in which ours are computed.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.folder, self.dtype = folder / "fixtures", dtype
        self.report = json.loads((self.folder / "report.json").read_text())
        self._networks: dict[str, Raft] = {}

    def network(self, name: str, statistics: Statistics = "batch") -> Raft:
        if name not in self._networks:
            network = {"estimator": estimator, "refiner": refiner}[name]().to(self.dtype)
            network.load_state_dict(recorded_weights(self.folder / f"weights_{name}.json"))
            self._networks[name] = network.requires_grad_(False)
        self._networks[name].use_statistics(statistics)
        return self._networks[name]

    def read(self, name: str) -> dict[str, Tensor]:
        tensors = load_file(self.folder / f"{name}.safetensors")
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in tensors.items()}

    def differences(self, names: tuple[str, ...] = NAMES) -> dict[str, float]:
        """Largest absolute difference of every recorded output; of masks, the share of pixels that differ.

        Args:
            names: of the files, without `.safetensors`; those that the folder does not have are left out.
        """
        found = {}
        for name in names:
            if not (self.folder / f"{name}.safetensors").is_file():
                continue
            recorded = self.read(name)
            for key, ours in getattr(self, name)(recorded):
                if key not in recorded:
                    continue
                theirs = recorded[key]
                assert ours.shape == theirs.shape, f"{name}/{key}: {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
                if theirs.is_floating_point():
                    found[f"{name}/{key}"] = (ours - theirs).abs().max().item()
                else:
                    found[f"{name}/{key}"] = (ours != theirs).double().mean().item()
        return found

    def frames(self, recorded: dict[str, Tensor]) -> Iterator[Tensor]:
        return (recorded[name].to(self.dtype) / 255 for name in ("src_u8", "tgt_u8"))

    def estimator(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for mode in ("batch", "running"):
            network = self.network("estimator", mode)
            source, target = (network.encode(frame) for frame in self.frames(recorded))
            steps = list(network.steps(source, target))
            flow, _ = network.upsampled(steps[-1])
            iterations = range(12) if mode == "batch" else (0, 11)
            if mode == "batch":
                yield "fmap_src_every32", source.matched[:, ::32]
                yield "corr_first", steps[0].corr[..., ::7, ::8]
                yield "batch.corr_last", steps[-1].corr[..., ::8, ::9]
                yield "batch.motion_boundaries_0.3", sampling.motion_boundaries(flow, threshold=0.3)
            yield f"{mode}.cmap_src_every32", source.context[:, ::32]
            yield f"{mode}.net_first_every32", steps[0].net[:, ::32]
            yield f"{mode}.coarse_flow_iters", torch.stack([steps[i].flow for i in iterations], 1)
            yield f"{mode}.flow_stride5", flow[:, ::5, ::5]
            yield f"{mode}.flow_crop", flow[:, :16, -16:]

    def boundaries(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        flow = recorded["flow"]
        yield "sobel3", sampling.sobel(1, flow)
        yield "sobel5", sampling.sobel(2, flow)
        yield "default.map", sampling.boundary_map(flow)
        yield "dilation1.map", sampling.boundary_map(flow, dilation=1)
        yield "default.mask", sampling.motion_boundaries(flow)
        yield "size2.mask", sampling.motion_boundaries(flow, size=2)
        yield "dilation1.mask", sampling.motion_boundaries(flow, dilation=1)
        yield "dilation3_thresh0.2.mask", sampling.motion_boundaries(flow, dilation=3, threshold=0.2)

    def sampling(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The draws follow each other, the largest step's first; it takes the first masks, the others the last ones."""
        draws, masks = self.draws(1), recorded["masks"].bool()
        keys = sorted((key for key in recorded if key != "masks"), reverse=True)
        for number, key in enumerate(keys):
            step, count = (int(digits) for digits in re.findall(r"\d+", key))
            items = len(recorded[key])
            some = masks[-items:] if number else masks[:items]
            yield key, torch.stack([sampling.sample_queries(step, mask, count, draws) for mask in some]).to(self.dtype)

    def interpolation(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        source, target = recorded["src_points"], recorded["tgt_points"]
        height, width = next(recorded[key] for key in ("flow", "none_visible.flow", "grid") if key in recorded).shape[
            -3:-1
        ]
        grid = unit_grid(height, width, like=source)
        index = nearest(source, grid, limit=1000)
        yield "grid", grid
        yield "idx", index.int()
        yield from zip(("flow", "alpha"), spread(source, target, index))
        hidden = torch.cat([source[..., :2], torch.zeros_like(source[..., 2:])], -1)
        none = spread(hidden, target, nearest(hidden, grid))  # what the target frame sees stays as it is
        yield from zip(("none_visible.flow", "none_visible.alpha"), none)

    def refiner(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        network = self.network("refiner")
        source, target = (network.encode(frame) for frame in self.frames(recorded))
        points = recorded["src_points"]
        height, width = source.matched.shape[2:]
        index = nearest(points, unit_grid(height, width, like=points))
        coarse_flow, coarse_alpha = spread(points, recorded["tgt_points"], index)
        steps = list(network.steps(source, target, coarse_flow, coarse_alpha))
        each = [network.upsampled(step) for step in steps]
        yield from (("coarse_flow", coarse_flow), ("coarse_alpha", coarse_alpha))
        yield "fmap_src_every32", source.matched[:, ::32]
        yield "cmap_src_every32", source.context[:, ::32]
        yield "corr_first", steps[0].corr[..., ::7, ::8]
        yield "net_first_every32", steps[0].net[:, ::32]
        yield "coarse_flow_iters", torch.stack([step.flow for step in steps], 1)
        yield "alpha_logit_iters", torch.stack([step.logit for step in steps], 1)
        yield "flow_iters_stride5", torch.stack([flow[:, ::5, ::5] for flow, _ in each], 1)
        yield "alpha_iters_stride5", torch.stack([alpha[:, ::5, ::5] for _, alpha in each], 1)
        yield from (("flow", each[-1][0]), ("alpha_prob", each[-1][1]), ("alpha_mask", each[-1][1] > VISIBLE))
        if self.dtype == torch.float32:  # its logit of 1 is another one: compared with a run in float32
            yield "float32_run.alpha_logit_iters", steps[-1].logit[:, None]
            yield "float32_run.flow_iters_stride5", each[-1][0][:, None, ::5, ::5]
            yield "float32_run.alpha_iters_stride5", each[-1][1][:, None, ::5, ::5]

    def e2e(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for case in self.report["spec"]["e2e"]:
            name = case["name"]
            videos = recorded[f"{name}.video_u8"]

            def trackers(case: dict = case, name: str = name) -> list[DenseTracker]:
                return [self._tracker(case, *pair) for pair in zip(recorded[f"{name}.traj"], recorded[f"{name}.vis"])]

            dense = trackers()
            tracks = torch.stack([each.tracks(video) for each, video in zip(dense, videos)])
            yield f"{name}.tracks_stride5", tracks[:, :, ::5, ::5]
            yield f"{name}.tracks_crop", tracks[:, 1:, :16, -16:]
            if self.dtype == torch.float32:
                yield f"float32_run.{name}.tracks_stride5", tracks[:, :, ::5, ::5]
            yield f"{name}.queries_all", self._queries(case, videos, "all", dense)
            for which in ("first", "last"):
                dense = trackers()
                for each, video in zip(dense, videos):
                    each.sparse(video, which)
                yield f"{name}.queries_{which}", self._queries(case, videos, which, dense)
            asked = zip(trackers(), videos, recorded[f"{name}.query_points_tyx"])
            found = [each.tracks_for_queries(video, queries) for each, video, queries in asked]
            yield f"{name}.tracks_for_queries", torch.stack(found)
            if f"{name}.flow_last_to_first_stride5" in recorded:
                back = [each.flow_last_to_first(video) for each, video in zip(trackers(), videos)]
                yield f"{name}.flow_last_to_first_stride5", torch.stack([flow for flow, _ in back])[:, ::5, ::5]
                yield f"{name}.alpha_last_to_first_stride5", torch.stack([seen for _, seen in back])[:, ::5, ::5]

    def _tracker(self, case: dict[str, Any], tracks: Tensor, visible: Tensor) -> DenseTracker:
        seed = self.report["spec"]["rs"]
        networks = self.network("estimator"), self.network("refiner")
        sizes = {"size": tuple(case["res"]), "num_tracks": case["N"], "at_once": case["S"]}
        return DenseTracker(
            Recorded(tracks, visible), *networks, **sizes, threshold=THRESHOLD, seeds=(seed + 3, seed + 4)
        )

    def _queries(self, case: dict[str, Any], videos: Tensor, which: str, dense: list[DenseTracker]) -> Tensor:
        """(batches, B, S, 3): what the point tracker was asked. DenseTracker takes one clip at a time; of several the
        released code normalises and draws together, frame by frame, which is done here by the same functions.
        """
        if len(videos) == 1:
            return torch.stack(dense[0].points.asked)[:, None].to(self.dtype)
        videos = (videos.flip(1) if which == "last" else videos).to(self.dtype) / 255
        length, network, draws = videos.shape[1], self.network("estimator"), self.draws(3)
        counts = sampling.per_frame(case["S"], length) if which == "all" else [case["S"]]
        masks = []
        for t in range(len(counts)):
            flow, _ = network(*(network.encode(videos[:, each]) for each in (t, t - 1 if t else 1)))
            masks.append(sampling.motion_boundaries(flow, threshold=THRESHOLD))
        batches = [
            [[sampling.sample_queries(t, mask, n, draws) for mask in masks[t]] for t, n in enumerate(counts) if n]
            for _ in range(case["N"] // case["S"])
        ]
        return torch.stack([torch.cat([torch.stack(items) for items in batch], 1) for batch in batches]).to(self.dtype)

    def draws(self, offset: int) -> sampling.Draws:
        seed = self.report["spec"]["rs"] + offset
        return sampling.Draws(seed, seed + 1)

    def recorded_float32(self, key: str) -> float | None:
        """How far the released code in float32 was from itself in float64."""
        entry = self.report["tensors"].get(key, {})
        flips = entry.get("float32_flips")
        return entry.get("float32_maxdiff") if flips is None else flips / entry["n"]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    exact, single = (Fixtures(folder, dtype) for dtype in (torch.float64, torch.float32))
    double, float32 = exact.differences(), single.differences()
    print("| tensor | float64 | float32 | released code, float32 |\n|---|---|---|---|")
    for key in float32:
        theirs = exact.recorded_float32(key)
        cells = [double.get(key), float32[key], theirs]
        print(f"| {key} | " + " | ".join("" if cell is None else f"{cell:.1e}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
