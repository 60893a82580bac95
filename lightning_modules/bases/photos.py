"""Photos: a small base whose network adds to the per-frame first-frame latent, where that is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.bases.said import Input
from lightning_modules.bases.sprites.base import MOST_CHANNELS, Sprites
from lightning_modules.conditioning import KNOWN, Conditioning
from lightning_modules.process.edm import input_scales, output_scales
from remoco.common.errors import UserError

RESIDUAL = 0.5  # standard deviation of what is added, in latents of standard deviation 1


class Photos(Sprites):
    """A base of 2.6 M random parameters for photographs of 128 x 128, with 64 components of 8 x 8 patches.

    The network predicts the difference between the clip and the latent that each frame is conditioned on. Where that
    latent is known (`warp` says so) the difference is taken to be zero: what was moved stays as sharp as it was. As in
    EDM (table 1), the network's input and output are scaled for the difference's own standard deviation.

    Args:
        init_seed: Seed of the weights.
        components: Number of principal components of patches.
        corrected: How many of them the network corrects, the coarsest ones: of finer ones a mean is a blur, and what
            `warp` fills keeps its own.
        trained: Train the UNet too. Random weights generate nothing by themselves.
        recompute: Parts of the UNet that are computed again in the backward pass, as for `SVD`.
    """

    named_by = ("init_seed", "components", "corrected")
    frame_noise = None  # what is known is kept as it is

    def __init__(
        self,
        init_seed: int = 0,
        components: int = 64,
        corrected: int = 16,
        trained: bool = False,
        recompute: Literal["none", "top", "all"] = "none",
    ):
        super().__init__("photo", init_seed, "pca", components, trained, "tf32", recompute)
        Photos.check_named({"corrected": corrected})
        self.corrected = corrected

    @classmethod
    def check_named(cls, arguments: Mapping[str, Any]) -> None:
        """As `VideoBase.check_named`; the number of corrected components is in its range too."""
        super().check_named(arguments)
        value = arguments.get("corrected", 0)
        if type(value) is not int or not 0 <= value <= MOST_CHANNELS:
            raise UserError(f"base: corrected is {value!r:.60}, expected a whole number of 0 to {MOST_CHANNELS}")

    def started(self, unet: Any) -> Any:
        """The network with a last layer of zeros: it starts from its condition, and learns to leave it."""
        for parameter in unet.conv_out.parameters():
            torch.nn.init.zeros_(parameter)
        return unet

    def usual(self) -> tuple[int, int, int]:
        """Frames, height and width that it is trained on."""
        return 8, 128, 128

    def inputs(self) -> dict[str, Input]:
        """Those of `SVD` without the noise on the first frame."""
        return {name: given for name, given in super().inputs().items() if name != "noise_aug_strength"}

    def condition(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], noise: Tensor | None) -> Conditioning:
        """As `VideoBase.condition`."""
        none = torch.zeros(len(batch["first_frame"]), device=batch["first_frame"].device)
        return super().condition(batch, {**inputs, "noise_aug_strength": none}, None)

    def finished(self, video: Tensor, cond: Conditioning) -> Tensor:
        """The moved pixels; what the network changed is added where they show what `warp` filled."""
        if cond.moved is None or cond.filled is None:
            return video
        change = video - self.decode(self.normalise(self.encode(cond.moved).mean))
        return cond.moved + change * cond.filled[:, :, None]

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """As `VideoBase.predict`: with this output EDM's denoised latents are the condition plus the difference."""
        sigma = (4 * time.double()).exp().view(-1, 1, 1, 1, 1)
        latent = cond.kept("image_latent")
        latent = (latent if latent.ndim == noisy.ndim else latent[:, None].expand_as(noisy)).double()
        clip = noisy.double() / input_scales(sigma)[0]
        keep, out = output_scales(sigma / RESIDUAL)
        scaled = (clip - latent) * (input_scales(sigma / RESIDUAL)[0] / RESIDUAL)
        output = self.network.predict(scaled.to(noisy.dtype), time, cond).double()
        difference = keep * (clip - latent) + out * RESIDUAL * output
        difference[:, :, self.corrected :] = 0
        if KNOWN in cond.parts:
            difference = difference * (1 - cond.parts[KNOWN])
        skip, scale = output_scales(sigma)
        return ((latent + difference - skip * clip) / scale).to(torch.promote_types(noisy.dtype, torch.float32))
