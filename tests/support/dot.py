"""DOT's networks and tracks against recorded ones.

    python -m tests.support.dot FOLDER            every recorded tensor of FOLDER, how far ours is from it

FOLDER holds `fixtures/` and the two `keys_*.json`, as described in docs/dot.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

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
        self._networks = {}
        for name, make in (("estimator", estimator), ("refiner", refiner)):
            network = make().to(dtype)
            network.load_state_dict(recorded_weights(self.folder / f"weights_{name}.json"))
            self._networks[name] = network.requires_grad_(False)

    def network(self, name: str, statistics: Statistics = "batch") -> Raft:
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
        draws, masks = self.draws(1), recorded["masks"].bool()

        def points(frame: int, some: Tensor, count: int) -> Tensor:
            return torch.stack([sampling.sample_queries(frame, mask, count, draws) for mask in some]).to(self.dtype)

        yield "points_step2_n20", points(2, masks[:2], 20)
        yield "points_step0_n7", points(0, masks[1:], 7)

    def interpolation(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        source, target = recorded["src_points"], recorded["tgt_points"]
        grid = unit_grid(20, 24, like=source)
        index = nearest(source, grid, limit=1000)
        yield "grid", grid
        yield "idx", index.int()
        yield from zip(("flow", "alpha"), spread(source, target, index))
        hidden = torch.cat([source[..., :2], torch.zeros_like(source[..., 2:])], -1)
        nothing = torch.cat([target[..., :2], torch.zeros_like(target[..., 2:])], -1)
        none = spread(hidden, nothing, nearest(hidden, grid))
        yield from zip(("none_visible.flow", "none_visible.alpha"), none)

    def refiner(self, recorded: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        network = self.network("refiner")
        source, target = (network.encode(frame) for frame in self.frames(recorded))
        points = recorded["src_points"]
        index = nearest(points, unit_grid(16, 18, like=points))
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
            video = recorded[f"{name}.video_u8"][0]

            def tracker(case: dict = case, name: str = name) -> DenseTracker:
                seed = self.report["spec"]["rs"]
                points = Recorded(recorded[f"{name}.traj"][0], recorded[f"{name}.vis"][0])
                networks = self.network("estimator"), self.network("refiner")
                sizes = {"size": tuple(case["res"]), "num_tracks": case["N"], "at_once": case["S"]}
                return DenseTracker(points, *networks, **sizes, threshold=THRESHOLD, seeds=(seed + 3, seed + 4))

            dense = tracker()
            tracks = dense.tracks(video)[None]
            yield f"{name}.tracks_stride5", tracks[:, :, ::5, ::5]
            yield f"{name}.tracks_crop", tracks[:, 1:, :16, -16:]
            if self.dtype == torch.float32:
                yield f"float32_run.{name}.tracks_stride5", tracks[:, :, ::5, ::5]
            yield f"{name}.queries_all", torch.stack(dense.points.asked)[:, None].to(self.dtype)
            for which in ("first", "last"):
                dense = tracker()
                dense.sparse(video, which)
                yield f"{name}.queries_{which}", torch.stack(dense.points.asked)[:, None].to(self.dtype)
            queries = recorded[f"{name}.query_points_tyx"][0]
            yield f"{name}.tracks_for_queries", tracker().tracks_for_queries(video, queries)[None]
            if f"{name}.flow_last_to_first_stride5" in recorded:
                flow, alpha = tracker().flow_last_to_first(video)
                yield f"{name}.flow_last_to_first_stride5", flow[None, ::5, ::5]
                yield f"{name}.alpha_last_to_first_stride5", alpha[None, ::5, ::5]

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
