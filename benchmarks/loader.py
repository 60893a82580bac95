"""Clips per second of one core: our data path beside a loader in the released style, with and without cached latents.

    python benchmarks/loader.py [--released CHECKOUT] [--rounds 10] [--batch 4] [--profile]

Every path begins at files (in the page cache) and ends with what a training step takes from the host:

- with --released, the released loader itself, imported from a checkout of https://github.com/HiDream-ai/MotionPro, with
  the `data` section of its configs/train_debug_from_tar.yaml, but our tar, our batch size and no workers. What it
  imports must be there: torchvision, iopath, matplotlib, imageio, einops, colorlog;
- without, an imitation in our own code: a tar read in order, per clip an mp4 decoded with decord, displacements as
  float16 npy, visibility as a JPEG strip; all made float, frames in [-1, 1]; the region-wise control with mask and
  bucket in numpy (`kron`); collated by default. It takes less than the original;
- ours: `WebVidDataModule`'s loader, uint8 video, uint16 flow and bool visibility in one batch. The control is made
  from it on the device; the last row adds making it here, on the CPU.

One process, one thread. Rounds are interleaved; medians of CPU time per clip (`time.process_time`), wall time beside
it. The clips are the 8 generated ones of clip_set.py.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import clip_set
import cv2
import harness
import numpy as np
import safetensors.numpy
import torch
import yaml
from torch.utils.data import DataLoader, IterableDataset

from conditions import RegionWise
from datamodules import WebVidDataModule
from datamodules.shards import FLOW, LATENT, MASKS, VIDEO, ClipShape, flow_codec, mask_codec, samples, write_index
from datamodules.shards.writer import ShardWriter
from lightning_modules.clips import control_of
from remoco.common.videos import mp4

try:
    import decord
except (ImportError, OSError):
    decord = None

SHAPE = ClipShape(clip_set.FRAMES, clip_set.HEIGHT, clip_set.WIDTH, clip_set.FPS)


class ReleasedStyle(IterableDataset):
    """Clips of the released layout, one after the other, each with its dense floats and its control."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        with tarfile.open(self.path) as tar:
            members: dict[str, bytes] = {}
            for info in tar:
                members[info.name.split(".", 1)[1]] = tar.extractfile(info).read()
                if len(members) == 5:
                    yield released_sample(members, rng)
                    members = {}


def released_config(checkout: Path) -> dict[str, Any]:
    """Arguments of the released data module."""
    config = checkout / "configs" / "train_debug_from_tar.yaml"
    if not config.is_file():
        sys.exit(f"--released {checkout}: {config.relative_to(checkout)} is missing there, expected the checkout")
    return yaml.safe_load(config.read_text())["data"]["params"]


def released_loader(checkout: Path, folder: Path, batch: int) -> Iterable[dict[str, Any]]:
    """The released loader, unmodified, over the tars of a folder."""
    given = released_config(checkout)
    given["train_set"]["params"]["data_path"] = str(folder)
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    try:
        from dataset.video_dataset_flow_tar import VideoDataset
    except ImportError as error:
        sys.exit(f"--released {checkout}: {error}")
    with contextlib.redirect_stdout(io.StringIO()):  # it tells how many tars there are
        data = VideoDataset(**{**given, "batch_size": batch, "num_workers": 0})
        data.setup()
        return data.train_dataloader()


def released_sample(members: dict[str, bytes], rng: np.random.Generator) -> dict[str, Any]:
    flow = np.load(io.BytesIO(members["npy"]), allow_pickle=False)
    strip = cv2.imdecode(np.frombuffer(members["jpg"], np.uint8), cv2.IMREAD_GRAYSCALE)
    frames = released_frames(members["mp4"]).astype(np.float32) / 127.5 - 1
    control, bucket = released_style(flow, strip, rng)
    dense = np.concatenate([np.zeros_like(flow[:1]), flow]).astype(np.float32)
    visible = strip.reshape(SHAPE.height, SHAPE.frames - 1, SHAPE.width).transpose(1, 0, 2).astype(np.float32) / 255
    return {
        "video": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
        "flow": np.ascontiguousarray(dense.transpose(0, 3, 1, 2)),
        "visibility": np.ascontiguousarray(visible),
        "control": control,
        "bucket": np.float32(bucket),
        "fps": json.loads(members["json"])["fps"],
    }


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


def released_frames(data: bytes) -> np.ndarray:
    """(L, H, W, 3) uint8, with decord where there is a wheel."""
    if decord is None:
        return mp4.decode_mp4(data, (SHAPE.frames, 3, SHAPE.height, SHAPE.width)).transpose(0, 2, 3, 1)
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    return reader.get_batch(range(len(reader))).asnumpy()


def write_released(path: Path, clips: list[clip_set.Tracked]) -> float:
    """The released layout; MB per clip."""
    with tarfile.open(path, "w") as tar:
        for number, clip in enumerate(clips):
            flow = io.BytesIO()
            np.save(flow, np.ascontiguousarray(clip.flow[1:].transpose(0, 2, 3, 1)).astype(np.float16))
            strip = np.concatenate(list(clip.visibility[1:].astype(np.uint8) * 255), axis=1)
            jpeg = cv2.imencode(".jpg", strip)[1].tobytes()
            meta = json.dumps({"fps": SHAPE.fps}).encode()
            video = clip.encode()[VIDEO]
            members = {"mp4": video, "npy": flow.getvalue(), "jpg": jpeg, "json": meta, "txt": clip.name.encode()}
            for kind, data in members.items():
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path.stat().st_size / len(clips) / 1e6


