"""`remoco photos`: its flags. Nothing here imports torch."""

from __future__ import annotations

from remoco.common.errors import UserError


def photos(
    checkpoint: str | None = None, photos: str = "data/photos", clips: int = 24, steps: int | None = None, seed: int = 0
) -> None:
    """Print a table over held-out photographs and cut-outs: each row's mean over clips whose camera stands still.

    Args:
        checkpoint: Checkpoint of configs/photo.yaml; without one only the rows that need no network.
        photos: Folder of photographs, as data.photos.
        clips: Number of clips.
        steps: Number of sampler steps. Default: the checkpoint's.
        seed: Seed of the clips.

    Example:
        remoco photos --checkpoint runs/photo/checkpoints/last.ckpt --photos data/photos
    """
    if not 1 <= clips <= 10_000:
        raise UserError(f"--clips is {clips}, expected 1 to 10000")
    from remoco.photos import print_table

    print_table(checkpoint, photos, clips, steps, seed)


def holes(
    photos: str = "data/photos",
    out: str = "data/holes",
    clips: int = 6000,
    val_clips: int = 300,
    seed: int = 0,
    side: int = 128,
) -> None:
    """Write the holes that moving things leave in photographs, filled, and what is truly there, for configs/photo.yaml.

    Where it was stopped it goes on. With more clips it adds to a set.

    Args:
        photos: Folder of photographs, as data.photos.
        out: Folder that is written.
        clips: Number of training clips; few of them leave no hole.
        val_clips: Number of clips of held-out photographs.
        seed: Seed of the clips.
        side: Height and width in pixels, a multiple of 8.

    Example:
        remoco holes --photos data/photos --out data/holes
    """
    for name, value, most in (("clips", clips, 1_000_000), ("val-clips", val_clips, 1_000_000)):
        if not 1 <= value <= most:
            raise UserError(f"--{name} is {value}, expected 1 to {most}")
    if side % 8 or not 64 <= side <= 1024:
        raise UserError(f"--side is {side}, expected a multiple of 8 of 64 to 1024")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is {seed}, expected 0 to 2^63 - 1")
    from pathlib import Path

    from remoco.holes import write_holes

    write_holes(photos, Path(out), clips, val_clips, seed, side)
