"""Photos: a small base whose network corrects what `warp` filled in the lowest layer of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.bases.places import Place
from lightning_modules.bases.said import Input
from lightning_modules.bases.sprites.base import MOST_CHANNELS, Sprites
from lightning_modules.bases.sprites.pca import PATCH
from lightning_modules.conditioning import KNOWN, Conditioning, to_float
from lightning_modules.control.pixels import Lowest
from lightning_modules.process.base import NoiseProcess
from lightning_modules.process.edm import input_scales, output_scales
from remoco.common.errors import UserError

RESIDUAL = 0.5  # of a component's standard deviation: what an output of 1 adds
CELL = PATCH**2
LEAST = 8e-4  # squared error, of pixels in [-1, 1], below which an error is none


class Photos(Sprites):
    """A base of 2.6 M random parameters for photographs of 128 x 128, with 64 components of 8 x 8 patches.

    It is no diffusion model: of the one picture that lies lowest in a clip, its hole filled (`warp` says where), the
    network predicts the error, whatever the noise. The correction shows in each frame where the hole does; what was
    moved stays as sharp as it was.

    Args:
        init_seed: Seed of the weights.
        components: Number of principal components of patches, 64 or more.
        corrected: How many of them the network corrects, the coarsest ones: of finer ones a mean is a blur, and what
            `warp` fills keeps its own.
        trained: Train the UNet too. Random weights generate nothing by themselves.
        recompute: Parts of the UNet that are computed again in the backward pass, as for `SVD`.
    """

    named_by = ("init_seed", "components", "corrected")
    frame_noise = None  # what is known is kept as it is
    one_picture = True

    def __init__(
        self,
        init_seed: int = 0,
        components: int = 64,
        corrected: int = 16,
        trained: bool = False,
        recompute: Literal["none", "top", "all"] = "none",
    ):
        super().__init__("photo", init_seed, "pca", components, trained, "tf32", recompute)
        Photos.check_named({"components": components, "corrected": corrected})
        self.corrected = corrected

    def same_name(self, record: Mapping[str, Any]) -> bool:
        """As `VideoBase.same_name`; how many components are corrected may change in a run: the weights do not."""
        return super().same_name({**record, "init_args": {**record["init_args"], "corrected": self.corrected}})

    @classmethod
    def check_named(cls, arguments: Mapping[str, Any]) -> None:
        """As `VideoBase.check_named`; the numbers of components are in their ranges too."""
        super().check_named(arguments)
        if arguments.get("components", CELL) < CELL:  # the hole's pixels are given in as many channels
            raise UserError(f"base: components is {arguments['components']}, expected {CELL} to {MOST_CHANNELS}")
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

    def places(self) -> list[Place]:
        """None: features of frames have no place in a network of one picture."""
        return []

    def condition(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], noise: Tensor | None) -> Conditioning:
        """As `VideoBase.condition`, of `plate` and `hole` where the batch has them: holes that are filled already."""
        none = torch.zeros(len(batch["first_frame"]), device=batch["first_frame"].device)
        unused = dict.fromkeys([*inputs, "noise_aug_strength"], none)  # the picture alone says what is in its hole
        embedding = none.new_zeros(len(none), 1, self.unet.config.cross_attention_dim)
        cond = super().condition({**batch, "image_embedding": embedding}, unused, None)
        if "plate" not in batch:
            return cond
        dtype = cond.parts["image_latent"].dtype
        plate, hole = to_float(batch["plate"], dtype), batch["hole"].to(dtype)
        clips = plate[:, None].expand(-1, batch["frames"], -1, -1, -1)
        share = torch.ones_like(clips[:, :, 0])
        return replace(cond, moved=clips, lowest=tuple(map(Lowest, plate, hole, share)))

    def moved(self, clips: Tensor, unknown: Tensor, marks: Tensor) -> Tensor:
        """(B, F, 2 C, h, w): latents, then which pixels of each are unknown."""
        pixels = F.pixel_unshuffle(unknown, PATCH).unflatten(1, (-1, CELL))
        rest = pixels.new_zeros(*pixels.shape[:2], self.channels - CELL, *pixels.shape[3:])
        return torch.cat([self.encode(clips).mean, torch.cat([pixels, rest], 2) + marks], 2)

    def finished(self, video: Tensor, cond: Conditioning) -> Tensor:
        """The moved pixels, and where they show what was filled, what the network changed in it."""
        if cond.moved is None or cond.lowest is None:
            return video
        return cond.moved + self.change(video[:, 0], cond.lowest)

    def change(self, pictures: Tensor, lowest: Sequence[Lowest]) -> Tensor:
        """(B, L, 3, H, W): what the frames show of the difference that pictures (B, 3, H, W), as decoded, have made."""
        assert self.pca is not None
        before = self.pca.decode(self.pca.encode(torch.stack([one.plate for one in lowest])))
        changes = interpolated(pictures - before) * torch.stack([one.hole for one in lowest])[:, None]
        return torch.stack([one.shown(change) for one, change in zip(lowest, changes, strict=True)])

    def loss(self, process: NoiseProcess, denoised: Tensor, clean: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """(B, F) squared error of the filled pixels over that of the fill: 1 where the network changes nothing."""
        if cond.moved is None or cond.lowest is None:
            return super().loss(process, denoised, clean, sigma, cond)
        assert self.pca is not None
        with torch.autocast(clean.device.type, enabled=False):
            error = cond.moved - self.pca.decode(clean)
            weight = torch.stack([one.shown(one.hole[None]) for one in cond.lowest])
            after = error + self.change(self.pca.decode(denoised[:, 0]), cond.lowest)
            total = 3 * weight.sum((2, 3, 4)).clamp(min=1)
            own, made = ((weight * each.square()).sum((2, 3, 4)) / total for each in (error, after))
        return (made + LEAST) / (own + LEAST)

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """As `VideoBase.predict`: with this output EDM's denoised latents are the picture's, corrected, in each frame.

        The network's inputs of noise hold the unknown pixels.
        """
        given = cond.kept("image_latent")
        given = given if given.ndim == noisy.ndim else given[:, None]
        latent, unknown = given.split([self.channels, given.shape[2] - self.channels], 2)
        unknown = unknown if unknown.shape[2] else torch.zeros_like(latent)
        asked = replace(cond, parts={**cond.parts, "image_latent": latent})
        output = self.network.predict(unknown, torch.zeros_like(time), asked).double()
        difference = RESIDUAL * output * self.deviations().view(-1, 1, 1)
        difference[:, :, self.corrected :] = 0
        if KNOWN in cond.parts:
            difference = difference * (1 - cond.parts[KNOWN])
        sigma = (4 * time.double()).exp().view(-1, 1, 1, 1, 1)
        skip, scale = output_scales(sigma)
        clip = noisy.double() / input_scales(sigma)[0]
        made = (latent.double() + difference - skip * clip) / scale
        return made.to(torch.promote_types(noisy.dtype, torch.float32))

    def deviations(self) -> Tensor:
        """(C,) standard deviations of the latents, float64: as `PatchPCA` scales them."""
        assert self.pca is not None
        scale = self.pca.scale.double()
        return scale / scale.square().mean().sqrt()


def interpolated(change: Tensor) -> Tensor:
    """(B, 3, H, W) with the mean of each patch interpolated between their middles: else the patches' edges show."""
    means = F.avg_pool2d(change, PATCH)
    flat = F.interpolate(means, scale_factor=float(PATCH))
    return change + F.interpolate(means, scale_factor=float(PATCH), mode="bilinear") - flat
