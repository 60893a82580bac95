"""Control error: how far a moving object of a generated clip is from the track that it should follow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.base import Clip, VideoMetric, check_video
from metrics.trajectory import PointTracker
from remoco.common.errors import UserError

BESIDE = ("standing_still", "own_error", "other_control")  # what the error is read beside


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
    mask's bounding box inside the frame; beyond its border a frame repeats its border pixels.

    Args:
        video: (L, 3, H, W) uint8.
        template: (3, H, W) uint8, the frame in which the mask is known.
        mask: (H, W) bool, at least one pixel true.

    Returns:
        (L, 2) float64 x, y.

    Raises:
        UserError: the mask is empty.
    """
    return _match(video, template, mask)[0]


def match_turned(video: Tensor, template: Tensor, mask: Tensor, turns: Tensor) -> Tensor:
    """`match_template` for a thing that turns and grows: the displacement of the mask's middle.

    In each frame it is looked for as it was in the template, and turned as it should be by then; the better one
    counts, so that a clip is not judged by whether the thing turns.

    Args:
        video: (L, 3, H, W) uint8.
        template: (3, H, W) uint8, the frame in which the mask is known.
        mask: (H, W) bool, at least one pixel true.
        turns: (L, 2, 2), rotation times scale since the template.

    Returns:
        (L, 2) float64 x, y, in whole pixels.

    Raises:
        UserError: the mask is empty.
    """
    straight, miss = _match(video, template, mask)
    each = [_match(frame[None], *_turned(template, mask, turn)) for frame, turn in zip(video, turns, strict=True)]
    turned, turned_miss = (torch.cat(parts) for parts in zip(*each))
    return torch.where((turned_miss < miss)[:, None], turned, straight)


