"""Latents without a trained autoencoder: the principal components of 8 x 8 patches, fitted once on the training set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remoco.common.errors import UserError

PATCH = 8  # pixels per side: a latent stands for as many pixels as one of SVD's VAE


class Sums:
    """Count, sum and sum of products of patches, in float64.

    Attributes:
        count: Number N of patches.
        total: (D,), the sum.
        square: (D, D), the sum of outer products.
    """

    def __init__(self) -> None:
        self.count, self.total, self.square = 0, torch.zeros(()), torch.zeros(())

    def add(self, video: Tensor) -> None:
        """Add the patches of a clip (L, 3, H, W), on its device."""
        patches = _patches(video).flatten(0, -2).double()
        self.count += len(patches)
        self.total = self.total.to(patches) + patches.sum(0)
        self.square = self.square.to(patches) + patches.T @ patches


class PatchPCA(nn.Module):
    """Pixels to the first principal components of patches and back; linear.

    Each component is divided by the square root of its standard deviation, and all of them by one number so that the
    mean variance is 1: fine detail keeps a smaller variance than layout.

    Args:
        channels: Components kept, 1 to 192 times `time`.
        time: Frames of a patch, side by side as channels.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, channels: int, time: int = 1):
        super().__init__()
        size = 3 * time * PATCH**2
        if not 1 <= channels <= size:
            raise UserError(f"model.base: components is {channels}, expected 1 to {size}")
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, channels))
        self.register_buffer("scale", torch.zeros(channels))  # zero until it is fitted

    @property
    def fitted(self) -> bool:
        """Whether `fit` or a checkpoint has set the components."""
        return bool(self.scale.any())

    @torch.no_grad()
    def fit(self, videos: Iterable[Tensor]) -> None:
        """Set the components from clips, in float64, one after another.

        Args:
            videos: Each (L, 3, H, W) in [-1, 1]; here and below 3 is 3 times `time`.
        """
        sums = Sums()
        for video in videos:
            sums.add(video)
        self.set(sums)

    @torch.no_grad()
    def set(self, sums: Sums) -> None:
        """Set the components from the sums over clips."""
        mean = sums.total / sums.count
        variance, vectors = torch.linalg.eigh(sums.square / sums.count - torch.outer(mean, mean))
        channels = len(self.scale)
        variance, vectors = variance.flip(0)[:channels].clamp(min=1e-12), vectors.flip(1)[:, :channels]
        # an eigenvector's sign is free: its largest entry is positive
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.mean.copy_(mean)
        self.basis.copy_(vectors * largest.sign())
        self.scale.copy_((variance.sqrt() * variance.sqrt().mean()).sqrt())

    def encode(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, C, H/8, W/8), in the dtype of the buffers."""
        return ((_patches(frames.to(self.mean.dtype)) - self.mean) @ self.basis / self.scale).movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) -> (..., 3, 8 h, 8 w), about in [-1, 1], in the dtype of the buffers."""
        patches = (latents.to(self.mean.dtype).movedim(-3, -1) * self.scale) @ self.basis.T + self.mean
        return F.pixel_shuffle(patches.movedim(-1, -3), PATCH)


def _patches(frames: Tensor) -> Tensor:
    return F.pixel_unshuffle(frames, PATCH).movedim(-3, -1)
