"""Sprites: a base from random weights, in a size of one's choice; what learns on a CPU in minutes starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
        size: `micro` (two levels, learns on a CPU in minutes), `tiny` (tests), `small` (some 40 M parameters, a CPU
            trains it) or `full` (SVD's own sizes).
        init_seed: Seed of the weights.
        latents: `pca`: the first principal components of 8 x 8 patches, fitted once to the training set.
            `space_to_depth`: the patches' pixels as 192 channels, invertibly. `vae`: a random VAE.
        components: How many components, with `pca`.
        trained: Train the UNet too; random weights say nothing by themselves.
        vae_precision: As of `SVD`.
        recompute: As of `SVD`.
    """

    named_by = ("size", "init_seed", "latents", "components")
    located_by = ()

    def __init__(
        self,
        size: Literal["micro", "tiny", "small", "full"] = "micro",
        init_seed: int = 0,
        latents: Literal["vae", "space_to_depth", "pca"] = "pca",
        components: int = 8,
        trained: bool = False,
        vae_precision: Literal["float32", "tf32", "bfloat16"] = "tf32",
        recompute: Literal["none", "top", "all"] = "none",
    ):
        super().__init__(None, None, trained, vae_precision, recompute)
        self.check_named({"size": size, "init_seed": init_seed, "latents": latents, "components": components})
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
        self.hold(unet, image_encoder, vae, pca)
        self.freeze(dtype)
        return self

    def layout(self) -> VideoBase:  # type: ignore[override]
        """On the meta device."""
        return VideoBase.layout(self)

    def usual(self) -> tuple[int, int, int]:
        """Of the sprites."""
        return 16, 64, 64

    def small(self) -> bool:
        """But for SVD's own size."""
        return self.size != "full"

    def export(self, folder: Any) -> None:
        """As `SVD.export`."""
        if self.latents == "space_to_depth":
            raise UserError("base: latents space_to_depth has no folder of its own; expected vae or pca")
        super().export(folder)

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
