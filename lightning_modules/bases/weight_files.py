"""Where the weights of a base lie: a folder in diffusers' layout, or a hub id, whose files come into the cache."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub.errors import LocalEntryNotFoundError

from lightning_modules.hub import UNREADABLE, fetched, is_hub_id, listed, reason
from remoco.common.errors import UserError
from remoco.common.json_files import read_json
from remoco.common.tensor_files import regular_size

STEMS = {name: "diffusion_pytorch_model" for name in ("unet", "transformer", "transformer_2", "vae")} | {
    name: "model" for name in ("image_encoder", "text_encoder")
}
VARIANTS = (None, "fp16")  # the full weights where both are there
PICKLES = ("*.bin", "*.bin.index.json", "*.ckpt", "*.pt", "*.pth")


def located(path: str, names: Iterable[str], revision: str | None = None, variant: str | None = None) -> Path:
    """The local folder that holds some of a base's networks, each in a folder of its own.

    Args:
        path: That folder, or a hub id `owner/name`, of which the files that are not in the hub's cache are downloaded:
            the configuration and the safetensors of each network, in whichever layout they are there.
        names: Networks, as in `STEMS`.
        revision: Branch, tag or commit of the hub id.
        variant: Of the weights to download, for example `fp16`; None: the full ones, else fp16's.

    Raises:
        UserError: a network has no configuration or no weights there, or the hub is not reached.
    """
    if is_hub_id(path):
        return _downloaded(path, names, revision, variant)
    folder, names = Path(os.path.expanduser(path)), list(names)
    wanted = ", ".join(f"{name}/" for name in names)
    if folder.is_file():
        raise UserError(f"base: {folder} is one file, expected a folder with {wanted} as diffusers writes them")
    for name in names:
        if not (folder / name / "config.json").is_file():
            raise UserError(
                f"base: {folder / name / 'config.json'} not found, expected {wanted} as diffusers writes them, "
                "or a hub id owner/name"
            )
    return folder


def config_file(path: str, name: str, revision: str | None = None) -> Path:
    """The configuration of one of a base's networks; of a hub id it comes into the cache, and no weights do.

    Raises:
        UserError: there is none, or the hub is not reached.
    """
    if not is_hub_id(path):
        return located(path, [name]) / name / "config.json"
    try:
        if (config := fetched(path, "config.json", revision, name)) is None:
            raise UserError(f"no {name}/config.json there, expected folders as diffusers writes them")
    except UNREADABLE as error:
        raise UserError(f"base: cannot load {name} of the hub id {path}: {reason(error, path, revision)}") from error
    return config


def weight_files(folder: Path, name: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one network: the full weights, whole or in parts, else those of half precision.

    Args:
        folder: Of the network.
        name: Name of the network.
        variant: The variant to take, for example `fp16`; no other is then.

    Raises:
        UserError: there are none, or not all that an index lists; the message is one line.
    """
    for each in _variants(variant):
        if (whole := folder / _whole(name, each)).is_file():
            return [whole]
        if (index := folder / _index(name, each)).is_file():
            return [folder / part for part in _parts(index)]
        if parts := sorted(folder.glob(_numbered(name, each))):
            return parts
    raise _none([path.name for path in folder.iterdir()], name, str(folder), variant)


def fingerprint(path: str, name: str, revision: str | None = None) -> str | None:
    """Which network's files a base has, without building it: SHA-256 of its configuration and weights.

    Of a hub id it is the commit, so that nothing but a configuration has to be there. Equal ones are of equal weights;
    the same weights in other files have another.

    Args:
        path: Folder of the base, or its hub id.
        name: Name of the network.
        revision: Of the hub id.

    Returns:
        None where the base has no such network.
    """
    try:
        if is_hub_id(path):
            return f"{path}@{config_file(path, name, revision).parents[1].name}/{name}"
        folder = Path(path).expanduser() / name
        files = [folder / "config.json", *weight_files(folder, name)]
        with ThreadPoolExecutor(len(files)) as pool:
            return hashlib.sha256("".join(pool.map(_file_hash, files)).encode()).hexdigest()
    except (OSError, UserError):
        return None


