"""`remoco convert` and `remoco export`: released weights to our files and back."""

from __future__ import annotations

from pathlib import Path

from remoco.common.errors import UserError


def convert(source: str, folder: str, base: bool = False, head_channels: int | None = None) -> None:
    """Turn a released weights file into our adapter file: LoRA, motion encoder and modulation.

    Args:
        source: Released .pt or .safetensors file; no code in it is run.
        folder: Folder that gets adapter.safetensors.
        base: Also write unet/, and vae/ and image_encoder/ where the file has them, for a base's `path`.
        head_channels: Channels per attention head, which the weights do not show; 64 in the released network.

    Example:
        remoco convert motionpro.pt motionpro --base
    """
    from lightning_modules.released import adapter_of, load_released
    from lightning_modules.released.base import check_control
    from lightning_modules.released.files import ADAPTER
    from remoco.released_files import base_files, save_tensors

    released = load_released(source, head_channels)
    check_control(released, source)
    files = {ADAPTER: adapter_of(released)}
    if base:
        files |= base_files(released, Path(folder))
    for name, state in files.items():
        save_tensors(state, Path(folder) / name)
        print(f"wrote {Path(folder) / name}")


def export(source: str, out: str, base: str | None = None) -> None:
    """Write a trained controller and its base in the released layout.

    LoRA on the attention projections alone becomes LoRA on every linear layer, as the released code expects; where
    there was none it is the start of one, with B = 0, which changes nothing until it is trained.

    Args:
        source: Folder of `remoco convert`, an adapter file, or a training checkpoint.
        out: File to write, .pt or .safetensors.
        base: Folder with unet/ and, to be included, vae/ and image_encoder/. Default: the adapter's folder.

    Example:
        remoco export runs/remoco/checkpoints/last.ckpt controller.pt --base svd_folder
    """
    from lightning_modules.bases.svd.weights import COMPONENTS
    from lightning_modules.bases.weights import layout_of
    from lightning_modules.released import Architecture, Released, names, released_tensors
    from lightning_modules.released.encoders import image_encoder_to_released, vae_to_released
    from lightning_modules.released.files import ADAPTER, PREFIXES, read_adapter
    from remoco.common.model_folders import check_model
    from remoco.common.tensor_files import read_json, read_safetensors
    from remoco.released_files import EXTRAS, WEIGHTS, lora_start, save_tensors

    adapter = Path(source) / ADAPTER if Path(source).is_dir() else Path(source)
    folder = Path(base) if base else adapter.parent
    for file in (adapter, folder / WEIGHTS["unet"], folder / "unet/config.json"):
        if not file.is_file():
            raise UserError(f"no file {file}, expected an adapter and the diffusers folder of its base")
    parts = read_adapter(adapter)
    ranks = {tensor.shape[0] for name, tensor in parts["lora"].items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise UserError(f"{adapter} has LoRA of ranks {sorted(ranks)}, the released layout has one")
    try:
        check_model(folder / "unet", layout_of(COMPONENTS["unet"]))
        held = {part: read_safetensors(folder / file) for part, file in WEIGHTS.items() if (folder / part).is_dir()}
        extras = read_safetensors(folder / EXTRAS) if (folder / EXTRAS).is_file() else {}
        config = read_json(folder / "unet/config.json")
    except (OSError, ValueError) as error:
        raise UserError(f"base {folder}: {' '.join(str(error).split())}") from error
    architecture = Architecture.from_unet(config, "linear", ranks.pop())
    for part, name, shape in names(architecture).values():
        if part == "lora" and name not in parts["lora"]:
            parts["lora"][name] = lora_start(name, shape)
    released = Released(architecture, held["unet"], parts["lora"], parts["motion_encoder"], parts["injection"])
    groups = {"network": released_tensors(released)}
    for group, to_released in (("vae", vae_to_released), ("image_encoder", image_encoder_to_released)):
        if group in held:
            groups[group] = to_released(held[group])
    state = {PREFIXES[group] + name: tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
    state |= extras
    save_tensors({f"module.{name}": tensor for name, tensor in state.items()}, Path(out))
    print(f"wrote {out}: {len(state)} tensors")
