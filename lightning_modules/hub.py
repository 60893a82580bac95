"""Files of the Hugging Face hub: of an id `owner/name` that a person gave, from the hub's cache or downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, list_repo_files
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from remoco.common.errors import UserError

UNREADABLE = (OSError, ValueError, EntryNotFoundError)  # what the library raises
HIDDEN = re.compile(r"(Bearer |hf_)[^\s'\"]+")  # a token, which errors of the libraries may quote
VARIANT = re.compile(r"[A-Za-z0-9_-]{1,40}")  # part of a file's name


def is_hub_id(path: str) -> bool:
    """Whether a path means a hub id `owner/name`: there is no such folder, and it does not look like one."""
    return not Path(os.path.expanduser(path)).exists() and not path.startswith(("/", ".", "~")) and path.count("/") == 1


def check_variant(variant: str | None) -> None:
    """Raise UserError unless a variant is None or can be part of a file's name."""
    if variant is not None and not (isinstance(variant, str) and VARIANT.fullmatch(variant)):
        raise UserError(f"variant is {variant!r:.60}, expected letters and digits, for example fp16")


def fetched(repo: str, file: str, revision: str | None, folder: str | None = None) -> Path | None:
    """Where a file of a repository is in the cache, downloaded if it was not; None where the repository has none.

    Args:
        repo: Hub id.
        file: Name of the file.
        revision: Branch, tag or commit.
        folder: Folder of the file in the repository.

    Raises:
        OSError, ValueError, EntryNotFoundError: the hub is not reached, or there is no such repository or revision.
    """
    try:
        return Path(hf_hub_download(repo, file, subfolder=folder, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def first_of(repo: str, names: Sequence[str], revision: str | None) -> Path | None:
    """As `fetched`, of the first of these files that there is; where the hub is not reached, the first in the cache."""
    unreached = None
    for name in names:
        try:
            if (file := fetched(repo, name, revision)) is not None:
                return file
        except LocalEntryNotFoundError as error:
            unreached = error
    if unreached is not None:
        raise unreached
    return None


def listed(repo: str, folder: str, commit: str) -> list[str]:
    """Names of the files in one folder of a repository; where the hub is not reached, of those in the cache."""
    try:
        paths = [Path(path) for path in list_repo_files(repo, revision=commit)]
    except Exception:  # whatever the libraries raise for a hub's answer
        snapshot = _cached(repo) / commit
        paths = [path.relative_to(snapshot) for path in (snapshot / folder).glob("*")]
    return [path.name for path in paths if path.parent == Path(folder)]


def upload(folder: Path, repo: str, private: bool, message: str, token: str | None = None) -> str:
    """Upload a folder in one commit, to a repository that is made if it is not there; the commit's address.

    Args:
        folder: What is uploaded.
        repo: Hub id.
        private: Whether a new repository is private.
        message: Of the commit.
        token: Of who uploads. Default: that of `hf auth login`.

    Raises:
        UserError: the hub is not reached or refuses; nothing is changed there but that the repository may be new.
    """
    hub = HfApi(token=token)
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except Exception as error:  # whatever the libraries raise for a hub that is not reached, or its answer
        status = getattr(getattr(error, "response", None), "status_code", None)
        needed = isinstance(error, LocalTokenNotFoundError) or status in (401, 403)
        why = "it needs `hf auth login` with a token that may write there" if needed else reason(error, repo, None)
        why = HIDDEN.sub(r"\1...", why)
        raise UserError(f"{repo}: not uploaded: {why}") from None  # the token stands in what lies below it too


def reason(error: BaseException, repo: str, revision: str | None) -> str:
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


def _cached(repo: str) -> Path:
    """Where the cache keeps the commits of a repository."""
    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots")
