"""DragAnything: Gaussian blobs and entity vectors that move along the tracks, by a copy of SVD's encoder.

Source: showlab/DragAnything, whose repository states no licence: facts and formulas alone are used, and no file or
sentence of it. Weights: weijiawu/DragAnything on the hub (no licence was seen), the user's own files; the base is SVD
img2vid of 14 frames, the features are Stable Diffusion 1.5's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.drawings import Drawing
from lightning_modules.process.sampler import OnStep
from lightning_modules.systems.controlled import ControlledSVD, Settings
from lightning_modules.systems.encoder_copy import EncoderCopy, PixelBranch, halving, through
from lightning_modules.systems.files import base_parts, fit, read_state, released_file
from lightning_modules.systems.quirks import Quirks as SharedQuirks
from lightning_modules.systems.system import FramedSystem, check_size, stretched
from lightning_modules.systems.tracks import paths, scaled_points, track_brushes
from metrics.correspondence import DIFTFeatures
from remoco.common.errors import UserError

BLOB, BLOB_SIGMA = 200, 40.0  # side of the Gaussian that is resized to each entity, and its standard deviation
MAX_RADIUS = 50
LEAST_SIDE = 3  # a blob of which less is in the frame is not drawn
ENTITY_CHANNELS, ENTITY_WIDTHS = 160, (160, 160, 256, 256)
BASE_FRAMES = 14
FEATURE_BLOCK = 3  # of Stable Diffusion 1.5's up blocks: 320 channels at 1/8

Features = Callable[[Tensor], Tensor]  # (3, H, W) uint8 -> (320, H/8, W/8): DIFT of up block 3 on SD 1.5
Segment = Callable[[np.ndarray, np.ndarray], np.ndarray]  # image (H, W, 3) uint8, start (2,) x, y -> mask (H, W)


@dataclass(frozen=True)
class Quirks(SharedQuirks):
    """See `quirks.Quirks`; and

    Attributes:
        entity: `channel_0` fills an entity's circle with the first channel of its pooled feature in all channels;
            `vector` with the feature, as the training set does.
    """

    entity: Literal["channel_0", "vector"] = "channel_0"

    @classmethod
    def corrected(cls) -> Quirks:
        """None of them."""
        return cls("clip_pixel", "once", "asked", True, False, "vector")


AS_RELEASED = Quirks()
RELEASED = Settings(size=(320, 576), frames=14, motion_bucket=180)


class Control(NamedTuple):
    """The copy's inputs for one drawing.

    heatmap: (L, H, W) uint8, as the network takes it: bytes, not divided. entity: (L, H, W) int64, 0 where no entity
    is, else its number. vectors: (1 + N, 160), of each number, the first zero.
    """

    heatmap: Tensor
    entity: Tensor
    vectors: Tensor


class ControlBranch(PixelBranch):
    """The heat map's convolutions and the entity map's, whose sum joins the copy's first features.

    Args:
        out_channels: Output channels of the UNet's first level.
    """

    def __init__(self, out_channels: int):
        super().__init__(3, out_channels)
        self.blocks_feature = nn.ModuleList(halving(list(zip(ENTITY_WIDTHS, ENTITY_WIDTHS[1:]))))
        self.conv_out_feature = nn.Conv2d(ENTITY_WIDTHS[-1], out_channels, 3, padding=1)

    def both(self, heatmap: Tensor, entity: Tensor) -> Tensor:
        """(N, 3, H, W) and (N, 160, H, W) -> (N, C, H/8, W/8)."""
        return self(heatmap) + self.conv_out_feature(through(self.blocks_feature, entity))


class ControlledEncoder(EncoderCopy):
    """The copy with its control branch; names are those of the released file.

    Args:
        config: Configuration of the UNet it is a copy of.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.controlnet_cond_embedding = ControlBranch(config["block_out_channels"][0])

    def maps(self, control: Control) -> list[Tensor | None]:
        """What is added inside the copy: the control after its input convolution. Frame by frame, for the entity map
        of a clip of the released size has 1.6 GB.
        """
        weight = self.conv_in.weight
        vectors, frames = control.vectors.to(weight), []
        for blob, numbers in zip(control.heatmap.to(weight), control.entity.to(weight.device)):
            entity = F.embedding(numbers, vectors).permute(2, 0, 1)[None]
            frames.append(self.controlnet_cond_embedding.both(blob.expand(1, 3, -1, -1), entity))
        return [torch.cat(frames), *[None] * (len(self.down_blocks) + 1)]


