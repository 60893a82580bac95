"""Stable Video Diffusion: load it or build it with random weights, freeze it, checkpoint its activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules import embedded
from lightning_modules.blocks import set_recomputed, use_our_blocks
from lightning_modules.layers import TemporalConv3d, seeded
from lightning_modules.lora import without_lora as without_lora  # its public place is here (docs/fidelity.md)
from lightning_modules.pca import PatchPCA
from lightning_modules.weight_files import located
from lightning_modules.weights import COMPONENTS, load_component, load_unet, save_pca, weights_hash

VAE_FACTOR = 8  # pixels per latent, of the VAE and of the space-to-depth latents
RES_BLOCK_EPS = 1e-5  # the original SVD's; diffusers hard-codes 1e-6 in most of its blocks
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VAE_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
SPACE_TO_DEPTH_SCALE = 2.0  # frames in [-1, 1] have a standard deviation of about 0.5


@dataclass(frozen=True)
class Size:
    """Keyword arguments that differ from SVD's own, by component."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    image_encoder: dict[str, Any]


def _size(
    channels: tuple[int, ...],
    layers: int,
    heads: tuple[int, ...],
    embedding: int,
    ids: int,
    vae: tuple[int, ...],
    clip: dict,
    attention: tuple[bool, ...] = (True, True, True, False),
) -> Size:
    unet = {
        "down_block_types": tuple(f"{'CrossAttn' * here}DownBlockSpatioTemporal" for here in attention),
        "up_block_types": tuple(f"{'CrossAttn' * here}UpBlockSpatioTemporal" for here in attention[::-1]),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "num_attention_heads": heads,
        "cross_attention_dim": embedding,
        "addition_time_embed_dim": ids,
        "projection_class_embeddings_input_dim": 3 * ids,
    }
    autoencoder = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "block_out_channels": vae,
        "layers_per_block": layers,
        "latent_channels": 4,
    }
    return Size(unet, autoencoder, {"projection_dim": embedding, "hidden_act": "gelu", **clip})


SIZES = {
    "micro": _size(
        (32, 64), 1, (1, 2), 32, 32, (32, 32, 32, 32),
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8},
        attention=(False, True),
    ),
    "tiny": _size(
        (32, 64, 64, 64), 1, (2, 4, 4, 4), 32, 32, (32, 32, 32, 32),
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8},
    ),
    "small": _size(
        (64, 128, 256, 256), 1, (2, 4, 8, 8), 128, 64, (32, 64, 128, 128),
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "image_size": 64, "patch_size": 8},
    ),
    "full": _size(
        (320, 640, 1280, 1280), 2, (5, 10, 20, 20), 1024, 256, (128, 256, 512, 512),
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
         "image_size": 224, "patch_size": 14},
    ),
}  # fmt: skip


