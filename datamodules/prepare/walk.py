"""The files under a folder, each once, whatever links lead to it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Identity = tuple[int, int] | str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder under a folder.

    Attributes:
        name: its path below the folder, through links, with / behind a folder.
        path: itself.
        fault: why it is not read, if it is not.
    """

    name: str
    path: Path
    fault: str = ""


class Walk:
    """Every file of a kind under a folder, and what does not read there.

    A linked folder is read once, after the folders that are not linked, and a file that several links lead to is there
    once, under its own name where it has one. The others are entries with a fault.

    Args:
        root: folder.
        wanted: whether a file of this name counts; a broken link counts whatever its name, for it may be a folder's.
    """

    def __init__(self, root: Path, wanted: Callable[[str], bool]) -> None:
        self.root, self.wanted = root, wanted
        self._around = {_identity(folder) for folder in root.resolve().parents}
        self._read: set[Identity] = set()
        self._first: dict[Identity, str] = {}

    def __iter__(self) -> Iterator[Entry]:
        waiting, links = deque([self.root]), list[Path]()
        while waiting:
            top = waiting.popleft()
            try:
                here = _identity(top)
            except OSError as error:
                yield self._folder(top, f"the folder does not read: {error.strerror}")
                continue
            if here in self._read:
                yield self._folder(top, "is a link to a folder that is read already")
            elif here in self._around:
                yield self._folder(top, "is a link to a folder around this one, which is not followed")
            else:
                yield from self._tree(top, waiting, links)
        for path in sorted(links):
            yield self._file(path)

    def _tree(self, top: Path, linked: deque[Path], links: list[Path]) -> Iterator[Entry]:
        """The files of a folder and of the folders in it; linked folders go to `linked`, linked files to `links`."""
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                here = _identity(folder)
                if here in self._read:  # a link led here before
                    continue
                self._read.add(here)
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                yield self._folder(folder, f"the folder does not read: {error.strerror}")
                continue
            for entry in listed:
                link, path = entry.is_symlink(), Path(entry.path)
                if os.path.isdir(path):
                    (linked if link else folders).append(path)
                elif link:
                    if self.wanted(entry.name) or _nowhere(path):
                        links.append(path)
                elif self.wanted(entry.name):
                    yield self._file(path)

    def _file(self, path: Path) -> Entry:
        name = path.relative_to(self.root).as_posix()
        return Entry(name, path, self._fault(name, path))

    def _folder(self, path: Path, fault: str) -> Entry:
        return Entry(f"{path.relative_to(self.root).as_posix()}/", path, fault)

    def _fault(self, name: str, path: Path) -> str:
        """Why a path that is listed is no file to read, if it is none."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return "is a broken link"
        except OSError as error:
            return f"does not open: {error.strerror}"
        if not stat.S_ISREG(status.st_mode):
            return "is not a file"
        first = self._first.setdefault(_identity(path, status), name)
        return "" if first == name else f"is the same file as {first}, which is used"


def _nowhere(link: Path) -> bool:
    """Whether a link is broken; Emacs marks what it edits with one, which begins with .#"""
    return not os.path.exists(link) and not link.name.startswith(".#")


def _identity(path: Path, status: os.stat_result | None = None) -> Identity:
    """What is the same for every path to a file or folder; where a file system numbers nothing, its real path."""
    status = os.stat(path) if status is None else status
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
