"""Control error: how far a generated object is from its track, found by masked template matching."""

from typing import Any

import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor


def moving_object(flow: Tensor, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """What moves in clips where one rigid thing moves without turning over a still background, and its track.

    Args:
        flow: (B, L, 2, H, W) exact displacement from frame 1 in pixels x, y.
        threshold: Mean displacement in pixels above which a pixel of frame 1 belongs to the object.

    Returns:
        mask (B, H, W) bool of the object in frame 1, and track (B, L, 2) float64, the mean displacement of its pixels;
        zero where nothing moves.
    """
    mask = torch.linalg.vector_norm(flow.float(), dim=2).mean(1) > threshold
    count = mask.sum((1, 2)).clamp(min=1)
    track = (flow.double() * mask[:, None, None]).sum((3, 4)) / count[:, None, None]
    return mask, track


def match_template(video: Tensor, template: Tensor, mask: Tensor) -> Tensor:
    """Displacement in whole pixels at which each frame looks most like the masked part of the template.

    The least sum of squared differences over the mask, searched over all displacements that keep the middle of the
    mask's bounding box inside the frame; beyond its border a frame goes on with its border pixels.

    Args:
        video: (L, 3, H, W) uint8.
        template: (3, H, W) uint8, the frame in which the mask is known.
        mask: (H, W) bool, at least one pixel true.

    Returns:
        (L, 2) float64 x, y.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("match_template: the mask is empty, so there is nothing to look for")
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    inside = mask[top : top + height, left : left + width].double()
    patch = template[:, top : top + height, left : left + width].double() * inside
    # half the box on each side: (patch, frame) positions from -h//2 to H - h//2, whole frames at a time by FFT
    pad = (width // 2, width // 2, height // 2, height // 2)
    frames = F.pad(video.double(), pad, mode="replicate")
    size = frames.shape[-2:]

    def correlate(image: Tensor, kernel: Tensor) -> Tensor:
        product = torch.fft.rfft2(image) * torch.fft.rfft2(kernel, s=size).conj()
        whole = torch.fft.irfft2(product, s=size)
        return whole[..., : size[0] - height + 1, : size[1] - width + 1]

    # sum of mask (frame - patch)^2, without the patch's own square, which is the same everywhere
    difference = correlate(frames.square().sum(1), inside) - 2 * correlate(frames, patch).sum(1)
    best = difference.flatten(1).argmin(1)
    across = difference.shape[-1]
    x, y = best % across - pad[0] - left, best // across - pad[2] - top
    return torch.stack([x, y], dim=1).double()


class ControlError(torchmetrics.Metric):
    """Mean distance in pixels, over frames 2 to L and then over clips, of a generated object from its true track.

    The object is found in every generated frame as the masked part of the given first frame (`match_template`), so it
    cannot be redefined by what was generated. The state is a float64 sum and a count: the result does not depend on the
    split into batches or processes, if each clip is given once.

    Example:
        >>> import torch
        >>> from metrics import ControlError
        >>> video = torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8)
        >>> video[:, 0, :, 4:7, 4:7] = 255
        >>> video[:, 1, :, 4:7, 7:10] = 255  # 3 px to the right, and it should have been 4 px down
        >>> mask = torch.zeros(1, 16, 16, dtype=torch.bool)
        >>> mask[:, 3:8, 3:8] = True
        >>> metric = ControlError()
        >>> metric.update(video, video[:, 0], mask, torch.tensor([[[0.0, 0.0], [0.0, 4.0]]]))
        >>> metric.compute().item()
        5.0
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    protocol = (
        "px; masked template matching of the first frame's object, whole pixels; mean over frames 2..L, then over clips"
    )

    total: Tensor
    clips: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, videos: Tensor, first_frames: Tensor, masks: Tensor, tracks: Tensor) -> None:
        """Add clips.

        Args:
            videos: (B, L, 3, H, W) uint8, generated.
            first_frames: (B, 3, H, W) uint8, true; the object is the masked part.
            masks: (B, H, W) bool, the object in the first frame.
            tracks: (B, L, 2) displacement x, y in pixels from frame 1 that the object should have.

        Raises:
            ValueError: shapes do not fit, or a mask is empty.
        """
        batch, frames, _, height, width = videos.shape
        expected = {
            "first_frames": (batch, 3, height, width),
            "masks": (batch, height, width),
            "tracks": (batch, frames, 2),
        }
        given = {"first_frames": first_frames, "masks": masks, "tracks": tracks}
        for name, shape in expected.items():
            if tuple(given[name].shape) != shape:
                raise ValueError(
                    f"{name} is {tuple(given[name].shape)}, expected {shape} for videos {tuple(videos.shape)}"
                )
        for video, first, mask, track in zip(videos, first_frames, masks, tracks, strict=True):
            found = match_template(video, first, mask)
            self.total += torch.linalg.vector_norm(found[1:] - track[1:].double(), dim=1).mean()
            self.clips += 1

    def compute(self) -> Tensor:
        """The mean over clips, float64 in pixels.

        Raises:
            RuntimeError: no clip was given.
        """
        if self.clips == 0:
            raise RuntimeError("control error needs at least one clip")
        return self.total / self.clips