def _turned(template: Tensor, mask: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """A picture and a mask turned about the mask's middle."""
    height, width = mask.shape
    middle = mask.nonzero().double().mean(0).flip(0)
    y, x = torch.meshgrid(
        *(torch.arange(n, device=mask.device, dtype=torch.float64) for n in mask.shape), indexing="ij"
    )
    source = (torch.stack([x, y], -1) - middle) @ torch.linalg.inv(turn.double()).T + middle
    grid = (2 * source + 1) / source.new_tensor([width, height]) - 1  # pixel centres, as `align_corners=False` counts
    both = torch.cat([template.double(), mask.double()[None]])[None]
    moved = F.grid_sample(both, grid[None], padding_mode="zeros", align_corners=False)[0]
    return moved[:3], moved[3] > 0.5


def _match(video: Tensor, template: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`match_template`, and (L,) the mean squared difference there."""
    if not mask.any():
        raise UserError("match_template: the mask is empty, so there is nothing to look for")
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
    least = difference.flatten(1).gather(1, best[:, None])[:, 0]
    across = difference.shape[-1]
    x, y = best % across - pad[0] - left, best // across - pad[2] - top
    return torch.stack([x, y], dim=1).double(), (least + patch.square().sum()) / inside.sum()


def moving_points(flow: Tensor, visibility: Tensor, count: int = 64, threshold: float = 1.0) -> Tensor:
    """Pixels of frame 1 that move and are seen in every frame, spread evenly over all such pixels.

    Args:
        flow: (L, 2, H, W) displacement from frame 1 in pixels.
        visibility: (L, H, W) bool.
        count: At most this many.
        threshold: Mean displacement in pixels above which a pixel moves.

    Returns:
        (M, 2) int64 x, y; M is 0 where nothing moves.
    """
    moving = visibility.all(0) & (torch.linalg.vector_norm(flow.float(), dim=1).mean(0) > threshold)
    places = moving.nonzero()
    chosen = torch.linspace(0, len(places) - 1, min(count, len(places)), device=places.device).round().long()
    return places[chosen].flip(1)


class ControlError(VideoMetric):
    """Is it controlled? Mean distance in pixels of what moves in a generated clip from where its control sends it.

    Over frames 2 to L, per clip, then over clips. Without a tracker, for clips of one rigid thing that does not turn:
    the thing is found in every generated frame as the masked part of the true first frame (`match_template`), so it
    cannot be redefined by what was generated. With a point tracker, for any clips with known tracks: up to 64 points
    that move and stay visible are followed.

    Beside the value: `standing_still`, the error of a clip that does not move; `own_error`, what the same measurement
    finds on the real clip; `other_control`, the error against the own track of a clip generated from the same first
    frame with another clip's control: about standing still's where the control causes the motion.

    Args:
        tracker: a point tracker, for instance of `datamodules.trackers.points`; none = template matching.
        other_control: also generate with another clip's control, which doubles the sampling.

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

    total: Tensor

    def __init__(self, tracker: PointTracker | None = None, other_control: bool = False, **kwargs: Any) -> None:
        super().__init__(compute_with_cache=False, **kwargs)  # `add` would not forget the number of before
        self.tracker = tracker
        self.name = "control_error" if tracker is None else f"control_error_{tracker.name}"
        self.needs = ("reference", "flow", "visibility", *(("other",) if other_control else ()))
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        for name in BESIDE:
            self.add_state(f"{name}_total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{name}_clips", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, videos: Tensor, first_frames: Tensor, masks: Tensor, tracks: Tensor, turns: Tensor | None = None
    ) -> None:
        """Add clips with their moving object and its track.

        Args:
            videos: (B, L, 3, H, W) uint8, generated.
            first_frames: (B, 3, H, W) uint8, true; the object is the masked part.
            masks: (B, H, W) bool, the object in the first frame.
            tracks: (B, L, 2) displacement x, y in pixels from frame 1 that the object's middle should have.
            turns: (B, L, 2, 2) how it should have turned and grown; none = it does not. It need not turn
                (`match_turned`).

        Raises:
            UserError: shapes do not fit, or a mask is empty.
        """
        batch, frames, _, height, width = videos.shape
        expected = {
            "first_frames": (batch, 3, height, width),
            "masks": (batch, height, width),
            "tracks": (batch, frames, 2),
        }
        tensors = {"first_frames": first_frames, "masks": masks, "tracks": tracks}
        if turns is not None:
            expected["turns"], tensors["turns"] = (batch, frames, 2, 2), turns
        for name, shape in expected.items():
            if tuple(tensors[name].shape) != shape:
                raise UserError(
                    f"{name} is {tuple(tensors[name].shape)}, expected {shape} for videos {tuple(videos.shape)}"
                )
        turned = [None] * batch if turns is None else turns
        for video, first, mask, track, turn in zip(videos, first_frames, masks, tracks, turned, strict=True):
            positions = match_template(video, first, mask) if turn is None else match_turned(video, first, mask, turn)
            self.total += _distance(positions, track)
            self.clips += 1

    def add(self, clip: Clip) -> None:
        """Judge one clip; one in which nothing moves says nothing about control and does not count."""
        check_video(clip.video)
        tracker = self.tracker
        if tracker is None:
            masks, tracks = moving_object(clip.flow[None])
            if not masks.any():
                return
            target = tracks[0]

            def error(video: Tensor) -> Tensor:
                return _distance(match_template(video, clip.reference[0], masks[0]), target)
        else:
            points = moving_points(clip.flow, clip.visibility)
            if not len(points):
                return
            target = clip.flow[:, :, points[:, 1], points[:, 0]].transpose(1, 2).double()
            queries = torch.cat([torch.zeros_like(points[:, :1]), points], dim=1).float()

            def error(video: Tensor) -> Tensor:
                return _distance(tracker(video, queries)[0] - points, target)

        self._update_count += 1  # as torchmetrics counts an `update`
        self.total += error(clip.video)
        self.clips += 1
        self._beside("standing_still", _distance(torch.zeros_like(target), target))
        self._beside("own_error", error(clip.reference))
        if "other" in self.needs:
            self._beside("other_control", error(clip.other()))

    def _beside(self, name: str, value: Tensor) -> None:
        setattr(self, f"{name}_total", getattr(self, f"{name}_total") + value)
        setattr(self, f"{name}_clips", getattr(self, f"{name}_clips") + 1)

    def value(self) -> Tensor:
        """The mean over clips, float64 in pixels."""
        return self.total / self.clips

    def describe(self) -> str:
        """How what moves is found."""
        if self.tracker is None:
            how = "masked template matching of the first frame's object, whole pixels"
        else:
            how = f"tracker {self.tracker.name} {self.tracker.version} at up to 64 points that move and stay visible"
        return f"px; {how}; mean over frames 2..L, then over clips"

    def extra(self) -> dict[str, float]:
        """`standing_still`, `own_error` and `other_control`, where they were measured."""
        counted = {name: int(getattr(self, f"{name}_clips")) for name in BESIDE}
        return {name: float(getattr(self, f"{name}_total") / n) for name, n in counted.items() if n}


def _distance(positions: Tensor, target: Tensor) -> Tensor:
    """Mean distance over frames 2 to L (and points) of displacements (L, ..., 2)."""
    return torch.linalg.vector_norm(positions[1:].double() - target[1:].double(), dim=-1).mean()
