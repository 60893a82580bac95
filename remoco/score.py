"""`remoco score`: the paper's metrics of any system's videos; `remoco sprite-bench`: a benchmark with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from datamodules.drawings import Fit
from remoco import configs
from remoco.common.errors import UserError
from remoco.common.whole_files import check_writable, write_json
from remoco.flags import cause


def score(
    videos: str,
    bench: str | None = None,
    reference: str | None = None,
    metrics: str | None = None,
    json: str | None = None,
    frames: int = 16,
    skip_unreadable: bool = False,
    fit: Fit = "crop",
    device: str | None = None,
) -> None:
    """Score a folder of videos of any system, against a benchmark's tracks or against reference videos.

    Args:
        videos: Folder with `<level>/<sample>.mp4`, or with the names of the reference videos.
        bench: Root of a benchmark in the layout of ReMoCo-Bench.
        reference: Folder of reference videos.
        metrics: YAML file with a list of metrics (configs/eval/metrics.yaml). Default: stand-ins that need no weights.
        json: File to write the results to.
        frames: Number of frames that are scored, from the start of each video.
        skip_unreadable: Leave out and count videos that are missing, too short or not readable.
        fit: How the system brought the benchmark's images to its videos' shapes: `crop` as `remoco generate` does,
            `pad`, or `stretch` for a system that squeezes them.
        device: Torch device of the networks, for example `cuda:0` or `cpu`. Default: the GPU if there is one.

    Example:
        remoco score generated/videos --bench bench --json scores.json
    """
    from datamodules.bench import data_of, scoring
    from metrics import shown
    from metrics.published import tables
    from remoco.devices import usable_device

    if (bench is None) == (reference is None):
        raise UserError("--bench, --reference: give exactly one of them")
    if frames < 2:
        raise UserError(f"--frames is {frames}, expected at least 2")
    place = usable_device(device)
    if json is not None:
        check_writable(json, "--json")
    judges = scoring.offline_metrics() if metrics is None else read_metrics(metrics)
    if bench is not None:
        folder = scoring.for_bench(videos, bench, frames, skip_unreadable, fit)
    else:
        folder = scoring.for_reference(videos, str(reference), frames, skip_unreadable)
    for line in folder.left_out:
        print(f"left out: {line}")
    results = scoring.score_folder(folder, judges, place)
    for name, result in results.items():
        print(f"{name} = {shown(result['value'], 4)}   [{result['protocol']}]")
    data = data_of(bench) if bench is not None else f"videos beside the real clips of {reference}"
    print("\n" + tables({videos: results}, data))
    if json is not None:
        write_json(Path(json), results)
        print(f"wrote {json}")


def read_metrics(path: str) -> list[Any]:
    """The `metrics.VideoMetric`s of a YAML file: a list of `class_path` with `init_args`.

    Raises:
        UserError: the file is missing, or an entry is no metric.
    """
    from metrics import VideoMetric

    if not Path(path).exists():
        raise UserError(f"--metrics {path}: no such file")
    entries = configs.load(Path(path), "--metrics")
    if not isinstance(entries, list) or not entries:
        wrong = "empty, " if not entries else ""
        raise UserError(f"--metrics {path}: {wrong}expected a list of metrics, as configs/eval/metrics.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=list[VideoMetric])
    try:
        return parser.instantiate_classes(parser.parse_object({"metrics": entries})).metrics
    except Exception as error:  # jsonargparse and a metric's own checks
        raise UserError(f"--metrics {path}: {cause(error)}") from error


def sprite_bench(
    root: str,
    pairs: int = 8,
    height: int = 128,
    width: int = 192,
    frames: int = 16,
    seed: int = 0,
    scene: Literal["varied", "plain"] = "varied",
) -> None:
    """Write a small benchmark with known answers, from sprites: tracks, brushes, and the true clips.

    Args:
        root: New folder for the benchmark; its true clips lie in `true_clips`.
        pairs: Number of samples of each level.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        frames: Number of frames of a true clip.
        seed: Seed of the scenes.
        scene: Kind of scenes. `varied` ones have textured objects and cameras that move; `plain` ones have one even
            object over a still gradient, which the sprites model of the package knows.

    Example:
        remoco sprite-bench bench --pairs 8
    """
    from datamodules.bench.sprites import TRUE_CLIPS, write_sprite_bench

    if pairs < 1:
        raise UserError(f"--pairs is {pairs}, expected at least 1")
    if seed < 0:
        raise UserError(f"--seed is {seed}, expected at least 0")
    write_sprite_bench(root, pairs, height, width, frames, seed, scene)
    print(f"wrote {root}: {2 * pairs} pairs, and what a perfect system would generate in {Path(root) / TRUE_CLIPS}")
