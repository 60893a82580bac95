"""Latents of Wan's kind without a trained autoencoder: components of patches of frame 1 and of four frames each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from lightning_modules.bases.sprites.pca import PATCH, PatchPCA, Sums
from remoco.common.errors import UserError


class ClipPCA(ModelMixin, ConfigMixin):
    """Principal components of patches behind the calls that `AutoencoderKLWan` has, so that a Wan takes it for its VAE.

    Grouped as the causal autoencoder groups frames: latent 0 is of frame 1 alone, each other one of the next four. The
    components of the two are apart. It is linear, and fitted once to a training set.

    Args:
        z_dim: Components kept of each.
        latents_mean: As of `AutoencoderKLWan`; by default 0 for each, because the components are of mean 0.
        latents_std: As of `AutoencoderKLWan`; by default 1 for each.
        scale_factor_temporal: Frames per latent.
        scale_factor_spatial: Pixels per latent along a side, which is the patches'.
    """

    first: PatchPCA
    rest: PatchPCA

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        scale_factor_temporal: int = 4,
        scale_factor_spatial: int = PATCH,
    ):
        super().__init__()
        if scale_factor_spatial != PATCH:
            raise UserError(f"scale_factor_spatial is {scale_factor_spatial!r:.40}, expected {PATCH}")
        self.register_to_config(latents_mean=list(latents_mean or [0.0] * z_dim))
        self.register_to_config(latents_std=list(latents_std or [1.0] * z_dim))
        self.first, self.rest = PatchPCA(z_dim), PatchPCA(z_dim, scale_factor_temporal)
        self.use_slicing = False  # which `AutoencoderKLWan` has

    @property
    def fitted(self) -> bool:
        """Whether `fit` or a file has set the components."""
        return self.first.fitted and self.rest.fitted

    def fit(self, videos: Iterable[Tensor]) -> None:
        """Set the components from clips, each (1 + n t, 3, H, W) in [-1, 1], t frames per latent, one after another."""
        first, rest = Sums(), Sums()
        for clip in videos:
            first.add(clip[:1])
            rest.add(self._groups(clip[1:]))
        self.first.set(first)
        self.rest.set(rest)

    def encode(self, video: Tensor) -> AutoencoderKLOutput:
        """(B, 3, L, H, W) in [-1, 1] -> `latent_dist` over (B, C, F, h, w), of variance 0."""
        frames = video.transpose(1, 2)
        rest = self.rest.encode(self._groups(frames[:, 1:].flatten(0, 1))).unflatten(0, (len(frames), -1))
        latents = torch.cat([self.first.encode(frames[:, 0])[:, None], rest], 1).transpose(1, 2)
        both = torch.cat([latents, torch.zeros_like(latents)], 1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(both, deterministic=True))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """(B, C, F, h, w) -> `sample`, (B, 3, L, H, W), about in [-1, 1]."""
        z = latents.transpose(1, 2)
        first, rest = self.first.decode(z[:, :1]), self.rest.decode(z[:, 1:])
        groups = rest.unflatten(2, (self.config.scale_factor_temporal, 3)).flatten(1, 2)
        return DecoderOutput(sample=torch.cat([first, groups], 1).transpose(1, 2))

    def _groups(self, frames: Tensor) -> Tensor:
        """(n t, 3, H, W) -> (n, 3 t, H, W)."""
        return frames.unflatten(0, (-1, self.config.scale_factor_temporal)).flatten(1, 2)
