"""Videos of each system: one system in memory at a time, no video sampled twice, on one device or a Ray cluster."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from callbacks.made_by import RECORD, as_json, clip_seed, refuse_to_mix
from datamodules.bench import LEVELS, read_pair
from remoco.common.errors import UserError
from remoco.common.ray_connection import connected
from remoco.common.videos.files import write_video
from remoco.common.whole_files import clear_leftovers, write_json
from remoco.compare.rows import Row
from remoco.systems import fingerprint, load_system, sampled

if TYPE_CHECKING:
    from lightning_modules.systems.system import System

ABOUT = "system.json"  # what the system says of itself
ATTEMPTS = 3  # more, after a kill
REFRESH = 1.0  # seconds


def check_folder(row: Row, out: Path, seed: int, samples: dict[str, str]) -> None:
    """Refuse to mix videos of other weights or settings; delete those whose inputs have changed.

    Args:
        row: the system.
        out: folder of the comparison.
        seed: seed of the noise.
        samples: key -> fingerprint of the inputs.

    Raises:
        UserError: one line that names what differs.
    """
    folder = row.folder(out)
    made = as_json({"choice": asdict(row.choice), "weights": fingerprint(row.choice), "dtype": row.dtype, "seed": seed})
    there = any((folder / f"{key}.mp4").is_file() for key in samples)
    remedy = "give this row another `name`, or another --out"
    known = refuse_to_mix(folder, made, f"{folder}: holds videos", remedy, empty=not there).get("inputs") or {}
    for level in LEVELS:
        (folder / level).mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder / level)
    for key, digest in samples.items():
        if known.get(key, digest) != digest:
            (folder / f"{key}.mp4").unlink(missing_ok=True)
    write_json(folder / RECORD, made | {"inputs": known | samples})


def check_loads(row: Row, out: Path, keys: list[str], device: str) -> None:
    """Load a system that has videos to sample, and let go of it: hours of others' samples come after its errors.

    Raises:
        UserError: it does not load; one line.
    """
    if any(not (row.folder(out) / f"{key}.mp4").is_file() for key in keys):
        _loaded(row, out, device)
        _free()


def sample(row: Row, out: Path, bench: Path, keys: list[str], seed: int, device: str) -> dict[str, str]:
    """Sample the videos that are not there.

    Args:
        row: the system.
        out: folder of the comparison.
        bench: the cropped benchmark.
        keys: samples to do.
        seed: seed of the noise; each pair has its own, the same for every system.
        device: torch device.

    Returns:
        Key -> why the system does not take the sample.

    Raises:
        UserError: the system does not load, or does not sample; one line.
    """
    folder = row.folder(out)
    missing = [key for key in keys if not (folder / f"{key}.mp4").is_file()]
    if not missing and (folder / ABOUT).is_file():
        return {}
    system = _loaded(row, out, device)
    refused: dict[str, str] = {}
    for key in tqdm(missing, desc=row.name, unit="video"):
        drawing = read_pair(bench, key).drawing
        try:
            frames = sampled(system, drawing, clip_seed(seed, key))
        except UserError as error:
            refused[key] = str(error)
            continue
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{row.name}: {key}: {' '.join(str(error).split())}") from error
        write_video(folder / f"{key}.mp4", frames, system.fps)
    del system
    _free()
    return refused


def _loaded(row: Row, out: Path, device: str) -> System:
    """A row's system, whose description is written."""
    import torch

    try:
        system = load_system(row.choice, torch.device(device), getattr(torch, row.dtype))
    except UserError as error:
        raise UserError(f"{row.name}: {error}") from error
    about = {"title": system.name, "protocol": system.protocol, "size": system.size, "frames": system.frames}
    write_json(row.folder(out) / ABOUT, about | {"fps": system.fps, "stand_in": row.stand_in or system.stand_in})
    return system


def _free() -> None:
    """The memory of a system that nothing holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sample_on_ray(
    rows: list[Row], work: Callable[[Row, int, int], dict[str, str]], address: str, count: Callable[[], int], total: int
) -> dict[str, dict[str, str]]:
    """All rows on a cluster, a row's samples shared among its GPUs; what is killed is started again.

    Args:
        rows: the systems.
        work: does a row's part k of n.
        address: `auto`, HOST:PORT, or `local`.
        count: number of videos that are there, for the progress bar.
        total: number of videos wanted.

    Raises:
        UserError: Ray is not installed, the cluster is not reached, or a part failed.
    """
    refused: dict[str, dict[str, str]] = {row.name: {} for row in rows}
    with connected(address, workers=1) as ray, tqdm(total=total, desc="videos", unit="video") as bar:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        parts = max(gpus, 1)

        def part_of(row: Row, part: int, of: int) -> dict[str, str]:  # Ray takes functions alone
            return work(row, part, of)

        # a process for each part: the memory of the system before is gone
        task = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=0, max_calls=1)(part_of)
        jobs = [(row, part) for row in rows for part in range(parts)]
        left = {task.remote(row, part, parts): (row, part, ATTEMPTS) for row, part in jobs}
        while left:
            for reference in ray.wait(list(left), num_returns=len(left), timeout=REFRESH)[0]:
                row, part, more = left.pop(reference)
                try:
                    refused[row.name] |= ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise UserError(str(error.cause)) from error
                except ray.exceptions.RayError:
                    if not more:
                        raise UserError(f"{row.name}: its process was killed {ATTEMPTS + 1} times") from None
                    left[task.remote(row, part, parts)] = row, part, more - 1
            bar.n = count()
            bar.refresh()
    return refused


def videos_of(rows: list[Row], out: Path, samples: dict[str, Any]) -> int:
    """How many videos are there."""
    return sum((row.folder(out) / f"{key}.mp4").is_file() for row in rows for key in samples)
