"""`remoco pack` and `remoco demo`: the model that the package ships, and the first thing to see of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.drawings import Drawing, FrameArea, write_drawing
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import render, tracks
from remoco.common.errors import UserError
from remoco.common.whole_files import check_writable, write_atomic

EMBEDDED = "embedded"  # `lightning_modules.embedded.NAME`, without importing torch for `--help`
STEP, MAX_SIZE = FrameArea.multiple, 1024  # pixels of a side; the model knows 64


def pack(checkpoint: str, file: str, num_frames: int = 8, command: Sequence[str] = ()) -> None:
    """Put a whole small model, averaged weights and frozen networks too, into one half-precision file.

    Args:
        checkpoint: Checkpoint of a run that trained its base too, or of one over the package's (`path: embedded`).
        file: Safetensors file to write.
        num_frames: Length in frames that the model was trained for.
        command: Command that made the checkpoint, to be kept in the file; may be repeated.

    Example:
        remoco pack runs/sprites_lora/checkpoints/last.ckpt model.safetensors
    """
    from safetensors.torch import save

    from lightning_modules import checkpoint as checkpoints
    from lightning_modules import embedded
    from lightning_modules.pipeline import MotionControlPipeline

    record = checkpoints.read_record(checkpoint)
    path = record["base"].get("released") or record["base"].get("init_args", {}).get("path")
    if path not in (None, embedded.NAME):
        raise UserError(
            f"{checkpoint}: its base is {path!s:.200}, which the file would still need; expected a run that trained "
            f"its base, or one over `path: {embedded.NAME}`"
        )
    step = checkpoints.read_checkpoint(checkpoint)["global_step"]
    module = MotionControlPipeline.from_checkpoint(checkpoint).module
    stored = embedded.tensors(module.stored(whole=True))
    sampling = record.get("sampling", {}) | module.sampling.record() | {"num_frames": num_frames}
    about = embedded.metadata(record | {"sampling": sampling}, stored, list(command), step)
    write_atomic(Path(file), save(stored, metadata=about))
    print(f"wrote {file}, {Path(file).stat().st_size / 1e6:.1f} MB")


def demo(checkpoint: str = EMBEDDED, out: str = "runs/demo", scene: int = 3, size: int = 64, seed: int = 0) -> None:
    """Draw one stroke on a held-out first frame and generate the clip; writes clip.mp4, strip.mp4, inputs/ to OUT.

    Args:
        checkpoint: Checkpoint that was trained on plain sprites, or `embedded`, the one in the package.
        out: Folder for the files.
        scene: Number of the held-out scene.
        size: Side of the frame in pixels, a multiple of 64.
        seed: Seed of the noise.

    Example:
        remoco demo --scene 5
    """
    import torch

    from callbacks.strips import panel_factor, strip, write_mp4
    from conditions import control_picture
    from datamodules.drawings.panels import enlarged
    from lightning_modules.pipeline import MotionControlPipeline
    from metrics import match_template, moving_object, shown

    start = time.perf_counter()
    if size % STEP or not STEP <= size <= MAX_SIZE:
        raise UserError(f"--size is {size}, expected a multiple of {STEP} up to {MAX_SIZE}")
    if scene < 0:
        raise UserError(f"--scene is {scene}, expected at least 0")
    check_writable(Path(out) / "clip.mp4", "--out")
    try:
        pipeline = MotionControlPipeline.from_checkpoint(checkpoint)
    except UserError as error:
        raise UserError(f"--checkpoint: {error}") from None
    frames = int(pipeline.sampling["num_frames"])
    example = plain_scene([0, 2, scene], [0, 2, scene, 1], frames, size, size)
    real, flow = render(example), torch.from_numpy(tracks(example)[0])
    masks, paths = moving_object(flow[None])
    brush, path = masks[0].numpy(), paths[0].numpy()
    centre = np.argwhere(brush).mean(0)[::-1]
    stroke = np.clip(centre + path, 0, size - 1)
    output = pipeline(real[0].transpose(1, 2, 0), [stroke], brush, motion_bucket_id="drawing", seed=seed,
                      height=size, width=size)  # fmt: skip
    clip = np.stack(output.frames[0])
    control = pipeline.module.condition.draw([stroke], brush, frames, size, size)
    first = torch.from_numpy(real[0])
    panels = {
        "first frame": real[0].transpose(1, 2, 0),
        "one stroke": control_picture(*enlarged(control, first, panel_factor(size))),
        "generated": clip,
        "true clip": real.transpose(0, 2, 3, 1),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_drawing(folder / "inputs", Drawing(panels["first frame"], [stroke], brush))
    write_mp4(folder / "clip.mp4", clip, 8.0)
    write_mp4(folder / "strip.mp4", strip(panels, f"{example.caption}, scene {scene}"), 8.0)
    positions = match_template(torch.from_numpy(clip).permute(0, 3, 1, 2), first, masks[0])
    off = shown(float(torch.linalg.vector_norm(positions[1:] - paths[0, 1:], dim=1).mean()), 1)
    still = shown(float(torch.linalg.vector_norm(paths[0, 1:], dim=1).mean()), 1)
    print(f"the object is {off} px from the drawn path on average; standing still it would be {still} px")
    print(f"wrote {folder / 'clip.mp4'} and {folder / 'strip.mp4'} in {time.perf_counter() - start:.1f} s")