def _file_hash(path: Path) -> str:
    regular_size(path)
    status = path.stat()
    return _hash_as_of(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(1024)
def _hash_as_of(path: Path, *version: int) -> str:
    """SHA-256 of a file of gigabytes, once while it stays as it is: a page asks at each new prompt."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def variant_of(files: Iterable[Path], name: str, variant: str | None = None) -> str | None:
    """What diffusers and transformers call the precision of these files: None for the full weights."""
    names = [file.name for file in files]
    for each in _variants(variant):
        if each is not None and all(file.startswith(f"{STEMS[name]}.{each}") for file in names):
            return each
    return None


def _variants(variant: str | None) -> tuple[str | None, ...]:
    return VARIANTS if variant is None else (variant,)


def _whole(name: str, variant: str | None) -> str:
    return f"{STEMS[name]}{f'.{variant}' if variant else ''}.safetensors"


def _index(name: str, variant: str | None) -> str:
    return f"{STEMS[name]}.safetensors.index{f'.{variant}' if variant else ''}.json"


def _numbered(name: str, variant: str | None) -> str:
    return f"{STEMS[name]}{f'.{variant}' if variant else ''}-*-of-*.safetensors"


def _parts(index: Path) -> list[str]:
    """Names of the files that an index lists, none of which leads out of its folder."""
    try:
        parts = sorted(set(read_json(index)["weight_map"].values()))
        sound = bool(parts) and all(fnmatch(part, "*.safetensors") and os.path.basename(part) == part for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{index} lists no .safetensors files as its weight_map, or files outside of its folder")
    return parts


def _none(names: Iterable[str], name: str, where: str, variant: str | None = None) -> UserError:
    """Why a network has no weights among the files of its folder."""
    pickles = sorted(each for each in names if any(fnmatch(each, pattern) for pattern in PICKLES))
    if pickles:
        return UserError(
            f"{where} has its weights as {pickles[0]} alone, a pickle, which could run code and is never opened; "
            f"expected {_whole(name, None)}, as save_pretrained of diffusers or transformers writes it"
        )
    return UserError(f"no {' or '.join(_whole(name, each) for each in _variants(variant))} in {where}")


# The hub


def _downloaded(repo: str, names: Iterable[str], revision: str | None, variant: str | None) -> Path:
    snapshot, commit = None, revision
    for name in names:
        try:
            config = fetched(repo, "config.json", commit, name)
            if config is None:
                raise UserError(f"no {name}/config.json there, expected folders as diffusers writes them")
            snapshot = config.parents[1]
            commit = snapshot.name  # all files of one commit, also where the branch moves on meanwhile
            _download_weights(repo, name, commit, variant)
        except UNREADABLE as error:
            raise UserError(
                f"base: cannot load {name} of the hub id {repo}: {reason(error, repo, revision)}"
            ) from error
    assert snapshot is not None
    return snapshot


def _download_weights(repo: str, name: str, commit: str, variant: str | None) -> None:
    """As `weight_files` looks for them."""
    unreached = None
    for each in _variants(variant):
        try:
            if fetched(repo, _whole(name, each), commit, name) is not None:
                return
            if (index := fetched(repo, _index(name, each), commit, name)) is not None:
                return _download_parts(repo, name, _parts(index), commit)
        except LocalEntryNotFoundError as error:  # the other precision may be in the cache
            unreached = error
    names = listed(repo, name, commit)
    for each in _variants(variant):
        if parts := sorted(file for file in names if fnmatch(file, _numbered(name, each))):
            return _download_parts(repo, name, parts, commit)
    if unreached is not None and not any(fnmatch(file, pattern) for file in names for pattern in PICKLES):
        raise unreached
    raise _none(names, name, f"{repo}/{name}", variant)


def _download_parts(repo: str, name: str, parts: Iterable[str], commit: str) -> None:
    for part in parts:
        if fetched(repo, part, commit, name) is None:
            raise UserError(f"no {name}/{part} there, which its index lists")
