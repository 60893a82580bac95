"""Two objects, each with a brush of its own: does each follow its track, and does the one without a track stay?

    python benchmarks/objects.py [--checkpoint embedded] [--scenes 48] [--seed 0]

Scenes of two plain sprites over one background, which no training set has: the embedded checkpoint saw one sprite a
clip. A row is a way to say the same thing; both columns are mean distances in pixels of 64 x 64 over frames 2 to L,
found by template matching, between where an object is and where it was asked to be.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

# run as a script from a plain checkout; without this folder, whose conditions.py is not the package
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or ".").resolve() != HERE)]

from datamodules.scenes.plain import plain_scene  # noqa: E402
from datamodules.scenes.scene import Scene, render  # noqa: E402
from lightning_modules.pipeline import MotionControlPipeline  # noqa: E402
from metrics import match_template  # noqa: E402

SIZE, GAP, BATCH = 64, 3, 8  # pixels of a frame's side; pixels between objects on their way; clips per call


class Pair(NamedTuple):
    """A first frame with two objects: masks (2, H, W) in it, paths (2, L, 2), and the true clip (L, 3, H, W)."""

    image: np.ndarray
    masks: np.ndarray
    paths: np.ndarray
    video: np.ndarray


def pairs(count: int, frames: int, moves: bool, seed: int) -> list[Pair]:
    """Scenes whose objects keep apart; the second moves or stays."""
    found: list[Pair] = []
    number = 0
    while len(found) < count:
        number += 1
        one, two = (plain_scene([seed, 9, number, i], [seed, 9, number, i, 1], frames, SIZE, SIZE) for i in (0, 1))
        things = [one.layers[1], two.layers[1]]
        if not moves:
            still = replace(things[1].motion, centre=np.repeat(things[1].motion.centre[:1], frames, axis=0))
            things[1] = replace(things[1], motion=still)
        scene = Scene((one.layers[0], *things), frames, SIZE, SIZE)
        y, x = np.mgrid[:SIZE, :SIZE].astype(float)
        covers = np.array([[thing.covers(frame, x, y) for thing in things] for frame in range(frames)])
        wide = np.array([[thing.covers(frame, x + dx, y + dy) for dx in (-GAP, 0, GAP) for dy in (-GAP, 0, GAP)]
                         for frame in range(frames) for thing in things[:1]]).any(axis=1)  # fmt: skip
        if (wide & covers[:, 1]).any():
            continue
        video = render(scene)
        paths = np.stack([thing.motion.centre for thing in things])
        found.append(Pair(video[0].transpose(1, 2, 0), covers[0], paths, video))
    return found


def said(pair: Pair, way: str, moves: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Tracks and brush of a way to say what is asked."""
    union, tracks = pair.masks.any(axis=0), list(pair.paths if moves else pair.paths[:1])
    if way == "one brush":
        return tracks, union
    if way == "one brush, on the first":
        return tracks, pair.masks[0]
    return tracks, pair.masks  # a brush each


def distance(video: np.ndarray, pair: Pair) -> list[float]:
    """Of each object, the mean distance of where it is found from its path."""
    first, clip = (torch.from_numpy(np.ascontiguousarray(x)) for x in (pair.video[0], video))
    off = []
    for mask, path in zip(pair.masks, pair.paths, strict=True):
        found = match_template(clip, first, torch.from_numpy(mask))
        wanted = torch.from_numpy(path - path[0])
        off.append(float(torch.linalg.vector_norm(found[1:] - wanted[1:], dim=1).mean()))
    return off


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipe = MotionControlPipeline.from_checkpoint(arguments.checkpoint)
    frames = int(pipe.sampling["num_frames"])
    stays = ("one brush", "one brush, on the first", "a brush each")
    for moves, ways in ((False, stays), (True, ("one brush", "a brush each"))):
        scenes = pairs(arguments.scenes, frames, moves, arguments.seed)
        second = "its own" if moves else "stays"
        print(f"\n{len(scenes)} scenes, the first object follows its track, the second {second}\n")
        print("| said with | first object | second object |\n| --- | --- | --- |")
        rows = {"scorer, on the true clips": [distance(pair.video, pair) for pair in scenes]}
        rows["standing still"] = [distance(np.repeat(pair.video[:1], frames, 0), pair) for pair in scenes]
        for way in tqdm(ways, desc="moving" if moves else "staying"):
            rows[way] = []
            for start in range(0, len(scenes), BATCH):
                part = scenes[start : start + BATCH]
                strokes, brushes = zip(*(said(pair, way, moves) for pair in part), strict=True)
                out = pipe([pair.image for pair in part], list(strokes), list(brushes), seed=start)
                clips = (np.stack(clip).transpose(0, 3, 1, 2) for clip in out.frames)
                rows[way] += [distance(clip, pair) for clip, pair in zip(clips, part, strict=True)]
        for way, off in rows.items():
            mean, error = np.mean(off, axis=0), np.std(off, axis=0) / np.sqrt(len(off))
            print(f"| {way} | {mean[0]:.1f} +- {error[0]:.1f} | {mean[1]:.1f} +- {error[1]:.1f} |")


if __name__ == "__main__":
    main()