def write_ours(folder: Path, clips: list[clip_set.Tracked], latents: bool) -> float:
    """Our layout; MB per clip. The latents are random: reading them costs the same."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with_latents = {"vae": "benchmark", "image_encoder": "benchmark"} if latents else None
    with ShardWriter(folder / "00000-000.tar") as writer:
        for number, clip in enumerate(clips):
            members = clip.encode()
            if latents:
                size = (SHAPE.frames, 4, SHAPE.height // 8, SHAPE.width // 8)
                mean, std = rng.normal(size=size).astype(np.float16), rng.random(size).astype(np.float16)
                embedding = rng.normal(size=(1, 1024)).astype(np.float16)
                members[LATENT] = safetensors.numpy.save(
                    {"latent_mean": mean, "latent_std": std, "image_embedding": embedding}
                )
            writer.write(f"clip-{number}", members)
    entry = writer.entry
    write_index(folder, SHAPE, [entry], with_latents, fill="smooth")
    return entry["bytes"] / len(clips) / 1e6


def ours(folder: Path, batch: int) -> DataLoader:
    data = WebVidDataModule(str(folder), batch_size=batch, num_workers=0, height=SHAPE.height, width=SHAPE.width)
    return data.train_dataloader()


def with_condition(loader: DataLoader) -> Iterator[torch.Tensor]:
    """The batches' controls and buckets, made on the CPU."""
    condition, control = RegionWise(), None
    for batch in loader:
        control = control_of(condition, batch, batch["position"], out=control)
        yield control, batch["motion_bucket"]


def timed(batches: Any, clips: int) -> tuple[float, float]:
    """CPU and wall ms per clip of one pass."""
    _, cpu, wall = harness.timed(lambda: collections.deque(batches, 0))
    return cpu / clips * 1e3, wall / clips * 1e3


def profile(folder: Path) -> None:
    """Where our time goes: CPU ms per clip of each part, over the clips of a set."""
    data = WebVidDataModule(str(folder), num_workers=0, height=SHAPE.height, width=SHAPE.width).train_set.shards
    size, n = (SHAPE.height, SHAPE.width), int(data.counts[0])
    kinds = (VIDEO, FLOW, MASKS, "json", LATENT)
    clips = [data.read(0, number, kinds) for number in range(n)]
    out = {name: np.empty(*spec) for name, spec in samples.arrays(SHAPE, latents=False).items()}
    parts: dict[str, Callable[[dict[str, bytes]], Any]] = {
        "flow": lambda m: flow_codec.decode_flow(m[FLOW], (SHAPE.frames, 2, *size), out["flow"]),
        "video": lambda m: mp4.decode_mp4(m[VIDEO], (SHAPE.frames, 3, *size), out["video"]),
        "first frame alone": lambda m: mp4.decode_first_frame(m[VIDEO], (3, *size)),
        "masks": lambda m: mask_codec.decode_masks(m[MASKS], out["visibility"], out["moving"]),
        "latents": lambda m: samples.read_latents(m[LATENT], SHAPE),
    }
    passes = {"read and CRC-32, with latents": lambda: (data.read(0, number, kinds) for number in range(n))}
    passes |= {name: partial(map, part, clips) for name, part in parts.items()}
    times = {name: [timed(make(), n)[0] for _ in range(5)] for name, make in passes.items()}
    rows = [[name, f"{statistics.median(each):.1f}"] for name, each in times.items()]
    print("", harness.table(["part", "CPU ms per clip"], rows), sep="\n")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--released", type=Path, metavar="CHECKOUT", help="of MotionPro; else an imitation of it")
    parser.add_argument("--profile", action="store_true", help="print where our time goes")
    arguments = parser.parse_args()
    if arguments.released:
        released_config(arguments.released)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        clips = [clip_set.generated(number) for number in range(clip_set.GENERATED)]
        (root / "released").mkdir()
        baseline = "released" if arguments.released else "imitation of the released"
        sizes = {
            baseline: write_released(root / "released" / "0.tar", clips),
            "ours": write_ours(root / "ours", clips, latents=False),
            "ours, cached latents": write_ours(root / "latents", clips, latents=True),
        }
        sizes["ours + control on the CPU"] = sizes["ours"]
        paths: dict[str, Callable[[], Any]] = {
            baseline: lambda: (
                released_loader(arguments.released, root / "released", arguments.batch)
                if arguments.released
                else DataLoader(ReleasedStyle(root / "released" / "0.tar"), arguments.batch)
            ),
            "ours": lambda: ours(root / "ours", arguments.batch),
            "ours, cached latents": lambda: ours(root / "latents", arguments.batch),
            "ours + control on the CPU": lambda: with_condition(ours(root / "ours", arguments.batch)),
        }
        passes = {name: lambda make=make: timed(make(), len(clips)) for name, make in paths.items()}
        report(harness.interleaved(passes, arguments.rounds), sizes)
        if arguments.profile:
            profile(root / "latents")


def report(times: dict[str, list[tuple[float, float]]], sizes: dict[str, float]) -> None:
    baseline = next(iter(times))
    reference = [statistics.median(column) for column in zip(*times[baseline])]
    rounds = len(times[baseline])
    print(f"{rounds} interleaved rounds, one process, one thread, torch {torch.__version__}\n")
    rows = []
    for what, pairs in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*pairs))
        low, _, high = statistics.quantiles([pair[0] for pair in pairs], n=4)
        against = f"{reference[0] / cpu:.1f}", f"{wall:.1f}", f"{reference[1] / wall:.1f}"
        rows.append([what, f"{sizes[what]:.2f}", f"{cpu:.1f} [{low:.1f}..{high:.1f}]", f"{1e3 / cpu:.1f}", *against])
    heads = ["loader", "MB per clip", "CPU ms per clip [quartiles]", "clips/s per core", "times", "wall ms", "times"]
    print(harness.table(heads, rows))


if __name__ == "__main__":
    main()
