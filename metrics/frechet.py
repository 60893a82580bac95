"""Frechet distance between feature distributions, and the video metric (FVD) made of it."""

from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.utilities import rank_zero_warn

from metrics.features import FeatureNetwork

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
        Scalar float64.
    """
    mu1, sigma1, mu2, sigma2 = (x.double() for x in (mu1, sigma1, mu2, sigma2))
    trace_root = torch.linalg.svdvals(_root(sigma1) @ _root(sigma2)).sum()
    return (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace_root


def _root(sigma: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


class FrechetVideoDistance(torchmetrics.Metric):
    """FVD (Unterthiner et al. 2018): the Frechet distance between video features of real and of generated clips.

    The state is three float64 sums per side, so the result depends neither on the batch split nor on the number of
    processes: each clip must be given once, by one of them.

    Args:
        feature: maps uint8 videos (B, L, 3, H, W) to features (B, D). Its attributes `num_features` (D), `name` and
            `protocol` say what it is; see `metrics.features`.
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

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    real_n: Tensor
    fake_n: Tensor

    def __init__(self, feature: FeatureNetwork, reference: str = "raw", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(feature, nn.Module) or not isinstance(getattr(feature, "num_features", None), int):
            raise ValueError(f"feature must be an nn.Module with an int `num_features`, got {type(feature).__name__}")
        self.feature = feature
        self.reference = reference
        self.frames: int | None = None
        self.protocol = ""  # filled by compute, when n is known
        size = feature.num_features
        for side in ("real", "fake"):
            self.add_state(f"{side}_n", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, videos: Tensor, real: bool) -> None:
        """Add clips to one side.

        Args:
            videos: uint8, (B, L, 3, H, W); L the same in every call.
            real: whether these are reference clips or generated ones.

        Raises:
            ValueError: another dtype, shape or number of frames.
        """
        if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[2] != 3:
            raise ValueError(f"videos must be uint8 (B, L, 3, H, W), got {videos.dtype} {tuple(videos.shape)}")
        if self.frames not in (None, videos.shape[1]):
            raise ValueError(f"videos must all have {self.frames} frames, got {videos.shape[1]}")
        self.frames = videos.shape[1]
        with torch.no_grad():
            features = self.feature(videos).double()
        if features.shape != (videos.shape[0], self.feature.num_features):
            raise ValueError(f"feature gave {tuple(features.shape)} for {videos.shape[0]} clips, not (B, num_features)")
        side = "real" if real else "fake"
        setattr(self, f"{side}_n", getattr(self, f"{side}_n") + features.shape[0])
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + features.sum(0))
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + features.T @ features)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar; also fills `protocol`.

        Raises:
            RuntimeError: fewer than two clips on a side, where no covariance exists.
        """
        n_real, n_fake = int(self.real_n), int(self.fake_n)
        if min(n_real, n_fake) < 2:
            raise RuntimeError(f"FVD needs at least 2 clips on each side, got {n_real} real and {n_fake} generated")
        self.protocol = (
            f"{self.feature.protocol}; {self.frames} frames; n = {n_real} reference, {n_fake} generated; "
            f"reference: {self.reference}; Frechet distance in float64, np.cov convention"
        )
        warn_if_few(min(n_real, n_fake), self.feature.num_features, "clips")
        return frechet_distance(*self._gaussian("real"), *self._gaussian("fake"))

    def _gaussian(self, side: str) -> tuple[Tensor, Tensor]:
        n = getattr(self, f"{side}_n").double()
        mean = getattr(self, f"{side}_sum") / n
        return mean, (getattr(self, f"{side}_outer") - n * torch.outer(mean, mean)) / (n - 1)


def warn_if_few(n: int, features: int, unit: str) -> None:
    """Say on rank 0 what makes a Frechet distance of `n` samples incomparable with published ones."""
    if n < PUBLISHED_CLIPS and unit == "clips":
        rank_zero_warn(f"FVD over {n} clips is not comparable with published ones (n = 1000)")
    if n < features:
        rank_zero_warn(f"a Frechet distance over {n} {unit} with {features} features has singular covariances")
