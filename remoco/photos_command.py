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
