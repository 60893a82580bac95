"""`remoco export-base`: a base that `lightning_modules.BaseModule` trained, in the folders of diffusers."""

from __future__ import annotations

from pathlib import Path

from lightning_modules import record
from lightning_modules.expected import check_base
from lightning_modules.restorable import average_of
from lightning_modules.svd import SVD
from remoco.common.errors import UserError
from remoco.common.whole_files import new_folder


def export_base(checkpoint: str, folder: str) -> None:
    """Write a trained base, its averaged weights, as the diffusers folders that model.init_args.svd loads.

    Args:
        checkpoint: of a fit of lightning_modules.BaseModule, as configs/sprites_base.yaml.
        folder: new folder for unet/, vae/ and image_encoder/; with `latents: pca` the components are in vae/.
    """
    target = Path(folder)
    if target.exists():
        raise UserError(f"{folder}: exists already, expected a new folder")
    loaded = record.read_checkpoint(checkpoint)
    found = record.of(loaded, checkpoint)
    architecture, base = found["architecture"], found["base"]
    if architecture.get("injection") is not None or "random_init" not in base:
        raise UserError(f"{checkpoint}: holds a controller; expected a checkpoint of lightning_modules.BaseModule")
    stored = loaded["state_dict"] | average_of(loaded)
    check_base(found, stored)
    latents = {"latents": architecture["latents"], "pca_channels": architecture.get("pca_channels", 8)}
    svd = SVD.random(base["random_init"], base["init_seed"], **latents)
    state = {name.removeprefix("svd."): tensor for name, tensor in stored.items()}
    if unknown := svd.load_state_dict(state, strict=False).unexpected_keys:
        raise UserError(f"{checkpoint}: {unknown[0]} is no weight of a {base['random_init']} base")
    with new_folder(target) as written:
        svd.export(written)
    print(f"wrote {target}, step {loaded['global_step']}: --model.init_args.svd {target}")
