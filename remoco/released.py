"""`remoco convert` and `remoco export`: released weights to our files and back."""

from __future__ import annotations


def convert(source: str, folder: str, base: bool = False) -> None:
    """Turn a released weights file into our adapter file: LoRA, motion encoder and modulation.

    Args:
        source: released .pt or .safetensors file; nothing in it is executed.
        folder: gets adapter.safetensors.
        base: also write the frozen networks as diffusers' folders, for model.init_args.svd.
    """
    from lightning_modules import released

    for path in released.convert(source, folder, base):
        print(f"wrote {path}")


def export(source: str, out: str, base: str | None = None) -> None:
    """Write a trained controller and its base in the released layout.

    Args:
        source: folder of `remoco convert`, an adapter file, or a training checkpoint.
        out: .pt or .safetensors file to write.
        base: diffusers' folder of the base; where the adapter is when not given.
    """
    from lightning_modules import released

    print(f"wrote {out}: {released.export(source, out, base)} tensors")
