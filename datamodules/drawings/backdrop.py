"""What moves behind the drawn objects, as inputs carry it: a camera's presets, its poses over depth, a driving video.

In `meta_data.json` it is `"camera": {"pan": 0.2, "zoom": 1.3}`, or `"camera": {"poses": "poses.txt", "depth":
"depth.npy"}`, or `"driving": "driving.mp4"`; files lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remoco.common.errors import UserError
from remoco.common.picture_files import NPY, Source

PRESETS = ("pan", "tilt", "zoom", "roll")
VIDEOS = {"mp4": (4, b"ftyp"), "webm": (0, b"\x1a\x45\xdf\xa3"), "avi": (8, b"AVI ")}
"""Ending -> where in a file of this container what stands: MP4 and MOV, WebM and Matroska, AVI."""


@dataclass(frozen=True)
class Backdrop:
    """One of: presets of a camera; its poses and the image's depth; a video whose motion is taken. Files as they are.

    Attributes:
        presets: names of PRESETS -> amount, as `conditions.camera.preset_camera` takes them.
        poses: the camera's path, in RealEstate10K's text format.
        depth: depth map of the image, `.npy` or a PNG of 16 bits.
        driving: a video.

    Raises:
        UserError: a preset is none, or an amount out of its range.
    """

    presets: dict[str, float] | None = None
    poses: Source | None = None
    depth: Source | None = None
    driving: Source | None = None

    def __post_init__(self) -> None:
        if self.presets is None:
            return
        from conditions.camera import preset_camera

        for name, value in self.presets.items():
            if name not in PRESETS:
                raise UserError(f"camera: {str(name)[:40]!r}: expected {', '.join(PRESETS)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"camera: {name}: expected a number, got {str(value)[:40]!r}")
        try:
            preset_camera(2, 64, 64, **self.presets)
        except (ValueError, OverflowError) as error:
            raise UserError(f"camera: {error}") from None

    def files(self) -> dict[str, Source]:
        """Name in a folder of inputs -> file."""
        sources: dict[str, Source] = {}
        if self.poses is not None:
            sources["poses.txt"] = self.poses
        if self.depth is not None:
            sources[f"depth.{_kind(self.depth)}"] = self.depth
        if self.driving is not None:
            sources[f"driving.{_kind(self.driving)}"] = self.driving
        return sources

    def json(self) -> dict[str, Any]:
        """What `meta_data.json` says of it, with the names of `files`."""
        if self.presets is not None:
            return {"camera": self.presets}
        names = {name.partition(".")[0]: name for name in self.files()}
        return {"driving": names["driving"]} if self.driving is not None else {"camera": names}


def backdrop_from_json(
    entries: Mapping[str, Any], beside: Path | Mapping[str, bytes] | None, name: str
) -> Backdrop | None:
    """The backdrop of a parsed `meta_data.json`; None where it has none.

    Args:
        entries: all of it.
        beside: the folder of its files, or the files by name; None where it can have none.
        name: what errors call the text.

    Raises:
        UserError: one line that names the field and what was expected.
    """
    camera, driving = entries.get("camera"), entries.get("driving")
    if camera is None and driving is None:
        return None
    if camera is not None and driving is not None:
        raise UserError(f"{name}: driving: expected either a camera or a driving video, got both")
    if camera is not None and (not isinstance(camera, Mapping) or not camera):
        raise UserError(f'{name}: camera: expected {{"pan": NUMBER, ...}} or {{"poses": FILE, "depth": FILE}}')
    if camera is not None and not camera.keys() & {"poses", "depth"}:
        try:
            return Backdrop(dict(camera))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    named: Mapping[str, Any] = {"driving": driving} if camera is None else camera
    if camera is not None and set(camera) != {"poses", "depth"}:
        raise UserError(f"{name}: camera: expected both poses and depth, and no preset beside them")
    files: dict[str, Any] = {field: _beside(beside, value, f"{name}: {field}") for field, value in named.items()}
    return Backdrop(**files)


def backdrop_from_flags(
    camera: str | None, poses: str | None, depth: str | None, driving: str | None
) -> Backdrop | None:
    """What a command's flags ask for; None where they ask for nothing.

    Raises:
        UserError: flags that exclude each other, or a preset that is none.
    """
    flags = [name for name, value in (("--camera", camera), ("--poses", poses), ("--driving", driving)) if value]
    if len(flags) > 1:
        raise UserError(f"{flags[1]}: expected either this or {flags[0]}, got both")
    if (poses is None) != (depth is None):
        raise UserError("--poses and --depth: expected both; the camera's motion depends on the depth")
    for name, value in (("--poses", poses), ("--depth", depth), ("--driving", driving)):
        if value is not None and not Path(value).is_file():
            raise UserError(f"{name} {value}: no such file")
    if not flags:
        return None
    files = [None if value is None else Path(value) for value in (poses, depth, driving)]
    try:
        return Backdrop(_presets(camera) if camera else None, *files)
    except UserError as error:
        raise UserError(f"--{error}") from None  # it begins with `camera`


def _presets(text: str) -> dict[str, float]:
    """`pan:0.2,zoom:1.5` -> numbers; `Backdrop` checks their ranges."""
    presets = {}
    for part in text.split(","):
        name, colon, value = part.strip().partition(":")
        if name not in PRESETS or not colon or name in presets:
            raise UserError(
                f"--camera {text}: {part!r}: expected {', '.join(f'{p}:NUMBER' for p in PRESETS)}, each once"
            )
        try:
            presets[name] = float(value)
        except ValueError:
            raise UserError(f"--camera {text}: {name}: expected a number, got {value!r}") from None
    return presets


def file_names(entries: Any) -> list[str]:
    """Names of the files that a parsed `meta_data.json` asks for, whether they are there or not."""
    camera = entries.get("camera") if isinstance(entries, Mapping) else None
    values = list(camera.values()) if isinstance(camera, Mapping) else []
    values.append(entries.get("driving") if isinstance(entries, Mapping) else None)
    return [value for value in values if isinstance(value, str)]


def video_kind(data: bytes) -> str | None:
    """Key of VIDEOS by how a file begins; None for anything else, as a playlist that has other files opened."""
    return next((kind for kind, (at, mark) in VIDEOS.items() if data[at : at + len(mark)] == mark), None)


def _kind(source: Source) -> str:
    if not isinstance(source, bytes):
        return Path(source).suffix.lower().lstrip(".")
    return "npy" if source.startswith(NPY) else video_kind(source) or "png"


def label(source: Source, field: str) -> str:
    """What errors call a file of a backdrop."""
    return field if isinstance(source, bytes) else f"{field} {source}"


def _beside(beside: Path | Mapping[str, bytes] | None, value: Any, name: str) -> Source:
    if not isinstance(value, str) or PurePosixPath(value).name != value or len(value) > 100 or "\0" in value:
        raise UserError(f"{name}: expected the name of a file beside it, got {str(value)[:40]!r}")
    if isinstance(beside, Path) and (beside / value).is_file():
        return beside / value
    if isinstance(beside, Mapping) and value in beside:
        return beside[value]
    raise UserError(f"{name}: {value}: no such file beside it")
