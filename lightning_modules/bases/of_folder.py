"""Which base a folder in diffusers' layout, or a hub id, is."""

from __future__ import annotations

from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.weight_files import config_file
from remoco.common.errors import UserError, readable
from remoco.common.model_folders import check_config


def base_of(path: str, revision: str | None = None) -> VideoBase:
    """The base of a folder, not built; the configurations in it say which one it is.

    Args:
        path: Folder or hub id.
        revision: Of the hub id.

    Raises:
        UserError: there is none, or one that we do not know.
    """
    from lightning_modules.bases import SVD, CogVideoX, Wan
    from lightning_modules.bases.wan.experts import EXPERTS
    from lightning_modules.bases.wan.weights import networks_of

    try:
        config = check_config(config_file(path, "transformer", revision))
    except UserError as missing:
        try:
            config_file(path, "unet", revision)
        except UserError:
            raise missing from None
        return SVD(path, revision)
    kinds: dict[str, type[Wan | CogVideoX]] = {"WanTransformer3DModel": Wan, "CogVideoXTransformer3DModel": CogVideoX}
    name = config.get("_class_name")
    if name not in kinds:
        raise UserError(
            f"base: {path}/transformer is a {readable(str(name), 60)}, expected one of {', '.join(kinds)}, or unet/ of "
            "SVD"
        )
    base: Wan | CogVideoX = kinds[str(name)](path, revision)
    if isinstance(base, Wan) and EXPERTS["low"] in networks_of(config, base.config("vae"), path):
        base = Wan(path, revision, expert="high")  # what is not a transformer is both experts'
    _ = base.grid, base.networks  # refuses another model of that class
    return base
