"""`remoco export-base`: a base that `lightning_modules.BaseModule` trained, in the folders of diffusers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from remoco.common.errors import UserError
from remoco.common.whole_files import new_folder, write_json


def export_base(checkpoint: str, folder: str) -> None:
    """Write the averaged weights of a trained base as diffusers folders, which a base's `path` can name.

    Args:
        checkpoint: Checkpoint of a fit of lightning_modules.BaseModule, as configs/sprites_base.yaml trains it.
        folder: New folder for unet/, vae/ and image_encoder/; with `latents: pca` vae/ holds the components.

    Example:
        remoco export-base runs/sprites_base/checkpoints/last.ckpt sprites_base
    """
    from lightning_modules import checkpoint as checkpoints
    from lightning_modules.bases.base import VideoBase
    from lightning_modules.bases.trained_on import NAME, of_record
    from lightning_modules.expected import check_base
    from lightning_modules.restorable import average_of

    target = Path(folder)
    if target.exists():
        raise UserError(f"{folder}: exists already; expected a new folder")
    loaded = checkpoints.read_checkpoint(checkpoint)
    record = checkpoints.of(loaded, checkpoint)
    if record["architecture"].get("injection") is not None:
        raise UserError(f"{checkpoint}: holds a controller; expected a checkpoint of lightning_modules.BaseModule")
    stored = loaded["state_dict"] | average_of(loaded)
    try:
        base = VideoBase.from_record(record["base"])
    except (UserError, TypeError) as error:
        raise UserError(f"{checkpoint}: {error}") from None
    check_base(base, stored)
    state = {name.removeprefix("base."): tensor for name, tensor in stored.items()}
    if unknown := base.build().load_state_dict(state, strict=False).unexpected_keys:
        raise UserError(f"{checkpoint}: {unknown[0]} is not a weight of its base")
    with new_folder(target) as written:
        base.export(written)
        if (seen := of_record(record)) is not None:
            write_json(written / NAME, asdict(seen))
    print(f"wrote {target}, step {loaded['global_step']}: --model.init_args.base.init_args.path {target}")
