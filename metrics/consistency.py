"""Frame consistency, and the mean flow magnitude that is always read beside it."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.base import Clip, VideoMetric, check_video
from metrics.features import FeatureNetwork
from metrics.stand_ins import RandomFrameFeatures
from remoco.common.errors import UserError


class _MeanOverClips(VideoMetric):
    """A number per clip of at least two frames, and its mean over clips."""

    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def of(self, video: Tensor) -> Tensor:
        """The number of one clip (L, 3, H, W) uint8, a float64 scalar."""
        raise NotImplementedError

    def update(self, video: Tensor) -> None:
        """Add one clip, (L, 3, H, W) uint8 with L at least 2.

        Raises:
            UserError: another dtype or shape, or a single frame.
        """
        check_video(video)
        if len(video) < 2:
            raise UserError("a clip needs at least 2 frames, got 1")
        self.total += self.of(video).to(self.total.device)
        self.clips += 1

    def add(self, clip: Clip) -> None:
        self.update(clip.video)

    def value(self) -> Tensor:
        return self.total / self.clips


class FrameConsistency(_MeanOverClips):
    """Mean cosine of the embeddings of consecutive frames, per clip, then over clips (FateZero, Qi et al. 2023).

    A still clip scores 1: read it beside `MeanFlowMagnitude`.

    Args:
        feature: maps uint8 images (N, 3, H, W) to embeddings (N, D): `CLIPFeatures` (ViT-B/32 in the published tables),
            or seeded random features when not given.
    """

    higher_is_better = True

    def __init__(self, feature: FeatureNetwork | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature = RandomFrameFeatures() if feature is None else feature
        self.name = "frame_consistency" if self.feature.name == "clip" else f"frame_consistency_{self.feature.name}"

    def load(self) -> None:
        self.feature.load()

    def of(self, video: Tensor) -> Tensor:
        """Mean cosine, in [-1, 1]."""
        self.load()
        with torch.no_grad():
            embeddings = F.normalize(self.feature(video).double(), dim=-1)
        return (embeddings[1:] * embeddings[:-1]).sum(-1).mean()

    def describe(self) -> str:
        return f"{self.feature.protocol}; L2-normalised, cosine of consecutive frames, mean per clip, then over clips"


class DenseTracker(Protocol):
    """Frames (L, 3, H, W) uint8 to an object whose `flow` is (L, 2, H, W), displacement in pixels from frame 1."""

    name: str
    version: str

    def __call__(self, frames: Any) -> Any:
        """See the class."""
        ...


class MeanFlowMagnitude(_MeanOverClips):
    """Mean length of the displacement from frame 1, over frames 2 to L and pixels, then over clips, in pixels.

    How much moves, in pixels of the clips as they are: the same motion in a clip twice as wide counts twice, so the
    result says how wide they were. MotionPro reports 8.95 for its own clips and 4.95 for MOFA-Video's, by a tracker it
    does not name.

    Args:
        tracker: dense tracker, for instance `datamodules.trackers.DIS`.
    """

    higher_is_better = None
    in_pixels = True
    narrowest: Tensor
    widest: Tensor

    def __init__(self, tracker: DenseTracker, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tracker = tracker
        self.name = f"flow_magnitude_{tracker.name}"
        self.add_state("narrowest", torch.tensor(torch.inf, dtype=torch.float64), dist_reduce_fx="min")
        self.add_state("widest", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def of(self, video: Tensor) -> Tensor:
        """Mean displacement in pixels."""
        self.narrowest, self.widest = self.narrowest.clamp(max=video.shape[-1]), self.widest.clamp(min=video.shape[-1])
        flow = torch.as_tensor(self.tracker(video.cpu().numpy()).flow)
        return torch.linalg.vector_norm(flow[1:].double(), dim=1).mean()

    def describe(self) -> str:
        low, high = int(self.narrowest), int(self.widest)
        width = f"{low} wide" if low == high else f"{low} to {high} wide"
        tracker = f"tracker {self.tracker.name} {self.tracker.version}"
        return f"{tracker}; displacement from frame 1 in pixels of clips {width}, frames 2 to L"

    def extra(self) -> dict[str, float]:
        """Width of the narrowest and of the widest clip in pixels."""
        return {"narrowest": int(self.narrowest), "widest": int(self.widest)}