class SVD(nn.Module):
    """The networks of Stable Video Diffusion.

    Args:
        unet: Denoising UNet.
        image_encoder: CLIP vision model with projection.
        vae: Autoencoder, or None for latents that are made of patches of the frames.
        pca: Principal components of those patches; None with a VAE, or to keep all pixels.
        name: What these weights are called, kept in `identity`.
        hashes: `weights_hash` of the networks whose stored weights were rounded since; of the others it is taken here.

    Attributes:
        hashes: `weights_hash` of each network by its name, as loaded.
        stock_eps: Name of each res block's norm in the UNet -> the eps it had when it was given, diffusers' own.
        identity: `name` and `hash`, one SHA-256 for all of them; `hash` is "meta" on the meta device.
        decode_chunk: Frames of a clip that `decode` takes at once; None takes all, as its temporal layers were trained.
        latent_channels: Channels of a latent: 4, 192 without a VAE, or as many as `pca` keeps.
        latent_scale: Factor between `encode`'s latents and the diffusion's, which have a standard deviation of about 1.
    """

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        image_encoder: CLIPVisionModelWithProjection,
        vae: AutoencoderKLTemporalDecoder | None,
        name: dict[str, Any],
        pca: PatchPCA | None = None,
        hashes: dict[str, str] | None = None,
    ):
        super().__init__()
        self.stock_eps = {name: norm.eps for name, norm in _res_block_norms(unet).items()}
        set_res_block_eps(unet)
        use_our_blocks(unet)
        use_fast_temporal_convs(unet)
        self.unet, self.image_encoder, self.vae, self.pca = unet, image_encoder, vae, pca
        self.vae_precision = "float32"
        self.decode_chunk: int | None = None
        self.latent_channels: int = unet.config.out_channels
        self.latent_scale: float = vae.config.scaling_factor if vae else 1.0 if pca else SPACE_TO_DEPTH_SCALE
        networks = {part: getattr(self, part) for part in COMPONENTS if getattr(self, part) is not None}
        given = hashes or {}
        self.hashes = {part: given.get(part) or weights_hash(net) for part, net in networks.items()}
        if pca is not None and "vae" in given:  # loaded in the VAE's place, not to be fitted
            self.hashes["vae"] = given["vae"]
        whole = "meta" if "meta" in self.hashes.values() else hashlib.sha256(repr(self.hashes).encode()).hexdigest()
        self.identity = {**name, "hash": whole}

    @classmethod
    def load(cls, path_or_id: str | Path, revision: str | None = None, dtype: torch.dtype | None = None) -> SVD:
        """Load diffusers' folders unet/, vae/ and image_encoder/: safetensors alone, whole or in parts, else fp16's.

        In a local folder `vae/` may also hold the components of patches, as `export` writes them.

        Args:
            path_or_id: Local folder, the hub id `owner/name` of a repository in that layout, or `embedded`, the small
                base of plain sprites in the package.
            revision: Revision of the hub id.
            dtype: Of the UNet and the image encoder, float32 by default; the hashes are those of the stored weights.

        Raises:
            MisconfigurationException: a folder, a file or a weight is missing.
        """
        folder = str(embedded.BASE if str(path_or_id) == embedded.NAME else path_or_id)
        base = located(folder, COMPONENTS, revision)  # all of them before the first is read
        parts, hashes = {}, {}
        for name in ("image_encoder", "vae"):  # the UNet, the largest, comes when these are in their dtype
            parts[name] = load_component(base, name, folder)
            hashes[name] = weights_hash(parts[name])
        if dtype is not None:
            parts["image_encoder"].to(dtype)
        parts["unet"], hashes["unet"] = load_unet(base, dtype, folder)
        vae = parts.pop("vae")
        parts |= {"vae": None, "pca": vae} if isinstance(vae, PatchPCA) else {"vae": vae}
        channels = len(vae.scale) if isinstance(vae, PatchPCA) else vae.config.latent_channels
        found = parts["unet"].config.in_channels, parts["unet"].config.out_channels
        if found != (2 * channels, channels):
            raise MisconfigurationException(
                f"svd: {path_or_id}/unet has {found[0]} input and {found[1]} output channels, expected {2 * channels} "
                f"and {channels} as in image-to-video SVD"
            )
        return cls(**parts, name={"svd": str(path_or_id), "revision": revision}, hashes=hashes)

    @classmethod
    def random(
        cls,
        size: Literal["micro", "tiny", "small", "full"],
        seed: int = 0,
        latents: Literal["vae", "space_to_depth", "pca"] = "vae",
        pca_channels: int = 8,
    ) -> SVD:
        """Build with random weights; no global generator moves, and on the meta device nothing is allocated.

        Args:
            size: `micro` (two levels, learns on a CPU in minutes), `tiny` (tests), `small` (some 40 M parameters, a CPU
                trains it) or `full` (SVD's own sizes).
            seed: Seed of the weights.
            latents: `vae`: a random VAE. `space_to_depth`: no VAE, latents are 8 x 8 blocks of pixels as 192 channels.
                `pca`: the first principal components of those blocks, still to be fitted.
            pca_channels: How many components.
        """
        if size not in SIZES:
            raise MisconfigurationException(f"random_init is {size!r}, expected one of {', '.join(SIZES)}")
        sizes = SIZES[size]
        by_latents = {
            "vae": sizes.vae["latent_channels"],
            "space_to_depth": 3 * VAE_FACTOR**2,
            "pca": pca_channels,
        }
        if latents not in by_latents:
            raise MisconfigurationException(f"latents is {latents!r}, expected one of {', '.join(by_latents)}")
        channels = by_latents[latents]
        with seeded(seed):
            unet = UNetSpatioTemporalConditionModel(in_channels=2 * channels, out_channels=channels, **sizes.unet)
            image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.image_encoder))
            vae = AutoencoderKLTemporalDecoder(**sizes.vae) if latents == "vae" else None
        pca = PatchPCA(channels) if latents == "pca" else None
        return cls(unet, image_encoder, vae, {"random_init": size, "init_seed": seed, "latents": latents}, pca)

    def export(self, folder: Path) -> None:
        """Write diffusers' folders unet/, vae/ and image_encoder/ in float32, as `load` reads them.

        Args:
            folder: made here; without a VAE and components, there is nothing that `vae/` could hold.
        """
        if self.vae is None and self.pca is None:
            raise MisconfigurationException("latents: space_to_depth has no folder of its own; expected vae or pca")
        self.unet.save_pretrained(folder / "unet")
        self.image_encoder.save_pretrained(folder / "image_encoder")
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
        elif self.pca is not None:
            save_pca(self.pca, folder / "vae")

    def freeze(
        self,
        compute_dtype: torch.dtype,
        train_unet: bool = False,
        vae_precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ) -> SVD:
        """Take all gradients away; UNet and image encoder in the compute dtype, the VAE in a precision of its own.

        Args:
            compute_dtype: Dtype of the frozen UNet and image encoder; float64 is the VAE's too, but for bfloat16.
            train_unet: Leave the UNet trainable, in float32.
            vae_precision: Of the VAE; `tf32` is float32 whose products have 10 bits of mantissa on a GPU.
        """
        if vae_precision not in VAE_DTYPES:
            raise ValueError(f"vae_precision is {vae_precision!r}, expected one of {', '.join(VAE_DTYPES)}")
        self.vae_precision = vae_precision
        self.requires_grad_(False).eval()
        exact = torch.promote_types(compute_dtype, torch.float32)  # float64 goes through from the picture to the frames
        dtypes = {
            "image_encoder": compute_dtype,
            "unet": torch.float32 if train_unet else compute_dtype,
            "vae": VAE_DTYPES[vae_precision] if vae_precision == "bfloat16" else exact,
            "pca": exact,
        }
        for name, part in self.named_children():
            # diffusers' own `to` warns about modules to keep in float32, of which there are none
            nn.Module.to(part, dtypes[name])
        self.unet.requires_grad_(train_unet)
        return self

    def enable_gradient_checkpointing(self, levels: Literal["none", "top", "all"] = "all") -> None:
        """Recompute res blocks, spatial and temporal transformer blocks of these levels in the backward pass."""
        set_recomputed(self.unet, levels)

    @torch.no_grad()
    def encode(self, frames: Tensor, chunk: int = 16) -> tuple[Tensor, Tensor]:
        """Posterior of the latents, computed in the VAE's precision also inside autocast, without gradients.

        Args:
            frames: (N, 3, H, W) in [-1, 1]; H and W multiples of 8.
            chunk: Frames per pass.

        Returns:
            mean and standard deviation, each (N, C, H/8, W/8) float32, or float64 where the VAE computes in it, not
            scaled; the mean is the mode. The latents without a VAE have a standard deviation of 0.
        """
        if self.vae is None:
            mean = self.pca.encode(frames) if self.pca else F.pixel_unshuffle(_exact(frames), VAE_FACTOR)
            return mean, torch.zeros_like(mean)
        with self._vae_arithmetic(frames.device):
            posteriors = [self.vae.encode(part.to(self.vae.dtype)).latent_dist for part in frames.split(chunk)]
        return _exact(torch.cat([p.mean for p in posteriors])), _exact(torch.cat([p.std for p in posteriors]))

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Frames (B, L, 3, H, W), about in [-1, 1], of scaled latents (B, L, C, H/8, W/8), clip by clip; float32, or
        float64 where the VAE computes in it.

        Args:
            latents: As the sampler gives them.
            chunk: Frames per pass of the VAE, which mixes neighbouring frames: fewer than L take less memory and leave
                a seam between passes. None: `decode_chunk`.
        """
        latents = _exact(latents) / self.latent_scale
        if self.vae is None:
            return self.pca.decode(latents) if self.pca else F.pixel_shuffle(latents, VAE_FACTOR)
        with self._vae_arithmetic(latents.device):
            clips = latents.to(self.vae.dtype)
            return torch.stack([_decoded(self.vae, clip, chunk or self.decode_chunk or len(clip)) for clip in clips])

    @contextmanager
    def _vae_arithmetic(self, device: torch.device) -> Iterator[None]:
        """No autocast, and TF32 where it is the VAE's precision, not where something else left it on."""
        matmul, cudnn, tf32 = torch.backends.cuda.matmul, torch.backends.cudnn, self.vae_precision == "tf32"
        before, matmul.allow_tf32 = matmul.allow_tf32, tf32
        flags = cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, tf32)
        try:
            with flags, torch.autocast(device.type, enabled=False):
                yield
        finally:
            matmul.allow_tf32 = before

    @torch.no_grad()
    def embed_image(self, first_frame: Tensor) -> Tensor:
        """CLIP embedding (B, 1, D) of frames (B, 3, H, W) in [-1, 1], in the image encoder's dtype."""
        encoder = self.image_encoder
        # the weights are in the compute dtype: autocast could only run the norms in float32, unlike the latent cache
        with torch.autocast(first_frame.device.type, enabled=False):
            pixels = clip_input(first_frame, encoder.config.image_size).to(encoder.dtype)
            return encoder(pixels).image_embeds[:, None]


