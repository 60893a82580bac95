"""One stroke, told with different motion buckets: the drawing's own, the true clip's, fixed ones.

    python benchmarks/motion_bucket.py [--checkpoint embedded] [--scene plain] [--clips 64] [--fixed 1.2 17]

Mean control error in pixels of held-out sprites from the stroke that they were given, in the checkpoint's own sampler:
what `Evaluation.control_errors` measures as `control_error_stroke`, where only the first row is told. The
true clip's bucket speaks of all that moves in it, the camera too, and nobody who draws knows it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

# run as a script from a plain checkout; without this folder, whose conditions.py is not the package
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or ".").resolve() != HERE)]

from callbacks.control_error import objects  # noqa: E402
from callbacks.generated import rows_of  # noqa: E402
from callbacks.other_control import one_stroke  # noqa: E402
from conditions import flow_to_pixels, motion_bucket  # noqa: E402
from datamodules import SpritesDataModule  # noqa: E402
from lightning_modules.conditioning import to_uint8  # noqa: E402
from lightning_modules.pipeline import MotionControlPipeline  # noqa: E402
from metrics import ControlError  # noqa: E402


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--scene", default="plain", choices=["plain", "varied"])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--fixed", type=float, nargs="*", default=[1.2, 17.0])
    arguments = parser.parse_args()
    pipe = MotionControlPipeline.from_checkpoint(arguments.checkpoint)
    frames = int(pipe.sampling["num_frames"])
    size = dict(zip(("height", "width"), pipe.trained_size, strict=True), frames=frames)
    with tempfile.TemporaryDirectory() as root:
        counts = {"clips": 1, "val_clips": arguments.clips, "val_batch_size": arguments.clips, "num_workers": 0}
        data = SpritesDataModule(root=root, scene=arguments.scene, **counts, **size)
        data.prepare_data()
        data.setup()
        batch = next(iter(data.val_dataloader()))
    rows, masks, tracks, turns = objects(batch, arguments.scene)
    batch = rows_of(batch, rows)
    drawn, control = one_stroke(pipe.module.condition, batch, masks, tracks)
    own = motion_bucket(drawn["flow"])
    told = {"the drawing's": own, "the true clip's": batch["motion_bucket"]}
    told |= {f"{bucket:g}": torch.full_like(own, bucket) for bucket in arguments.fixed}
    groups = {"all": torch.ones(len(own), dtype=torch.bool)}
    if arguments.scene == "varied":
        flow = flow_to_pixels(batch["flow"], batch["flow_step"])
        share = (flow.norm(dim=2) > 0.5).double().mean((1, 2, 3))  # of pixels that move
        groups |= {"camera moves": share > 0.6, "camera at rest": share <= 0.6}
    print(
        f"{arguments.checkpoint}, {arguments.scene} sprites, one stroke, {pipe.module.sampling.steps} sampler steps\n"
    )
    names = [f"{name}, {int(group.sum())} clips" for name, group in groups.items()]
    print("| motion bucket | mean of it | " + " | ".join(names) + " |")
    print("| --- " * (2 + len(groups)) + "|")
    for name, buckets in told.items():
        clips = drawn | {"moving": batch["moving"], "motion_bucket": buckets}
        videos = to_uint8(pipe.module.sample(clips, control))
        errors = []
        for group in groups.values():
            error = ControlError()
            chosen = None if turns is None else turns[group]
            error.update(videos[group], to_uint8(batch["first_frame"])[group], masks[group], tracks[group], chosen)
            errors.append(f"{error.compute():.2f}" if group.any() else "")
        print(f"| {name} | {buckets.mean():.1f} | " + " | ".join(errors) + " |")


if __name__ == "__main__":
    main()