class DragAnything(FramedSystem):
    """DragAnything, as a `System`.

    Args:
        svd: The networks.
        features: DIFT of the first frame, of up block 3 of Stable Diffusion 1.5.
        segment: Mask of what a track starts on, for tracks without a brush: the release has SAM ViT-H. None: every
            track needs a brush.
    """

    name = "DragAnything"

    def __init__(self, svd: ControlledSVD, features: Features, segment: Segment | None = None):
        super().__init__(svd.settings, svd.quirks, svd.unet)
        quirks: Any = svd.quirks
        self.svd, self.features, self.segment, self.quirks = svd, features, segment, quirks

    @classmethod
    def load(
        cls,
        path: str,
        svd: str,
        features: Features | str,
        segment: Segment | None = None,
        quirks: Quirks = AS_RELEASED,
        settings: Settings = RELEASED,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> DragAnything:
        """Read the released weights.

        Args:
            path: `diffusion_pytorch_model.safetensors` or its folder.
            svd: diffusers' SVD of 14 frames, folder or hub id.
            features: As of the class; or the folder or hub id of Stable Diffusion 1.5 in diffusers' layout.
            segment: As of the class.
            quirks: As released, or corrected.
            settings: How it is sampled.
            dtype: Dtype of all networks.
            device: Where they go.

        Raises:
            UserError: other weights, another base, or one that does not read.
        """
        check_size(cls.name, settings.size)
        state = read_state(released_file(path))
        parts = base_parts(svd, BASE_FRAMES, cls.name)
        with torch.device("meta"):
            copy = ControlledEncoder(parts["unet"].config)
        fit(copy, state, path, cls.name)
        controlled = ControlledSVD(parts["unet"], copy, parts["vae"], parts["image_encoder"], settings, quirks)
        controlled.to(device, dtype)
        if isinstance(features, str):
            dift = DIFTFeatures(features, block=FEATURE_BLOCK)
            dift.load()
            features = dift.to(device)
        return cls(controlled, features, segment)

    def control(self, drawing: Drawing) -> Control:
        """Heat maps and entity maps of a drawing.

        Raises:
            UserError: a track has no mask, or one too small to have a feature; one line.
        """
        resized, tracks = self.tracks(drawing)
        masks = track_masks(resized, tracks, self.segment)
        image = torch.from_numpy(np.ascontiguousarray(resized.image)).permute(2, 0, 1)
        points = released_paths(tracks, self.size, self.size, self.frames, self.quirks)
        return drawn(points, masks, self.features(image), self.quirks)

    @torch.no_grad()
    def __call__(self, drawing: Drawing, seed: int, on_step: OnStep | None = None) -> Tensor:
        """(L, 3, H, W) float32 in [-1, 1]; see `System`."""
        resized = stretched(drawing, self.size)
        copy: Any = self.svd.copy
        maps = copy.maps(self.control(resized))
        return self.svd.video(resized.image, maps, seed, on_step)


def track_masks(drawing: Drawing, tracks: Sequence[np.ndarray], segment: Segment | None) -> list[np.ndarray]:
    """(H, W) uint8, 0 or 255, for each track: its own brush, else the brush's connected part under its start, else what
    `segment` says.

    Raises:
        UserError: a track has none.
    """
    masks, brushes = [], track_brushes(drawing, tracks)
    for index, (track, mask) in enumerate(zip(tracks, brushes, strict=True)):
        if mask is None and segment is not None:
            mask = np.asarray(segment(drawing.image, track[0])) != 0
        if mask is None or mask.shape != drawing.image.shape[:2] or not mask.any():
            raise UserError(
                f"DragAnything: track {index} starts at x, y = {[round(float(n), 1) for n in track[0]]} where nothing "
                f"is brushed, expected a brush under each of the {len(tracks)} tracks, or masks of SAM"
            )
        masks.append(mask.astype(np.uint8) * 255)
    return masks


def released_paths(
    tracks: Sequence[np.ndarray],
    canvas: tuple[int, int],
    size: tuple[int, int],
    frames: int,
    quirks: SharedQuirks = AS_RELEASED,
) -> np.ndarray:
    """(N, L, 2) points of key points on a canvas, in pixels of a frame of another size."""
    return paths(scaled_points(tracks, canvas, size, quirks.whole_pixels), frames, click=quirks.whole_pixels)


def drawn(points: np.ndarray, masks: Sequence[np.ndarray], feature: Tensor, quirks: Quirks = AS_RELEASED) -> Control:
    """Blobs and entities of tracks.

    Args:
        points: (N, L, 2) x, y; cut to whole pixels here, or rounded without the quirk.
        masks: (H, W) uint8 of each track, 255 inside; only 255 counts.
        feature: (320, h, w) of the first frame.
        quirks: As released, or corrected.

    Raises:
        UserError: a mask has no pixel left at the feature's size.
    """
    height, width = masks[0].shape
    places = (np.trunc(points) if quirks.whole_pixels else np.rint(points)).astype(int)
    blob, frames = blob_picture(), points.shape[1]
    heatmap = np.zeros((frames, height, width), np.uint8)
    entity = np.zeros((frames, height, width), np.int32)
    vectors = [torch.zeros(ENTITY_CHANNELS)]
    for number, (track, mask) in enumerate(zip(places, masks, strict=True), 1):
        inside = (mask == 255).astype(np.uint8)
        radius = min(mask_radius(inside), MAX_RADIUS)
        vectors.append(entity_vector(inside, feature, number - 1, quirks.entity))
        for frame, (x, y) in enumerate(track.tolist()):
            put_blob(heatmap[frame], blob, x, y, radius)
            cv2.circle(entity[frame], (x, y), radius, number, -1)
    return Control(torch.from_numpy(heatmap), torch.from_numpy(entity.astype(np.int64)), torch.stack(vectors))


def blob_picture() -> np.ndarray:
    """(200, 200) uint8 Gaussian of peak 255 at (100, 100), 0 beyond a distance of 100."""
    at = np.arange(BLOB) - BLOB / 2
    distance = at[:, None] ** 2 + at**2
    values = 255 * np.exp(-distance / (2 * BLOB_SIGMA**2))
    return np.where(distance <= (BLOB / 2) ** 2, values, 0).astype(np.uint8)


def mask_radius(inside: np.ndarray) -> int:
    """Largest distance from a pixel of a mask (H, W) of 0 and 1 to its border; of one that covers all, very large."""
    return int(cv2.distanceTransform(inside, cv2.DIST_L2, 5).max())


def put_blob(picture: np.ndarray, blob: np.ndarray, x: int, y: int, radius: int) -> None:
    """Write a blob over what is in the square around a point. At the border the square is cut and the blob squeezed
    into what is left, as the release does.
    """
    height, width = picture.shape
    left, right = max(x - radius, 0), min(x + radius, width - 1)
    top, bottom = max(y - radius, 0), min(y + radius, height - 1)
    if right - left > LEAST_SIDE and bottom - top > LEAST_SIDE:
        picture[top:bottom, left:right] = cv2.resize(blob, (right - left, bottom - top))


def entity_vector(inside: np.ndarray, feature: Tensor, index: int, entity: str) -> Tensor:
    """(160,) of a mask: the feature's mean over it, neighbouring channels averaged; or its first channel throughout."""
    height, width = feature.shape[1:]
    small = cv2.resize(inside, (width, height)) > 0
    if not small.any():
        raise UserError(
            f"DragAnything: the mask of track {index} is empty at {height} x {width}, where features are pooled, "
            "expected a larger brush"
        )
    # pixels before channels: in float32 the order of the sum shows
    pooled = feature[:, torch.from_numpy(small).to(feature.device)].float().T.contiguous().mean(0).cpu()
    if entity == "channel_0":
        return pooled[:1].expand(ENTITY_CHANNELS)
    return pooled.unflatten(0, (ENTITY_CHANNELS, -1)).mean(1)