def _decoded(vae: AutoencoderKLTemporalDecoder, clip: Tensor, chunk: int) -> Tensor:
    """(L, 3, H, W) of a clip's latents, so many frames at a time."""
    parts = [_exact(vae.decode(part, num_frames=len(part)).sample) for part in clip.split(chunk)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _exact(x: Tensor) -> Tensor:
    """Float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def set_res_block_eps(unet: nn.Module) -> int:
    """Set eps 1e-5 in every GroupNorm of the spatial and temporal res blocks; returns how many were different."""
    changed = [norm for norm in _res_block_norms(unet).values() if norm.eps != RES_BLOCK_EPS]
    for norm in changed:
        norm.eps = RES_BLOCK_EPS
    return len(changed)


@contextmanager
def diffusers_eps(svd: SVD) -> Iterator[None]:
    """The UNet with the eps that diffusers gives its res blocks, for the time of the block."""
    norms = _res_block_norms(svd.unet)
    before = {name: norm.eps for name, norm in norms.items()}
    try:
        for name, norm in norms.items():
            norm.eps = svd.stock_eps[name]
        yield
    finally:
        for name, norm in norms.items():
            norm.eps = before[name]


def _res_block_norms(unet: nn.Module) -> dict[str, Any]:
    blocks = [(n, m) for n, m in unet.named_modules() if isinstance(m, (ResnetBlock2D, TemporalResnetBlock))]
    return {f"{name}.{norm}": getattr(block, norm) for name, block in blocks for norm in ("norm1", "norm2")}


def use_fast_temporal_convs(unet: nn.Module) -> None:
    """Compute the UNet's temporal convolutions by the kernels of two dimensions; weights and their names stay."""
    for module in unet.modules():
        if type(module) is nn.Conv3d and module.kernel_size == (3, 1, 1) and module.padding == (1, 0, 0):
            module.__class__ = TemporalConv3d


def clip_input(frames: Tensor, size: int) -> Tensor:
    """Frames (B, 3, H, W) in [-1, 1] -> CLIP's normalised (B, 3, size, size), as in diffusers' SVD pipeline.

    Computed in float32, or float64 where the frames are.
    """
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    height, width = frames.shape[-2:]
    with torch.autocast(frames.device.type, enabled=False):  # bfloat16 rounds pixels visibly
        frames = _blur(_blur(frames, width / size).mT, height / size).mT
        frames = F.interpolate(frames, size=(size, size), mode="bicubic", align_corners=True)
    # made on the host and copied without waiting: `torch.tensor(..., device=...)` blocks until the device is done
    constants = torch.tensor((CLIP_MEAN, CLIP_STD), dtype=frames.dtype).to(frames.device, non_blocking=True)
    mean, std = constants[..., None, None]
    return ((frames + 1) / 2 - mean) / std


def _blur(frames: Tensor, factor: float) -> Tensor:
    """Gaussian blur along the last axis before shrinking it by `factor`: sigma (factor - 1) / 2, two sigmas wide."""
    sigma = max((factor - 1) / 2, 0.001)
    size = int(max(4 * sigma, 3)) // 2 * 2 + 1
    x = torch.arange(size, device=frames.device, dtype=frames.dtype) - size // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, size)
    padded = F.pad(frames, (size // 2, size // 2, 0, 0), mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel).view(frames.shape)
