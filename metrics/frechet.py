"""Frechet distance between feature distributions, and the metrics made of it: FVD over clips, FID over frames."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import rank_zero_warn

from metrics.base import Clip, VideoMetric, check_video
from metrics.features import FeatureNetwork
from metrics.stand_ins import RandomFrameFeatures, RandomVideoFeatures
from remoco.common.errors import UserError

PUBLISHED_CLIPS = 1000  # the published tables use this many; fewer give a biased, larger distance


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance between two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    `|mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^1/2)`. The last trace is the sum of the singular
    values of `sigma1^1/2 sigma2^1/2`: real and accurate also when a covariance is singular (fewer clips than features).

    Args:
        mu1: mean, (D,).
        sigma1: covariance, (D, D), in the convention of `np.cov` (divided by n - 1).
        mu2: mean, (D,).
        sigma2: covariance, (D, D).

    Returns:
        Scalar float64, at least 0 (equal Gaussians may differ by the rounding of either sign).
    """
    mu1, sigma1, mu2, sigma2 = (x.double() for x in (mu1, sigma1, mu2, sigma2))
    trace_root = torch.linalg.svdvals(_root(sigma1) @ _root(sigma2)).sum()
    return ((mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace_root).clamp_min(0)


def _root(sigma: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


class FrechetDistance(VideoMetric):
    """The state both metrics share: three float64 sums per side, equal for any split; each clip must be given once.

    Args:
        feature: see `metrics.features`.
        reference: what the real clips are, for the protocol: `raw` clips, or their `vae` reconstruction.
    """

    needs = ("reference",)
    label = "FVD"
    unit = "clips"
    real_n: Tensor
    fake_n: Tensor

    def __init__(self, feature: FeatureNetwork, reference: str = "raw", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(feature, nn.Module) or not hasattr(feature, "name"):
            raise UserError(f"feature must be a FeatureNetwork, got {type(feature).__name__}")
        self.feature = feature
        self.name = f"{self.label.lower()}_{feature.name}"
        self.reference = reference
        self.frames: int | None = None
        self._kept: dict[str, Tensor] = {}

    def keep_reference(self) -> None:
        """Keep the real side over every `reset` from now on; `add` then reads the generated clips alone."""
        self._kept = {name: getattr(self, name).clone() for name in ("real_n", "real_sum", "real_outer")}

    def forget_reference(self) -> None:
        """Read the real side anew after the next `reset`."""
        self._kept = {}

    def reset(self) -> None:
        """Start anew, but keep the real side where it is kept."""
        super().reset()
        if not self._kept:
            self.frames = None
        for name, value in self._kept.items():
            setattr(self, name, value.to(self.device, copy=True))

    def load(self) -> None:
        """Read the network, and make the sums, whose size it gives."""
        if "real_n" in self._defaults:
            return
        self.feature.load()
        size = getattr(self.feature, "num_features", None)
        if not isinstance(size, int):
            raise UserError(f"feature must have an int `num_features`, got {size!r}")
        for side in ("real", "fake"):
            self.add_state(f"{side}_n", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.to(self.device)

    def features(self, videos: Tensor) -> Tensor:
        """(B, L, 3, H, W) uint8 -> (N, D), one row per sample of the distribution."""
        raise NotImplementedError

    def update(self, videos: Tensor, real: bool) -> None:
        """Add clips to one side.

        Args:
            videos: uint8, (B, L, 3, H, W); L the same in every call.
            real: whether these are reference clips or generated ones.

        Raises:
            UserError: another dtype, shape or number of frames.
        """
        if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[2] != 3:
            raise UserError(f"videos must be uint8 (B, L, 3, H, W), got {videos.dtype} {tuple(videos.shape)}")
        if self.frames not in (None, videos.shape[1]):
            raise UserError(f"videos must all have {self.frames} frames, got {videos.shape[1]}")
        self.load()
        self.frames = videos.shape[1]
        with torch.no_grad():
            features = self.features(videos).double()
        if features.ndim != 2 or features.shape[1] != self.feature.num_features:
            raise UserError(f"feature gave {tuple(features.shape)} for {videos.shape[0]} clips, not (B, num_features)")
        side = "real" if real else "fake"
        setattr(self, f"{side}_n", getattr(self, f"{side}_n") + features.shape[0])
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + features.sum(0))
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + features.T @ features)
        if not real:
            self.clips += videos.shape[0]

    def add(self, clip: Clip) -> None:
        check_video(clip.video)
        check_video(clip.reference, "references")
        self.update(clip.video[None], real=False)
        if not self._kept:
            self.update(clip.reference[None], real=True)

    def value(self) -> Tensor:
        n_real, n_fake = int(self.real_n), int(self.fake_n)
        if min(n_real, n_fake) < 2:
            raise UserError(
                f"{self.label} needs at least 2 {self.unit} on each side, got {n_real} real and {n_fake} generated"
            )
        if self.unit == "clips" and self.clips < PUBLISHED_CLIPS:
            rank_zero_warn(f"{self.label} over {self.clips} clips is not comparable with published ones (n = 1000)")
        if min(n_real, n_fake) < self.feature.num_features:
            rank_zero_warn(
                f"a Frechet distance over {min(n_real, n_fake)} {self.unit} with {self.feature.num_features} features "
                "has singular covariances"
            )
        return frechet_distance(*self._gaussian("real"), *self._gaussian("fake"))

    def describe(self) -> str:
        return (
            f"{self.feature.protocol}; {self.frames} frames; n = {int(self.real_n)} reference, {int(self.fake_n)} "
            f"generated {self.unit}; reference: {self.reference}; Frechet distance in float64, np.cov convention"
        )

    def _gaussian(self, side: str) -> tuple[Tensor, Tensor]:
        n = getattr(self, f"{side}_n").double()
        mean = getattr(self, f"{side}_sum") / n
        return mean, (getattr(self, f"{side}_outer") - n * torch.outer(mean, mean)) / (n - 1)

    def compute(self) -> Tensor:
        if "real_n" not in self._defaults:
            raise UserError(f"{self.label} needs at least 2 {self.unit} on each side, got none")
        if self.clips == 0:
            self.value()  # says how many of each
        return super().compute()


class FrechetVideoDistance(FrechetDistance):
    """FVD (Unterthiner et al. 2018): the Frechet distance between video features of real and of generated clips.

    Args:
        feature: maps uint8 videos (B, L, 3, H, W) to (B, D): `I3DFeatures` (i3d-styleganv), `I3DLogits` (i3d-disco), or
            seeded random features when not given.
        reference: what the real clips are, for the protocol: `raw` clips, or their `vae` reconstruction.

    Example:
        >>> import torch
        >>> from metrics import FrechetVideoDistance, RandomVideoFeatures
        >>> fvd = FrechetVideoDistance(RandomVideoFeatures(seed=0))
        >>> clips = torch.arange(4 * 8 * 3 * 16 * 16).remainder(251).byte().view(4, 8, 3, 16, 16)
        >>> fvd.update(clips, real=True)
        >>> fvd.update(clips, real=False)
        >>> bool(fvd.compute() < 1e-6)
        True
    """

    def __init__(self, feature: FeatureNetwork | None = None, reference: str = "raw", **kwargs: Any) -> None:
        super().__init__(RandomVideoFeatures() if feature is None else feature, reference, **kwargs)

    def features(self, videos: Tensor) -> Tensor:
        return self.feature(videos)


class FrechetImageDistance(FrechetDistance):
    """FID (Heusel et al. 2017) over all frames of the clips.

    Args:
        feature: maps uint8 images (N, 3, H, W) to (N, D): `InceptionFeatures`, or seeded random features if not given.
        reference: as for `FrechetVideoDistance`.
    """

    label = "FID"
    unit = "frames"

    def __init__(self, feature: FeatureNetwork | None = None, reference: str = "raw", **kwargs: Any) -> None:
        super().__init__(RandomFrameFeatures() if feature is None else feature, reference, **kwargs)

    def features(self, videos: Tensor) -> Tensor:
        # clip by clip: the frames of a whole batch may not fit beside a model
        return torch.cat([self.feature(frames) for frames in videos])
