"""End-point error and visibility of every tracker against the exact tracks of the sprites.

    python benchmarks/trackers.py [--clips 24] [--height 320] [--width 512] \
        [--dot-estimator-path E --dot-refiner-path R [--dot-points lk|tapir|cotracker3|cotracker2 ...]]

Prints the table of trackers.md. DOT only with its checkpoints (docs/data.md); `no motion` is the
floor that a tracker has to beat.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from a plain checkout

from datamodules.scene import random_scene, render, tracks  # noqa: E402
from datamodules.trackers import DIS, DOT, DotOptions, Tracks  # noqa: E402

SEED = 4  # of the scenes; the training set of the quick start has other ones


class Still:
    """Says that nothing moves and everything is seen."""

    name, version = "no motion", ""

    def __call__(self, frames: np.ndarray) -> Tracks:
        length, _, height, width = frames.shape
        return Tracks(np.zeros((length, 2, height, width), np.float32), np.ones((length, height, width), bool))


def score(found: Tracks, flow: np.ndarray, visibility: np.ndarray) -> dict[str, float]:
    """Over frames 2 to L. EPE in px over the pixels that are visible, and over the others; < 1 px as a share of the
    visible; the share of pixels whose visibility is right, and of what is called visible, how much is."""
    error = np.hypot(*(found.flow - flow)[1:].transpose(1, 0, 2, 3))
    seen, said = visibility[1:], found.visibility[1:]
    return {
        "EPE visible": float(error[seen].mean()),
        "median": float(np.median(error[seen])),
        "< 1 px": 100 * float((error[seen] < 1).mean()),
        "EPE hidden": float(error[~seen].mean()) if not seen.all() else float("nan"),
        "EPE said visible": float(error[said].mean()) if said.any() else float("nan"),
        "visibility right": 100 * float((seen == said).mean()),
        "precision": 100 * float(seen[said].mean()) if said.any() else float("nan"),
        "recall": 100 * float(said[seen].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=512)
    for name in ("estimator-path", "refiner-path", "points-path", "points-code"):
        parser.add_argument(f"--dot-{name}")
    parser.add_argument("--dot-points", default="lk")
    parser.add_argument("--dot-num-tracks", type=int, default=2048)
    options = parser.parse_args()
    trackers = [Still(), DIS()]
    if options.dot_estimator_path:
        dot = {name[4:]: value for name, value in vars(options).items() if name.startswith("dot_")}
        trackers.append(DOT(DotOptions(**dot)))
    scores: dict[str, dict[str, list[float]]] = {each.name: defaultdict(list) for each in trackers}
    moved = []
    for number in range(options.clips):
        scene = random_scene([SEED, number], options.frames, options.height, options.width)
        video, (flow, visibility) = render(scene), tracks(scene)
        moved.append(float(np.hypot(*flow[1:].transpose(1, 0, 2, 3)).mean()))
        for tracker in trackers:
            begin = time.perf_counter()
            found = tracker(video)
            row = scores[tracker.name]
            row["s per clip"].append(time.perf_counter() - begin)
            for name, value in score(found, flow, visibility).items():
                row[name].append(value)
    size = f"{options.frames} x {options.height} x {options.width}"
    print(f"{options.clips} clips of {size}, mean |flow| {min(moved):.1f} to {max(moved):.1f} px\n")
    names = [*next(iter(scores.values()))]
    print("| tracker | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for tracker in trackers:
        cells = [f"{np.nanmean(scores[tracker.name][name]):.2f}" for name in names]
        print(f"| {tracker.name} {tracker.version} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
