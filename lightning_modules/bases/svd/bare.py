"""The base alone, without LoRA and control, sampled with the settings of diffusers' StableVideoDiffusionPipeline."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from datamodules.drawings import FrameArea, Framing, Picture, read_image
from lightning_modules.bases.svd.base import INFERENCE_STRENGTH, SVD
from lightning_modules.bases.svd.network import conditioning
from lightning_modules.bases.svd.norms import diffusers_eps
from lightning_modules.conditioning import to_float
from lightning_modules.control.lora import without_lora
from lightning_modules.output import MotionControlOutput, check_output, converted
from lightning_modules.process.base import Denoiser
from lightning_modules.process.edm import EDM
from lightning_modules.process.sampler import euler_sample
from remoco.common.errors import UserError


@dataclass(frozen=True)
class BareSettings:
    """How a bare base is sampled. The defaults are diffusers' (`DIFFUSERS`); `OURS` has this project's instead.

    Attributes:
        num_frames: Length of the clip; None is what the base's configuration says, 14 for SVD and 25 for SVD-XT.
        steps: Euler steps.
        min_guidance_scale: Guidance of the first frame.
        max_guidance_scale: Guidance of the last frame, linear in between.
        fps: Frames per second.
        fps_offset: Added to `fps` before the UNet gets it; Stability's sampling script uses fps - 1.
        motion_bucket_id: The UNet's motion bucket: SVD's own scale, or mean displacement in pixels.
        noise_aug_strength: Standard deviation of the noise on the first frame.
        stock_eps: The res blocks' norms have diffusers' eps, 1e-6 in most of them; else the original SVD's 1e-5.
        squash: The picture is resized to the frame whatever its shape, by PIL's Lanczos; else scaled to cover it and
            cropped in the middle.
        embed_picture: The image encoder sees the original picture; else the frame.
    """

    num_frames: int | None = None
    steps: int = 25
    min_guidance_scale: float = 1.0
    max_guidance_scale: float = 3.0
    fps: float = 7
    fps_offset: float = -1
    motion_bucket_id: float = 127
    noise_aug_strength: float = INFERENCE_STRENGTH
    stock_eps: bool = True
    squash: bool = True
    embed_picture: bool = True


DIFFUSERS = BareSettings()
OURS = BareSettings(
    num_frames=16, max_guidance_scale=2.5, fps=8, fps_offset=0, motion_bucket_id=17,
    stock_eps=False, squash=False, embed_picture=False,
)  # fmt: skip


@torch.no_grad()
def sample_bare(
    svd: SVD,
    image: Picture,
    settings: BareSettings = DIFFUSERS,
    height: int = 576,
    width: int = 1024,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    latents: Tensor | None = None,
    output_type: str = "pil",
    decode_chunk_size: int | None = None,
) -> MotionControlOutput:
    """A clip of the base alone. Computed in float64 where the networks are (`SVD(...).build(torch.float64)`).

    Args:
        svd: The base; of a trained pipeline `pipe.module.base`, whose LoRA is left out here.
        image: First frame: a PIL image, (H, W, 3) uint8, or a file.
        settings: `DIFFUSERS`, `OURS`, or what lies between.
        height: Height of the frame, a multiple of 8; of 64 unless it is squashed.
        width: Width of the frame, likewise.
        generator: Draws the two noises in diffusers' order and dtypes, where they are not given.
        noise: (1, 3, height, width) standard normal, for the first frame.
        latents: (1, L, C, height / 8, width / 8) standard normal, what the sampler starts from.
        output_type: As of `MotionControlPipeline`.
        decode_chunk_size: Frames per pass of the VAE, in windows that overlap, unlike diffusers' chunks; None: all.

    Raises:
        UserError: the image or a size does not fit; one line.
    """
    check_output(output_type)
    space = svd.grid.space
    for name, value in (("height", height), ("width", width)):
        if value < space or value % space:
            raise UserError(f"{name} is {value}, expected a multiple of {space}")
    device, dtype = svd.unet.device, torch.promote_types(svd.unet.dtype, torch.float32)

    def tensor(array: np.ndarray) -> Tensor:
        return to_float(torch.from_numpy(array).permute(2, 0, 1)[None].to(device), dtype)

    picture = read_image(image)
    frame = tensor(_framed(picture, height, width, settings.squash))
    embedding = svd.embed_image(tensor(picture) if settings.embed_picture else frame)
    if noise is None:  # diffusers' picture is float32 whatever the networks are, and its noise with it
        noise = randn_tensor(frame.shape, generator=generator, device=device, dtype=torch.float32)
    image_latent = svd.encode((frame + settings.noise_aug_strength * noise.to(frame))[:, None]).mean[:, 0]
    ids = [settings.fps + settings.fps_offset, settings.motion_bucket_id, settings.noise_aug_strength]
    cond = conditioning(image_latent, embedding, torch.tensor([ids], dtype=dtype, device=device))
    frames = settings.num_frames or svd.unet.config.num_frames
    shape = (1, frames, *image_latent.shape[1:])
    if latents is None:
        latents = randn_tensor(shape, generator=generator, device=device, dtype=svd.unet.dtype)
    if tuple(latents.shape) != shape:
        raise UserError(f"latents: expected shape {shape}, got {tuple(latents.shape)}")
    denoiser = Denoiser(svd, EDM())
    guidance = settings.min_guidance_scale, settings.max_guidance_scale
    with diffusers_eps(svd) if settings.stock_eps else nullcontext(), without_lora(svd.unet):
        sampled = euler_sample(denoiser, latents.to(device, dtype), cond, steps=settings.steps, guidance=guidance)
    if output_type == "latent":
        return MotionControlOutput(sampled, None)
    video = svd.decode(sampled, decode_chunk_size).clamp(-1, 1)
    return MotionControlOutput(converted(video, output_type), settings.fps)


def _framed(picture: np.ndarray, height: int, width: int, squash: bool) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3) uint8."""
    if not squash:
        FrameArea().check(height=height, width=width)
        return Framing.of((picture.shape[0], picture.shape[1]), (height, width)).image(picture)
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
