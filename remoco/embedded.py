"""`remoco pack` and `remoco demo`: the model that the package ships, and the first thing to see of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.drawings import Drawing, FrameArea, read_drawing, write_drawing
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import render, tracks
from remoco.common.errors import UserError
from remoco.common.whole_files import check_writable, write_atomic

EMBEDDED = "embedded"  # `lightning_modules.embedded.NAME`, without importing torch for `--help`
PHOTOGRAPH = Path(__file__).with_name("demo")  # first frame, brush and track
STEP, MAX_SIZE = FrameArea.multiple, 1024  # pixels of a side of sprites; their model knows 64


def pack(checkpoint: str, file: str, num_frames: int = 8, command: Sequence[str] = (), side: int | None = None) -> None:
    """Put a whole small model, averaged weights and frozen networks too, into one half-precision file.

    Args:
        checkpoint: Checkpoint of a run that trained its base too, or of one over the package's base
            (`path: embedded-sprites`).
        file: Safetensors file to write.
        num_frames: Length in frames that the model was trained for.
        command: Command that made the checkpoint, to be kept in the file; may be repeated.
        side: Side in pixels of a square of as many pixels as a clip gets where nobody says its size. Default: as it
            was trained.

    Example:
        remoco pack runs/sprites_lora/checkpoints/last.ckpt model.safetensors
    """
    from safetensors.torch import save

    from lightning_modules import checkpoint as checkpoints
    from lightning_modules import embedded
    from lightning_modules.pipeline import MotionControlPipeline

    record = checkpoints.read_record(checkpoint)
    path = record["base"].get("released") or record["base"].get("init_args", {}).get("path")
    if path not in (None, *embedded.FILES):
        raise UserError(
            f"{checkpoint}: its base is {path!s:.200}, which the file would still need; expected a run that trained "
            f"its base, or one over `path: {embedded.SPRITES}`"
        )
    step = checkpoints.read_checkpoint(checkpoint)["global_step"]
    module = MotionControlPipeline.from_checkpoint(checkpoint).module
    stored = embedded.tensors(module.stored(whole=True))
    sampling = record.get("sampling", {}) | module.sampling.record() | {"num_frames": num_frames}
    if side is not None:
        sampling |= {"height": side, "width": side}
    about = embedded.metadata(record | {"sampling": sampling}, stored, list(command), step)
    write_atomic(Path(file), save(stored, metadata=about))
    print(f"wrote {file}, {Path(file).stat().st_size / 1e6:.1f} MB")


@dataclass
class _Example:
    """What is drawn on, and the true clip where there is one: (L, H, W, 3) uint8."""

    drawing: Drawing
    name: str
    thing: str
    true: np.ndarray | None = None


def demo(
    checkpoint: str = EMBEDDED, out: str = "runs/demo", scene: int | None = None, size: int = 64, seed: int = 0
) -> None:
    """Move a flower in a photograph along one stroke; writes clip.mp4, strip.mp4, metrics.json and inputs/ to OUT.

    Args:
        checkpoint: Checkpoint of configs/photo.yaml, or `embedded`, the one in the package.
        out: Folder for the files.
        scene: Draw on a held-out scene of plain sprites of this number instead, for a checkpoint of those, for example
            `embedded-sprites`.
        size: Side of such a scene in pixels, a multiple of 64.
        seed: Seed of the noise.

    Example:
        remoco demo --checkpoint embedded-sprites --scene 5
    """
    import torch

    from callbacks.strips import panel_factor, strip, write_mp4
    from conditions import control_picture
    from datamodules.drawings.panels import enlarged
    from lightning_modules.pipeline import MotionControlPipeline
    from remoco.unseen import unseen

    start = time.perf_counter()
    _check(scene, size)
    check_writable(Path(out) / "clip.mp4", "--out")
    try:
        pipeline = MotionControlPipeline.from_checkpoint(checkpoint)
    except UserError as error:
        raise UserError(f"--checkpoint: {error}") from None
    frames = int(pipeline.sampling["num_frames"])
    example = _photograph() if scene is None else _sprites(scene, size, frames)
    drawing, (height, width) = example.drawing, example.drawing.size
    if line := unseen(pipeline, drawing.image):
        print(line, file=sys.stderr)
    brush, strokes = drawing.masks(), drawing.strokes(frames)
    output = pipeline(drawing.image, strokes, brush, motion_bucket_id="drawing", seed=seed, height=height, width=width)
    clip = np.stack(output.frames[0])
    control = pipeline.module.condition.draw(strokes, brush, frames, height, width)
    first = torch.from_numpy(drawing.image.transpose(2, 0, 1).copy())
    panels = {
        "first frame": drawing.image,
        "one stroke": control_picture(*enlarged(control, first, panel_factor(height))),
        "generated": clip,
    }
    if example.true is not None:
        panels["true clip"] = example.true
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_drawing(folder / "inputs", drawing)
    write_mp4(folder / "clip.mp4", clip, 8.0)
    write_mp4(folder / "strip.mp4", strip(panels, example.name), 8.0)
    errors = _errors(drawing, clip)
    write_atomic(folder / "metrics.json", json.dumps(errors, indent=2).encode() + b"\n")
    off, still = errors.values()
    print(f"{example.thing} is {off:.1f} px from the drawn path on average; standing still it would be {still:.1f} px")
    names = ", ".join(str(folder / name) for name in ("clip.mp4", "strip.mp4", "metrics.json"))
    print(f"wrote {names} in {time.perf_counter() - start:.1f} s")


def _check(scene: int | None, size: int) -> None:
    if size % STEP or not STEP <= size <= MAX_SIZE:
        raise UserError(f"--size is {size}, expected a multiple of {STEP} up to {MAX_SIZE}")
    if scene is not None and scene < 0:
        raise UserError(f"--scene is {scene}, expected at least 0")


def _errors(drawing: Drawing, clip: np.ndarray) -> dict[str, float]:
    """How far what is brushed is from its stroke in a clip (L, H, W, 3) uint8, and how far where it does not move: mean
    distance in pixels over the frames after the first.
    """
    import torch

    from metrics import match_template

    video = torch.from_numpy(clip).permute(0, 3, 1, 2)
    first = torch.from_numpy(drawing.image).permute(2, 0, 1)
    path = torch.from_numpy(drawing.paths(len(clip))[0]).float()
    positions = match_template(video, first, torch.from_numpy(drawing.brushed()))
    positions = positions - positions[:1] + path[:1]
    return {
        "control_error": float(torch.linalg.vector_norm(positions[1:] - path[1:], dim=1).mean()),
        "control_error_standing_still": float(torch.linalg.vector_norm(path[1:] - path[:1], dim=1).mean()),
    }


def _photograph() -> _Example:
    return _Example(read_drawing(PHOTOGRAPH), "flower.jpg by vultilion, CC BY 2.0", "the flower")


def _sprites(scene: int, size: int, frames: int) -> _Example:
    import torch

    from metrics import moving_object

    example = plain_scene([0, 2, scene], [0, 2, scene, 1], frames, size, size)
    real = render(example).transpose(0, 2, 3, 1)
    masks, paths = moving_object(torch.from_numpy(tracks(example)[0])[None])
    brush = masks[0].numpy()
    stroke = np.clip(np.argwhere(brush).mean(0)[::-1] + paths[0].numpy(), 0, size - 1)
    drawing = Drawing(np.ascontiguousarray(real[0]), [stroke], brush)
    return _Example(drawing, f"{example.caption}, scene {scene}", "the object", real)
