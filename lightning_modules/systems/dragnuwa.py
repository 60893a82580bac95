"""DragNUWA 1.5: this project's released network with two control channels, and its own way of drawing and sampling.

Source: ProjectNUWA/DragNUWA (MIT; its network is Stability AI's generative-models, MIT). Formulas and constants are
written anew. Weights: `drag_nuwa_svd.pth`, the user's own; no licence is stated beside the file, and the base inside it
is Stable Video Diffusion under Stability AI's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditions.dragnuwa import KERNEL, SIGMA, Drags, drags, spread
from datamodules.drawings import Drawing
from lightning_modules.bases.svd.clip import clip_input
from lightning_modules.bases.svd.network import conditioning
from lightning_modules.process.sampler import OnStep, euler_sample
from lightning_modules.released import Network, build, load_released
from lightning_modules.released.base import released_component
from lightning_modules.systems.svd_parts import decoded, embedded, first_latent, picture
from lightning_modules.systems.system import FramedSystem, check_settings, check_size, draws, stretched
from lightning_modules.systems.tracks import paths, scaled_points
from remoco.common.errors import UserError

CHANNELS = 2  # dx, dy


@dataclass(frozen=True)
class Quirks:
    """What the release does and one would not.

    Attributes:
        whole_pixels: Key points are cut to whole pixels, and a click moves by (1, 1). Otherwise points are as drawn and
            a click stays.
    """

    whole_pixels: bool = True

    @classmethod
    def corrected(cls) -> Quirks:
        """None of it."""
        return cls(whole_pixels=False)


@dataclass(frozen=True)
class Settings:
    """How the release samples.

    Attributes:
        size: (height, width); drags are drawn in its pixels.
        frames: L.
        steps: Euler steps.
        guidance: Guidance scale of the first and the last frame, linear in between.
        fps: Frames per second, an input of the network.
        motion_bucket: Motion bucket, an input of the network; the demo's slider has 1 to 100.
        noise: Standard deviation of the noise on the first frame.
    """

    size: tuple[int, int] = (320, 576)
    frames: int = 14
    steps: int = 25
    guidance: tuple[float, float] = (1.0, 2.5)
    fps: float = 4
    motion_bucket: float = 4
    noise: float = 0.02

    def __post_init__(self) -> None:
        check_settings(self)


AS_RELEASED, RELEASED = Quirks(), Settings()


class DragNUWA(FramedSystem):
    """DragNUWA 1.5, as a `System`.

    Args:
        network: The diffusion network, of two control channels.
        vae: Autoencoder with temporal decoder.
        image_encoder: CLIP vision model with projection.
        quirks: As released, or corrected.
        settings: How it is sampled.
    """

    name = "DragNUWA 1.5"
    takes_brush = False

    def __init__(
        self,
        network: Network,
        vae: Any,
        image_encoder: Any,
        quirks: Quirks = AS_RELEASED,
        settings: Settings = RELEASED,
    ):
        super().__init__(settings, quirks, network.unet)
        self.fps = 6.0  # the demo's GIF has 1/6 s a frame
        self.network, self.vae, self.image_encoder = network, vae, image_encoder
        self.quirks, self.settings = quirks, settings

    @classmethod
    def load(
        cls,
        path: str,
        svd: str | None = None,
        quirks: Quirks = AS_RELEASED,
        settings: Settings = RELEASED,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        head_channels: int | None = None,
    ) -> DragNUWA:
        """Read `drag_nuwa_svd.pth` or its safetensors copy; nothing in it is executed.

        Args:
            path: The file.
            svd: diffusers' SVD to take VAE and image encoder from, where the file has none.
            quirks: As released, or corrected.
            settings: How it is sampled.
            dtype: Dtype of all networks; the release computes in float32.
            device: Where they go.
            head_channels: Channels per attention head, see `load_released`.

        Raises:
            UserError: it is another network's file, does not read, lacks tensors, or has others.
        """
        check_size(cls.name, settings.size)
        released = load_released(path, head_channels)
        if (channels := released.architecture.control_channels) != CHANNELS:
            raise UserError(f"{path}: its control has {channels} channels, expected DragNUWA's {CHANNELS} (dx, dy)")
        check_filter(path, released.others.get("drag_filter", {}))
        vae, encoder = (released_component(name, released, path, svd) for name in ("vae", "image_encoder"))
        network = build(released, dtype)
        for module in (*network.parts().values(), vae, encoder):
            nn.Module.to(module, device, dtype).requires_grad_(False).eval()
        return cls(network, vae, encoder, quirks, settings)

    def drags(self, drawing: Drawing) -> Drags:
        """The steps of a drawing's tracks, float32 as in the release."""
        _, tracks = self.tracks(drawing)
        return released_drags(tracks, self.size, self.size, self.frames, self.quirks)

    def control(self, drawing: Drawing) -> Tensor:
        """(L, 2, H, W) dx, dy in pixels, frame 0 zero."""
        steps = self.drags(drawing)
        return spread(steps, *self.size)

    @torch.no_grad()
    def __call__(self, drawing: Drawing, seed: int, on_step: OnStep | None = None) -> Tensor:
        """(L, 3, H, W) in [-1, 1], decoded frame by frame as in the release; see `System`."""
        resized, settings, unet = stretched(drawing, self.size), self.settings, self.network.unet
        control = self.control(resized).to(unet.device)[None]
        first = picture(resized.image).to(unet.device, unet.dtype)
        grid = (1, self.frames, unet.config.out_channels, self.size[0] // 8, self.size[1] // 8)
        noise, start = (each.to(first) for each in draws(seed, first.shape, grid))
        ids = torch.tensor([[settings.fps, settings.motion_bucket, settings.noise]]).to(first)
        cond = conditioning(
            first_latent(self.vae, first + settings.noise * noise),
            embedded(self.image_encoder, clip_input(first, self.image_encoder.config.image_size)),
            ids,
        )
        self.network.injection.set(self.network.motion_encoder(control))
        try:
            latents = euler_sample(
                self.network.denoiser, start, cond, steps=settings.steps, guidance=settings.guidance, on_step=on_step
            )
        finally:
            self.network.injection.set(None)
        return decoded(self.vae, latents, chunk=1)[0]


def released_drags(
    tracks: list, canvas: tuple[int, int], size: tuple[int, int], frames: int, quirks: Quirks = AS_RELEASED
) -> Drags:
    """Steps of key points on a canvas in the pixels of a frame, float32.

    Args:
        tracks: (n, 2) x, y each, in pixels of the canvas.
        canvas: (height, width) of it.
        size: (height, width) of the frame.
        frames: L.
        quirks: As released, or corrected.
    """
    points = paths(scaled_points(tracks, canvas, size, quirks.whole_pixels), frames, click=quirks.whole_pixels)
    steps = drags(torch.from_numpy(points), *size)
    return Drags(steps.at, steps.step.float())


def check_filter(path: str, tensors: dict[str, Tensor]) -> None:
    """Raise UserError unless a file's drag filter, where it has one, is that of the release."""
    if not tensors:
        return
    weight = tensors.get("weight")
    if set(tensors) != {"weight"} or weight is None or weight.shape != (CHANNELS, 1, KERNEL, KERNEL):
        raise UserError(f"{path}: guassian_filter: expected one weight of ({CHANNELS}, 1, {KERNEL}, {KERNEL})")
    at = torch.arange(KERNEL, dtype=torch.float64) - KERNEL // 2
    ours = torch.exp(-(at[:, None].square() + at.square()) / (2 * SIGMA**2))
    if not torch.allclose(weight.double(), ours.expand_as(weight), atol=1e-2):
        raise UserError(f"{path}: guassian_filter.weight is another filter, expected a Gaussian of sigma {SIGMA:g}")
