"""End-point error and visibility of every tracker against the exact tracks of the sprites.

    python benchmarks/trackers.py [--clips 24] [--height 320] [--width 512] \
        [--dot-estimator-path E --dot-refiner-path R [--dot-points lk|tapir|cotracker3|cotracker2 ...]]

    python benchmarks/trackers.py --videos FOLDER        # warp error instead, on real videos

Prints the tables of trackers.md. DOT only with its checkpoints (docs/data.md); `no motion` is the
floor that a tracker has to beat.
"""

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path

import harness
import numpy as np

from datamodules.prepare import clips
from datamodules.scenes.scene import random_scene, render, tracks
from datamodules.trackers import DIS, DOT, DotOptions, SparseDIS, Tracker, Tracks
from datamodules.trackers.dis import _at
from remoco.common.errors import BadClip
from remoco.common.videos import decode

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


def on_videos(folder: Path, trackers: list[Tracker], options: argparse.Namespace) -> None:
    """Grey levels between frame 1 and what the tracks bring back of the others: where all trackers see a pixel, where
    this one does, everywhere; and the share that it sees. Of the clip in the middle of each video."""
    rows = []
    for path in sorted(folder.iterdir()):
        try:
            start = clips.middle_start(decode.video_seconds(path), options.frames, 8.0)
            frames = clips.read_clip(path, start, options.frames, 8.0, options.height, options.width).frames
        except BadClip as error:
            rows.append([path.name, f"left out: {error}", *[""] * 4])
            continue
        grey = frames.astype(np.float32).mean(1)
        found = [tracker(frames) for tracker in trackers]
        common = np.logical_and.reduce([tracks.visibility[1:] for tracks in found])
        for tracker, (flow, visibility) in zip(trackers, found):
            warped = [_at(grey[t], flow[t].transpose(1, 2, 0)) for t in range(1, len(frames))]
            error, seen = np.abs(np.stack(warped) - grey[0]), visibility[1:]
            cells = error[common].mean(), error[seen].mean(), error.mean(), 100 * seen.mean()
            rows.append([path.name, f"{tracker.name} {tracker.version}", *(f"{cell:.2f}" for cell in cells)])
    print(harness.table(["video", "tracker", "all see", "it sees", "everywhere", "seen, %"], rows))


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=512)
    for name in ("estimator-path", "refiner-path", "points-path", "points-code"):
        parser.add_argument(f"--dot-{name}")
    parser.add_argument("--dot-points", default="lk")
    parser.add_argument("--dot-num-tracks", type=int, default=2048)
    parser.add_argument("--videos", help="folder of videos for the warp error; without it sprites")
    options = parser.parse_args()
    trackers: list[Tracker] = [Still(), DIS(), SparseDIS()]
    if options.dot_estimator_path:
        dot = {name[4:]: value for name, value in vars(options).items() if name.startswith("dot_")}
        trackers.append(DOT(DotOptions(**dot)))
    if options.videos:
        return on_videos(Path(options.videos), trackers[1:], options)
    scores: list[dict[str, list[float]]] = [defaultdict(list) for _ in trackers]
    moved = []
    for number in range(options.clips):
        scene = random_scene([SEED, number], options.frames, options.height, options.width)
        video, (flow, visibility) = render(scene), tracks(scene)
        moved.append(float(np.hypot(*flow[1:].transpose(1, 0, 2, 3)).mean()))
        for tracker, row in zip(trackers, scores):
            found, seconds, _ = harness.timed(partial(tracker, video))
            row["CPU s"].append(seconds)
            for name, value in score(found, flow, visibility).items():
                row[name].append(value)
    size = f"{options.frames} x {options.height} x {options.width}"
    print(f"{options.clips} clips of {size}, mean |flow| {min(moved):.1f} to {max(moved):.1f} px\n")
    names = [*scores[0]]
    mean = {name: np.nanmedian if name == "CPU s" else np.nanmean for name in names}
    cells = [[f"{mean[name](row[name]):.3f}" for name in names] for row in scores]
    print(harness.table(["tracker", *names], [[f"{t.name} {t.version}", *row] for t, row in zip(trackers, cells)]))


if __name__ == "__main__":
    main()
