"""Sprites: a base with random weights, in several sizes. The configurations that a CPU trains start from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.sprites.pca import PATCH, PatchPCA
from lightning_modules.bases.sprites.sizes import SIZES
from lightning_modules.bases.svd.base import SVD
from lightning_modules.layers import seeded
from remoco.common.errors import UserError

LATENTS = ("vae", "space_to_depth", "pca")
MOST_CHANNELS = 3 * PATCH**2


class Sprites(SVD):
    """A base of SVD's kind with random weights; no global generator moves when they are drawn.

    Args:
        size: Size of the networks: `micro` (two levels, learns on a CPU in minutes), `photo` (that of `Photos`), `tiny`
            (tests), `small` (about 40 M parameters, for a CPU) or `full` (SVD's own sizes).
        init_seed: Seed of the weights.
        latents: Kind of latents. `pca` has the first principal components of 8 x 8 patches, fitted once to the training
            set. `space_to_depth` has the patches' pixels as 192 channels and is invertible. `vae` is a random VAE.
        components: Number of principal components, for `pca`.
        trained: Train the UNet too. Random weights generate nothing by themselves.
        vae_precision: Precision of the VAE on a GPU, as for `SVD`.
        recompute: Parts of the UNet that are computed again in the backward pass, as for `SVD`.
    """

    named_by: ClassVar[tuple[str, ...]] = ("size", "init_seed", "latents", "components")
    located_by = ()
    drawn = True

    def __init__(
        self,
        size: Literal["micro", "photo", "tiny", "small", "full"] = "micro",
        init_seed: int = 0,
        latents: Literal["vae", "space_to_depth", "pca"] = "pca",
        components: int = 8,
        trained: bool = False,
        vae_precision: Literal["float32", "tf32", "bfloat16"] = "tf32",
        recompute: Literal["none", "top", "all"] = "none",
    ):
        super().__init__(None, None, trained, vae_precision, recompute)
        Sprites.check_named({"size": size, "init_seed": init_seed, "latents": latents, "components": components})
        self.size, self.init_seed, self.latents, self.components = size, init_seed, latents, components

    def build(self, dtype: torch.dtype = torch.float32) -> Sprites:
        """Draw the weights; on the meta device nothing is drawn or allocated."""
        sizes = SIZES[self.size]
        by_latents = {
            "vae": sizes.vae["latent_channels"],
            "space_to_depth": MOST_CHANNELS,
            "pca": self.components,
        }
        channels = by_latents[self.latents]
        with seeded(self.init_seed):
            unet = UNetSpatioTemporalConditionModel(in_channels=2 * channels, out_channels=channels, **sizes.unet)
            image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.image_encoder))
            vae = AutoencoderKLTemporalDecoder(**sizes.vae) if self.latents == "vae" else None
        pca = PatchPCA(channels) if self.latents == "pca" else None
        self.hold(self.started(unet), image_encoder, vae, pca)
        self.freeze(dtype)
        return self

    def started(self, unet: Any) -> Any:
        """The network as its training starts: as it was drawn."""
        return unet

    def layout(self) -> VideoBase:  # type: ignore[override]
        """The networks on the meta device."""
        return VideoBase.layout(self)

    def usual(self) -> tuple[int, int, int]:
        """Frames, height and width of the sprite sets."""
        return 16, 64, 64

    def small(self) -> bool:
        """True for every size but `full`, SVD's."""
        return self.size != "full"

    @classmethod
    def check_named(cls, arguments: Mapping[str, Any]) -> None:
        """As `VideoBase.check_named`; sizes and counts are in their ranges too."""
        super().check_named(arguments)
        for name, choices in (("size", tuple(SIZES)), ("latents", LATENTS)):
            if name in arguments and arguments[name] not in choices:
                raise UserError(f"base: {name} is {arguments[name]!r:.60}, expected one of {', '.join(choices)}")
        for name, least, most in (("components", 1, MOST_CHANNELS), ("init_seed", -(2**63), 2**63 - 1)):
            value = arguments.get(name, least)
            if type(value) is not int or not least <= value <= most:
                raise UserError(f"base: {name} is {value!r:.60}, expected a whole number of {least} to {most}")
