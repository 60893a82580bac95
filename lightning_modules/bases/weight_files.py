"""Where the weights of a base lie: a folder in diffusers' layout, or a hub id, whose files come into the cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, list_repo_files
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from remoco.common.errors import UserError
from remoco.common.json_files import read_json

STEMS = {name: "diffusion_pytorch_model" for name in ("unet", "transformer", "vae")} | {
    name: "model" for name in ("image_encoder", "text_encoder")
}
VARIANTS = (None, "fp16")  # the full weights where both are there
PICKLES = ("*.bin", "*.bin.index.json", "*.ckpt", "*.pt", "*.pth")
UNREADABLE = (OSError, ValueError, EntryNotFoundError)


def located(path: str, names: Iterable[str], revision: str | None = None) -> Path:
    """The local folder that holds some of a base's networks, each in a folder of its own.

    Args:
        path: That folder, or a hub id `owner/name`, of which the files that are not in the hub's cache are downloaded:
            the configuration and the safetensors of each network, in whichever layout they are there.
        names: Networks, as in `STEMS`.
        revision: Branch, tag or commit of the hub id.

    Raises:
        UserError: a network has no configuration or no weights there, or the hub is not reached.
    """
    if is_hub_id(path):
        return _downloaded(path, names, revision)
    folder, names = Path(path).expanduser(), list(names)
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


def is_hub_id(path: str) -> bool:
    """Whether a path means a hub id `owner/name`: there is no such folder, and it does not look like one."""
    return not Path(path).expanduser().exists() and not path.startswith(("/", ".", "~")) and path.count("/") == 1


def config_file(path: str, name: str, revision: str | None = None) -> Path:
    """The configuration of one of a base's networks; of a hub id it comes into the cache, and no weights do.

    Raises:
        UserError: there is none, or the hub is not reached.
    """
    if not is_hub_id(path):
        return located(path, [name]) / name / "config.json"
    try:
        if (config := _fetched(path, name, "config.json", revision)) is None:
            raise UserError(f"no {name}/config.json there, expected folders as diffusers writes them")
    except UNREADABLE as error:
        raise UserError(f"base: cannot load {name} of the hub id {path}: {_reason(error, path, revision)}") from error
    return config


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files of one network: the full weights, whole or in parts, else those of half precision.

    Raises:
        UserError: there are none, or not all that an index lists; the message is one line.
    """
    for variant in VARIANTS:
        if (whole := folder / _whole(name, variant)).is_file():
            return [whole]
        if (index := folder / _index(name, variant)).is_file():
            return [folder / part for part in _parts(index)]
        if parts := sorted(folder.glob(_numbered(name, variant))):
            return parts
    raise _none([path.name for path in folder.iterdir()], name, str(folder))


def variant_of(files: Iterable[Path], name: str) -> str | None:
    """What diffusers and transformers call the precision of these files: None for the full weights."""
    return "fp16" if all(file.name.startswith(f"{STEMS[name]}.fp16") for file in files) else None


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


def _none(names: Iterable[str], name: str, where: str) -> UserError:
    """Why a network has no weights among the files of its folder."""
    pickles = sorted(each for each in names if any(fnmatch(each, pattern) for pattern in PICKLES))
    if pickles:
        return UserError(
            f"{where} has its weights as {pickles[0]} alone, a pickle, which could run code and is never opened; "
            f"expected {_whole(name, None)}, as save_pretrained of diffusers or transformers writes it"
        )
    return UserError(f"no {_whole(name, None)} or {_whole(name, 'fp16')} in {where}")


# The hub


def _downloaded(repo: str, names: Iterable[str], revision: str | None) -> Path:
    snapshot, commit = None, revision
    for name in names:
        try:
            config = _fetched(repo, name, "config.json", commit)
            if config is None:
                raise UserError(f"no {name}/config.json there, expected folders as diffusers writes them")
            snapshot = config.parents[1]
            commit = snapshot.name  # all files of one commit, also where the branch moves on meanwhile
            _download_weights(repo, name, commit)
        except UNREADABLE as error:
            raise UserError(
                f"base: cannot load {name} of the hub id {repo}: {_reason(error, repo, revision)}"
            ) from error
    assert snapshot is not None
    return snapshot


def _download_weights(repo: str, name: str, commit: str) -> None:
    """As `weight_files` looks for them."""
    unreached = None
    for variant in VARIANTS:
        try:
            if _fetched(repo, name, _whole(name, variant), commit) is not None:
                return
            if (index := _fetched(repo, name, _index(name, variant), commit)) is not None:
                return _download_parts(repo, name, _parts(index), commit)
        except LocalEntryNotFoundError as error:  # the other precision may be in the cache
            unreached = error
    names = _listed(repo, name, commit)
    for variant in VARIANTS:
        if parts := sorted(each for each in names if fnmatch(each, _numbered(name, variant))):
            return _download_parts(repo, name, parts, commit)
    if unreached is not None and not any(fnmatch(each, pattern) for each in names for pattern in PICKLES):
        raise unreached
    raise _none(names, name, f"{repo}/{name}")


def _download_parts(repo: str, name: str, parts: Iterable[str], commit: str) -> None:
    for part in parts:
        if _fetched(repo, name, part, commit) is None:
            raise UserError(f"no {name}/{part} there, which its index lists")


def _fetched(repo: str, name: str, file: str, revision: str | None) -> Path | None:
    """Where a file of one network is in the cache; None where the repository has none."""
    try:
        return Path(hf_hub_download(repo, file, subfolder=name, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _listed(repo: str, name: str, commit: str) -> list[str]:
    """Names of the files in one folder of a repository; where the hub is not reached, of those in the cache."""
    try:
        paths = [Path(path) for path in list_repo_files(repo, revision=commit)]
    except Exception:  # whatever the libraries raise for a hub's answer
        paths = [path.relative_to(_cached(repo) / commit) for path in (_cached(repo) / commit / name).glob("*")]
    return [path.name for path in paths if path.parent == Path(name)]


def _cached(repo: str) -> Path:
    """Where the cache keeps the commits of a repository."""
    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots")


def _reason(error: BaseException, repo: str, revision: str | None) -> str:
    """One line for what the hub's library says in several."""
    if isinstance(error, GatedRepoError):
        return "accept its licence on its page, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and needs `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    if isinstance(error, LocalEntryNotFoundError):
        kept = sorted(path.name for path in _cached(repo).glob("*"))
        hint = f"; the hub's cache has {', '.join(kept)}, pass it as the revision" if kept and revision is None else ""
        wanted = f"revision {revision or 'main'} is not whole in the cache ({constants.HF_HUB_CACHE})"
        return f"{wanted}, and the hub was not reached{hint}"
    return " ".join(str(error).split())
