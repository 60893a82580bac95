"""What a generation starts from: an image, tracks on it, a brush or several, and what moves the scene behind them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodules.drawings.backdrop import Backdrop
from datamodules.drawings.checked import checked_eases, checked_ids, checked_tracks
from datamodules.drawings.framing import Fit, FrameArea, Framing, framing_of
from remoco.common.errors import UserError
from remoco.common.picture_files import check_size
from remoco.common.pictures import WHITE


@dataclass  # not frozen: Lightning copies batches field by field
class Drawing:
    """A first frame, tracks drawn on it and what is brushed; checked where it is made.

    Attributes:
        image: (H, W, 3) uint8.
        tracks: key points of each track, (n, 2) float64 x, y in pixels of the image; they start inside it.
        brush: (H, W) uint8, 0 where nothing is brushed; None for no brush. Or (M, H, W) bool, which may lie over each
            other, a brush for each track and then those of no track.
        times: for each track (n,) when it is at each point, growing from 0, the first frame, to 1, the last; None
            spreads its points evenly. None for all of them.
        brush_ids: of a brush (H, W), for each track the value that moves with it, None for none of them; what is
            brushed with a value of no track stays. None: one brush for all tracks, whatever its values.
        backdrop: how what lies behind the objects moves; None: it does not.
        eases: for each track one of `conditions.strokes.EASES`, its speed along the way, or None; one with times has
            none. None for all of them.
        prompt: what the clip shows, in words, for a base that takes text; None: nothing is said.
        alpha: (H, W) uint8, how opaque the picture is whose transparent parts the image shows over a background; None:
            all of it.

    Raises:
        UserError: one line that names the field and what was expected.
    """

    image: np.ndarray
    tracks: list[np.ndarray]
    brush: np.ndarray | None = None
    times: list[np.ndarray | None] | None = None
    brush_ids: list[int | None] | None = None
    backdrop: Backdrop | None = None
    eases: list[str | None] | None = None
    prompt: str | None = None
    alpha: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise UserError(f"image is {self.image.shape} {self.image.dtype}, expected (height, width, 3) uint8 (RGB)")
        check_size(self.image.shape[:2], "image")
        names = [f"track {index}" for index in range(len(self.tracks))]
        self.tracks, self.times = checked_tracks(self.tracks, self.times, self.size, names, "times")
        self.eases = checked_eases(self.eases, len(self.tracks), self.times, "eases")
        if self.brush is not None:
            shape = self.brush.shape
            if shape[-2:] != self.size or len(shape) not in (2, 3):
                raise UserError(f"brush: {sides(shape)}, expected the size of the image, {sides(self.size)}")
            if len(shape) == 3 or self.brush.dtype != np.uint8:
                self.brush = (self.brush != 0).astype(bool if len(shape) == 3 else np.uint8)
        if self.alpha is not None and (self.alpha.shape != self.size or self.alpha.dtype != np.uint8):
            found = f"{self.alpha.shape} {self.alpha.dtype}"
            raise UserError(f"alpha is {found}, expected the size of the image, {sides(self.size)}, uint8")
        if self.brush_ids is not None:
            values = set() if self.brush is None or self.brush.ndim == 3 else set(np.unique(self.brush).tolist()) - {0}
            self.brush_ids = checked_ids(self.brush_ids, len(self.tracks), values, "brush_ids")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    def paths(self, frames: int, framing: Framing | None = None) -> list[np.ndarray]:
        """Where each track is in each frame, (frames, 2) float64 x, y, in pixels of the image or of a frame of it."""
        from conditions.strokes import interpolate_track

        tracks = self.tracks if framing is None else framing.tracks(self.tracks)
        drawn = zip(tracks, self._times(), self._eases(), strict=True)
        return [interpolate_track(track, frames, at, ease) for track, at, ease in drawn]

    def strokes(self, frames: int) -> list[np.ndarray]:
        """The tracks for a pipeline, which spreads key points evenly: those with times or an ease as a point for each
        frame.
        """
        drawn = zip(self.tracks, self._times(), self._eases(), self.paths(frames), strict=True)
        return [track if times is None and ease is None else path for track, times, ease, path in drawn]

    def masks(self) -> np.ndarray | None:
        """The brush for a pipeline: (H, W) bool; or (M, H, W), one for each track and then those of no track; None for
        no brush.
        """
        if self.brush is None or self.brush.ndim == 3:
            return self.brush
        if self.brush_ids is None:
            return self.brush > 0
        of_tracks = [self.brush == (index or -1) for index in self.brush_ids]
        others = sorted(set(np.unique(self.brush).tolist()) - {0} - set(self.brush_ids))
        masks = of_tracks + [self.brush == index for index in others]
        return np.stack(masks) if masks else np.zeros((0, *self.brush.shape), dtype=bool)

    def brushed(self) -> np.ndarray | None:
        """(H, W) bool, what any brush covers; None where none does."""
        if self.brush is None or not self.brush.any():
            return None
        brushed: np.ndarray = np.any(self.brush, axis=0) if self.brush.ndim == 3 else self.brush > 0
        return brushed

    def framing(
        self, grid: FrameArea, fit: Fit = "crop", height: int | None = None, width: int | None = None
    ) -> Framing:
        """The frame that this drawing gets, by the rule of size: see `framing_of`, whose arguments these are."""
        return framing_of(self.size, grid, fit, height, width, self.starts)

    @property
    def starts(self) -> np.ndarray:
        """(N, 2) x, y where the tracks start."""
        return np.array([track[0] for track in self.tracks]).reshape(-1, 2)

    def framed(self, framing: Framing, background: tuple[int, int, int] = WHITE) -> Drawing:
        """The drawing in its frame: image, tracks and brush.

        Args:
            framing: framing of a picture of this size.
            background: R, G, B around a padded picture.

        Raises:
            UserError: a track starts where the frame does not show the picture.
        """
        if framing.same:
            return self
        brush, ids = self.brush, self.brush_ids
        if brush is not None:
            brush = framing.brush(brush)
        if ids is not None:  # a brush of a few pixels may be gone
            ids = [index if brush is not None and (brush == index).any() else None for index in ids]
        image, tracks = framing.image(self.image, background), framing.tracks(self.tracks)
        alpha = None if self.alpha is None else framing.image(np.dstack([self.alpha] * 3), (0, 0, 0))[..., 0]
        return replace(self, image=image, tracks=tracks, brush=brush, brush_ids=ids, alpha=alpha)

    def json(self) -> dict[str, Any]:
        """What `meta_data.json` says of it; see `drawing_from_json`."""
        entries: dict[str, Any] = {"traj_key_points": [track.tolist() for track in self.tracks]}
        if self.times is not None:
            entries["times"] = [None if times is None else times.tolist() for times in self.times]
        if self.eases is not None:
            entries["ease"] = self.eases
        if self.brush_ids is not None:
            entries["brush"] = self.brush_ids
        if self.prompt is not None:
            entries["prompt"] = self.prompt
        return entries if self.backdrop is None else entries | self.backdrop.json()

    def fingerprint(self) -> str:
        """SHA-256 of all of it: that of other inputs is another one."""
        digest = hashlib.sha256(json.dumps([self.image.shape, self.json()]).encode())
        digest.update(self.image.tobytes())
        digest.update(b"none" if self.brush is None else self.brush.tobytes())
        digest.update(b"" if self.alpha is None else self.alpha.tobytes())
        for source in (self.backdrop.files() if self.backdrop else {}).values():
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _times(self) -> Sequence[np.ndarray | None]:
        return self.times or [None] * len(self.tracks)

    def _eases(self) -> Sequence[str | None]:
        return self.eases or [None] * len(self.tracks)


def sides(shape: tuple[int, ...]) -> str:
    """`40 x 60`, as errors give a shape."""
    return " x ".join(map(str, shape))
