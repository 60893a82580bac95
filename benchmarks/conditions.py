"""Time per clip of making a control and the motion bucket from decoded arrays, beside a loader in the released style.

    python benchmarks/conditions.py [--rounds 15] [--batch 8]

One thread; rounds of all rows interleaved, medians with the quartiles; CUDA rows where torch sees a GPU. Prints the
table of conditions.md. The clips are synthetic: smooth motion of a few pixels a frame, with occlusions.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from a plain checkout

from conditions import DenseFlow, GaussianFiltered, RegionWise, average_magnitude, flow_to_pixels, motion_of  # noqa: E402

FRAMES, HEIGHT, WIDTH, STEP = 16, 320, 512, 0.125


def make_clip(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow (L, 2, H, W) float32 on the 1/8 px grid and visibility (L, H, W)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 3, (FRAMES, 5, 8, 2)).cumsum(axis=0).astype(np.float32)
    hidden = rng.normal(-1.6, 1, (FRAMES, 10, 16)).astype(np.float32)
    size = dict(dsize=(WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    flow = np.stack([cv2.resize(frame, **size) for frame in coarse]).transpose(0, 3, 1, 2)
    visibility = np.stack([cv2.resize(frame, **size) for frame in hidden]) < 0
    flow[0], visibility[0] = 0, True
    return torch.from_numpy(np.round(flow / STEP) * STEP).contiguous(), torch.from_numpy(visibility)


def released_style(flow: np.ndarray, strip: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The released loader's steps, in our own code, from what its files decode to.

    Args:
        flow: (L-1, H, W, 2) float16, frames 2 to L.
        strip: (H, (L-1) * W) uint8, their visibility images side by side.
        rng: draws r_m and the regions.
    """
    flow = np.concatenate([np.zeros_like(flow[:1], dtype=np.float32), flow.astype(np.float32)])
    length, height, width = flow.shape[:3]
    visible = (strip.reshape(height, length - 1, width).transpose(1, 0, 2) > 125).all(axis=0)
    squared = (flow**2).sum(axis=-1)
    moving = squared.mean(axis=0) > 1.0
    bucket = float(np.sqrt(squared).mean())
    blocks = rng.random((height // 8, width // 8)) > rng.uniform(0.95, 1.0)
    blocks &= cv2.resize(visible.astype(np.uint8), (width // 8, height // 8), interpolation=cv2.INTER_NEAREST) > 0
    masked = flow * np.kron(blocks, np.ones((8, 8), np.float32))[None, :, :, None]
    mask = np.repeat(moving.astype(np.float32)[None, :, :, None], length, axis=0)
    control = np.concatenate([masked, mask], axis=-1)
    return np.ascontiguousarray(control.transpose(0, 3, 1, 2)), bucket


def with_bucket(condition, flow, visibility, seed):
    motion = motion_of(flow)
    return condition(flow, visibility, seed, motion), motion.bucket


def rows(batch: int) -> dict[tuple[str, str, int], callable]:
    """(what, device, clips per call) -> the call."""
    clips = [make_clip(seed) for seed in range(batch)]
    flow, visibility = (torch.stack(parts) for parts in zip(*clips))
    stored, seed = ((flow / STEP).round() + 32768).to(torch.int32).to(torch.uint16), torch.arange(batch)
    raw = [np.ascontiguousarray(f[1:].permute(0, 2, 3, 1).half().numpy()) for f, _ in clips]
    strips = [np.concatenate(list(v[1:].numpy().astype(np.uint8) * 255), axis=1) for _, v in clips]
    rng = np.random.default_rng(0)

    table = {("released style, numpy", "cpu", 1): lambda: released_style(raw[0], strips[0], rng)}

    def add(what, device, n, call, *tensors):
        tensors = [tensor[:n].contiguous().to(device) for tensor in tensors]
        table[what, device, n] = lambda: call(*tensors)

    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        for n in (1, batch):
            add("region-wise + bucket", device, n, lambda *x: with_bucket(RegionWise(), *x), flow, visibility, seed)
        add("  of it: magnitude for mask and bucket", device, 1, average_magnitude, flow)
        add("  of it: the control", device, 1, RegionWise(), flow, visibility, seed, motion_of(flow))
        add(
            "region-wise + bucket, from stored uint16",
            device,
            batch,
            lambda f, v, s: with_bucket(RegionWise(), flow_to_pixels(f, STEP), v, s),
            stored,
            visibility,
            seed,
        )
        released = RegionWise(visibility_rule="block", motion_norm="squared")
        add(
            "region-wise, released rules, + bucket",
            device,
            batch,
            lambda *x, released=released: with_bucket(released, *x),
            flow,
            visibility,
            seed,
        )
        add(
            "region-wise k 7 + bucket", device, batch, lambda *x: with_bucket(RegionWise(7), *x), flow, visibility, seed
        )
        add(
            "Gaussian 99, 10 + bucket",
            device,
            batch,
            lambda *x: with_bucket(GaussianFiltered(), *x),
            flow,
            visibility,
            seed,
        )
        add("dense + bucket", device, batch, lambda *x: with_bucket(DenseFlow(), *x), flow, visibility, seed)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    calls = rows(arguments.batch)
    times = {name: [] for name in calls}
    for round_index in range(arguments.rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            if name[1] == "cuda":
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - start
            del result
            if round_index >= 2:  # two rounds to warm up
                times[name].append(elapsed * 1e3 / name[2])
    released = statistics.median(next(iter(times.values())))
    print(
        f"{arguments.rounds} rounds, {FRAMES} x {HEIGHT} x {WIDTH}, torch {torch.__version__}, one thread"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")
    )
    print("\n| what | device | clips per call | ms per clip: median [quartiles] | times faster |")
    print("|---|---|---|---|---|")
    for (what, device, n), values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {what} | {device} | {n} | {middle:.2f} [{low:.2f}..{high:.2f}] | {released / middle:.1f} |")


if __name__ == "__main__":
    main()
