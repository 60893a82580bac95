"""Control and seams of clips longer than the trained ones: plain sprites on tracks that continue, made each way.

    python benchmarks/longer.py [--checkpoint embedded-sprites] [--clips 16] [--times 1 2 4]

An object goes through key points at the speed of the training's clips, and stays inside the picture. The control error
is that of `metrics.ControlError`. The seam error is the mean change from frame to frame where windows or parts begin
or end, over that elsewhere, and this over the same ratio of the true clips: 1 is no seam. Means are over all clips. For
clips that are seen whole the places are those of the windows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from harness import parser, table, timed

from conditions.strokes import interpolate_track
from datamodules.drawings import Drawing
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import Motion, Scene, render
from lightning_modules.longer import Plan, planned
from lightning_modules.pipeline import MotionControlPipeline
from metrics import ControlError

WAYS = {"whole": None, "windows": "windows", "continue": "continue"}


def sprite(number: int, frames: int, trained: int, side: int) -> tuple[Drawing, np.ndarray]:
    """A drawing of an object with a brush and key points, and the true clip (L, 3, H, W) uint8."""
    look = plain_scene([9, number], [9, number, 1], trained, side, side)
    thing, rng = look.layers[1], np.random.default_rng([9, number, 2])
    y, x = np.mgrid[:side, :side].astype(float)
    brush = thing.covers(0, x, y)
    margin = np.ptp(np.argwhere(brush), axis=0).max() / 2 + 1
    points, spans = [thing.motion.centre[0]], max(1, round((frames - 1) / (0.85 * (trained - 1))))
    while len(points) <= spans:
        length = rng.uniform(0.25, 0.6) * side * (frames - 1) / spans / (trained - 1)
        heading = rng.uniform(0, 2 * np.pi)
        point = points[-1] + length * np.array([np.cos(heading), np.sin(heading)])
        if (point >= margin).all() and (point <= side - 1 - margin).all():
            points.append(point)
    path = interpolate_track(np.stack(points), frames)
    still = Motion(np.full((frames, 2), side / 2), np.zeros(frames), np.ones(frames))
    moving = Motion(path, np.full(frames, thing.motion.angle[0]), np.ones(frames))
    layers = replace(look.layers[0], motion=still), replace(thing, motion=moving)
    video = render(Scene(layers, frames, side, side))
    return Drawing(video[0].transpose(1, 2, 0), [np.stack(points)], brush.astype(np.uint8)), video


def borders(plan: Plan) -> list[int]:
    """Indices of the frames before which a window or part begins or ends."""
    if not plan.windows:
        return [start + 1 for start in plan.starts[1:]]
    begins, ends = ([int(each.at[place]) for each in plan.windows] for place in (1, -1))
    return sorted({*begins[1:], *(end + 1 for end in ends[:-1])})


def changes(video: np.ndarray) -> np.ndarray:
    """(L - 1,) mean change of each frame (3, H, W) of a clip from the one before."""
    found: np.ndarray = np.abs(np.diff(video.astype(float), axis=0)).mean((1, 2, 3))
    return found


def jump(changed: np.ndarray, places: list[int]) -> float:
    """Mean change before frames at these places over that before the others, of clips' changes (N, L - 1).

    The means are over all clips: a clip's own ratio is large where its object stands still elsewhere, or by chance at
    these places.
    """
    at = np.isin(np.arange(1, changed.shape[1] + 1), places)
    return float(changed[:, at].mean() / changed[:, ~at].mean())


def measured(
    pipe: MotionControlPipeline, way: str, overlap: int | None, times: int, clips: int
) -> tuple[float, float, float]:
    """Control error in pixels, seam error, and CPU seconds a clip."""
    trained, side = pipe.sampling["num_frames"], pipe.trained_size[0]
    frames, error, seconds = times * trained, ControlError(), 0.0
    made, real = list[np.ndarray](), list[np.ndarray]()
    places = borders(planned(pipe.module.base, trained, frames, WAYS[way] or "windows", overlap))
    for number in range(clips):
        drawing, true = sprite(number, frames, trained, side)
        make = partial(pipe, drawing, num_frames=frames, seed=number, longer=WAYS[way], overlap=overlap)
        output, cpu, _ = timed(partial(make, height=side, width=side))
        video = np.stack([np.asarray(frame).transpose(2, 0, 1) for frame in output.frames[0]])
        path = torch.from_numpy(drawing.paths(frames)[0] - drawing.tracks[0][0])
        mask = torch.from_numpy(drawing.brush)[None] > 0
        error.update(torch.from_numpy(video)[None], torch.from_numpy(true[:1].copy()), mask, path[None])
        seconds += cpu / clips
        made.append(changes(video))
        real.append(changes(true))
    seam = jump(np.stack(made), places) / jump(np.stack(real), places) if places else 1.0
    return float(error.compute()), seam, seconds


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--checkpoint", default="embedded-sprites", help="of plain sprites")
    options.add_argument("--clips", type=int, default=16)
    options.add_argument("--times", type=int, nargs="+", default=[1, 2, 4], help="lengths, of the trained one")
    options.add_argument("--overlaps", type=int, nargs="+", help="overlaps of windows, beside half of one")
    args = options.parse_args()
    torch.set_num_threads(1)
    pipe = MotionControlPipeline.from_checkpoint(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    trained, rows = pipe.sampling["num_frames"], []
    for times in args.times:
        ways: list[tuple[str, int | None]] = [("whole", None), ("windows", None), ("continue", None)]
        ways += [("windows", overlap) for overlap in args.overlaps or []]
        for way, overlap in ways if times > 1 else ways[:1]:
            error, seam, seconds = measured(pipe, way, overlap, times, args.clips)
            called = way if overlap is None else f"{way}, overlap {overlap}"
            seam_cell = f"{seam:.2f}" if times > 1 else "-"
            rows.append([times * trained, called, f"{error:.1f}", seam_cell, f"{seconds:.1f}"])
            print(*rows[-1], flush=True)
    print(table(["frames", "way", "control error, px", "seam error", "CPU s a clip"], rows))


if __name__ == "__main__":
    main()
