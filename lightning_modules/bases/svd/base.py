"""SVD as a base: loaded from diffusers' folders; its latents, conditioning and prediction, and where control enters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from lightning_modules import embedded
from lightning_modules.bases.arithmetic import exact, vae_arithmetic
from lightning_modules.bases.base import Posterior
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.places import Level, Place
from lightning_modules.bases.said import DRAWING, Input, whole_hash
from lightning_modules.bases.sprites.pca import PatchPCA
from lightning_modules.bases.svd.blocks import compile_unet, freeze_idle, set_recomputed, use_our_blocks
from lightning_modules.bases.svd.clip import clip_input
from lightning_modules.bases.svd.network import CONDITIONINGS, UNCONDITIONAL, Network, decoded, lora_targets, places
from lightning_modules.bases.svd.norms import res_block_norms, set_res_block_eps, use_fast_temporal_convs
from lightning_modules.bases.svd.spared import Spared
from lightning_modules.bases.svd.weights import (
    COMPONENTS,
    VAE_DTYPES,
    check_settings,
    load_component,
    load_unet,
    save_pca,
)
from lightning_modules.bases.trained_on import read_trained_on
from lightning_modules.bases.weight_files import config_file, located
from lightning_modules.bases.weights import weights_hash
from lightning_modules.conditioning import Conditioning, to_float
from lightning_modules.hub import check_variant, is_hub_id
from lightning_modules.layers import cast
from lightning_modules.process.edm import EDM
from remoco.common.errors import UserError
from remoco.common.model_folders import check_config, check_model
from remoco.common.tensor_files import read_json

SPACE_TO_DEPTH_SCALE = 2.0  # frames in [-1, 1] have a standard deviation of about 0.5
INFERENCE_STRENGTH = 0.02  # noise on the first frame at inference (released configuration)
ENCODED = 16  # frames per pass of the VAE's encoder


class SVD(Spared):
    """Stable Video Diffusion, image to video: UNet, VAE and CLIP image encoder.

    Args:
        path: Local folder or hub id `owner/name` in diffusers' layout, or `embedded-sprites`, the small base of plain
            sprites in the package.
        revision: Revision of the hub id.
        trained: Train the UNet too. It is then in float32.
        vae_precision: Precision of the VAE on a GPU. Products have 10 bits of mantissa in `tf32` and 7 in `bfloat16`.
        recompute: Parts of the UNet that are computed again in the backward pass, to save memory: `none`, the `top`
            level, which holds most activations, or `all` levels.
        variant: Variant of the weights, for example `fp16`. Default: the full weights, else those of `fp16`.

    Attributes:
        unet: Denoising UNet.
        image_encoder: CLIP vision model with projection.
        vae: Autoencoder, or None for latents that are made of patches of the frames.
        pca: Principal components of those patches; None with a VAE, or to keep all pixels.
        stock_eps: Name of each res block's norm in the UNet -> the eps that diffusers gave it.
        latent_scale: Factor between `encode`'s latents and the diffusion's, which have a standard deviation of about 1.
    """

    # 8 by the VAE, then three halvings in the UNet whose skip connections must meet again
    grid = Grid(space=8, step=64)
    conditionings = CONDITIONINGS
    unconditional = UNCONDITIONAL
    named_by: ClassVar[tuple[str, ...]] = ("path", "revision", "variant")
    located_by: ClassVar[tuple[str, ...]] = ("path", "revision", "variant")
    frame_noise: ClassVar[tuple[float, float] | None] = (-3.0, 0.5)
    per_frame = "image_latent"
    unet: Any
    image_encoder: Any
    vae: Any
    pca: PatchPCA | None

    def __init__(
        self,
        path: str | Path | None = None,
        revision: str | None = None,
        trained: bool = False,
        vae_precision: Literal["float32", "tf32", "bfloat16"] = "tf32",
        recompute: Literal["none", "top", "all"] = "none",
        variant: str | None = None,
    ):
        check_settings(vae_precision, recompute)
        check_variant(variant)
        # what it was called before there was a model of photographs: in records of then
        named = embedded.SPRITES if path == embedded.NAME else path
        self.path, self.revision, self.variant = None if named is None else str(named), revision, variant
        self.trained, self.vae_precision, self.recompute = trained, vae_precision, recompute

    def build(self, dtype: torch.dtype = torch.float32) -> SVD:
        """Load diffusers' folders unet/, vae/ and image_encoder/: safetensors alone, whole or in parts, else fp16's.

        In a local folder `vae/` may also hold the components of patches, as `export` writes them.
        """
        if self.path is None:
            raise UserError("base: path is missing, expected a folder or hub id of SVD, or `embedded-sprites`")
        folder = str(embedded.BASE if self.path == embedded.SPRITES else self.path)
        base = located(folder, COMPONENTS, self.revision, self.variant)  # all of them before the first is read
        self.trained_on = read_trained_on(base)
        parts, hashes = {}, {}
        for name in ("image_encoder", "vae"):  # the UNet, the largest, comes when these are in their dtype
            parts[name] = load_component(base, name, folder, self.variant)
            hashes[name] = weights_hash(parts[name])
        parts["image_encoder"].to(dtype)
        parts["unet"], hashes["unet"] = load_unet(base, torch.float32 if self.trained else dtype, folder, self.variant)
        vae = parts.pop("vae")
        channels = len(vae.scale) if isinstance(vae, PatchPCA) else vae.config.latent_channels
        ins, outs = parts["unet"].config.in_channels, parts["unet"].config.out_channels
        if (ins, outs) != (2 * channels, channels):
            raise UserError(
                f"base: {self.path}/unet has {ins} input and {outs} output channels, expected {2 * channels} "
                f"and {channels} as in image-to-video SVD"
            )
        pca, vae = (vae, None) if isinstance(vae, PatchPCA) else (None, vae)
        return self.hold(parts["unet"], parts["image_encoder"], vae, pca, hashes).freeze(dtype)

    def layout(self) -> SVD:
        """Built from the configurations alone. No weights are read, except those of the small base in the package."""
        fresh = type(self)(**self.arguments)
        if self.path == embedded.SPRITES:
            return fresh.build()
        path = str(self.path)
        patches = read_json(config_file(path, "vae", self.revision))
        channels = None
        if isinstance(patches, dict) and patches.get("_class_name") == PatchPCA.__name__:
            channels = int(patches["channels"])
        config, cls = config_file(path, "unet", self.revision), COMPONENTS["unet"]
        folder = config.parent
        if is_hub_id(path):
            check_config(config)  # its weights are not here to be compared
        else:
            check_model(folder, cls.from_config)
        return fresh.outline(cls.load_config(str(folder), local_files_only=True), channels)

    def outline(self, unet_config: Mapping[str, Any], components: int | None = None) -> SVD:
        """On the meta device: the UNet of a configuration, and components of patches where there are any."""
        with torch.device("meta"):
            unet = COMPONENTS["unet"].from_config(unet_config)
            pca = PatchPCA(components) if components else None
        return self.hold(unet, nn.Identity(), None, pca).freeze(torch.float32)

    def hold(
        self,
        unet: UNetSpatioTemporalConditionModel,
        image_encoder: CLIPVisionModelWithProjection | nn.Module,
        vae: AutoencoderKLTemporalDecoder | None,
        pca: PatchPCA | None = None,
        hashes: dict[str, str] | None = None,
        **named: Any,
    ) -> SVD:
        """Take these networks as the base's own.

        Args:
            unet: UNet of diffusers; it gets our blocks, eps and convolutions.
            image_encoder: Image encoder of transformers.
            vae: Or None.
            pca: In the VAE's place.
            hashes: `weights_hash` of the networks whose stored weights were rounded since; of others it is taken here.
            **named: What else the identity says.
        """
        self.stock_eps = {name: norm.eps for name, norm in res_block_norms(unet).items()}
        set_res_block_eps(unet)
        use_our_blocks(unet)
        use_fast_temporal_convs(unet)
        self.unet, self.image_encoder, self.vae, self.pca = unet, image_encoder, vae, pca
        self.network = Network(unet)
        self.channels = unet.config.out_channels
        self.latent_scale: float = vae.config.scaling_factor if vae else 1.0 if pca else SPACE_TO_DEPTH_SCALE
        networks = {part: getattr(self, part) for part in COMPONENTS if getattr(self, part) is not None}
        known = hashes or {}
        self.hashes = {part: known.get(part) or weights_hash(net) for part, net in networks.items()}
        if pca is not None and "vae" in known:  # loaded in the VAE's place, not to be fitted
            self.hashes["vae"] = known["vae"]
        self.identity = {**self.record(), **named, "hash": whole_hash(self.hashes)}
        set_recomputed(unet, self.recompute)
        return self

    @staticmethod
    def random(size: Literal["micro", "tiny", "small", "full"], seed: int = 0) -> SVD:
        """A base of this size with random weights and a VAE, built: for scripts that try layouts and loaders."""
        from lightning_modules.bases.sprites.base import Sprites  # a kind of SVD itself

        return Sprites(size, seed, latents="vae").build()

    def export(self, folder: Path) -> None:
        """Write diffusers' folders unet/, vae/ and image_encoder/ in float32, as `SVD` loads them.

        Args:
            folder: made here; without a VAE and components, there is nothing that `vae/` could hold.
        """
        if self.vae is None and self.pca is None:
            raise UserError("base: latents is space_to_depth, which cannot be exported, expected vae or pca")
        self.unet.save_pretrained(folder / "unet")
        self.image_encoder.save_pretrained(folder / "image_encoder")
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
        elif self.pca is not None:
            save_pca(self.pca, folder / "vae")

    def freeze(self, dtype: torch.dtype) -> SVD:
        """Freeze all networks, in this dtype; the VAE has its own precision, but float64 where that is float32."""
        self.requires_grad_(False).eval()
        self.cast(dtype)
        self.unet.requires_grad_(self.trained)
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """As `VideoBase.cast`, in the dtypes of `freeze`."""
        precise = torch.promote_types(dtype, torch.float32)  # float64 goes through from the picture to the frames
        dtypes = {
            "image_encoder": dtype,
            "unet": torch.float32 if self.trained else dtype,
            "vae": VAE_DTYPES[self.vae_precision] if self.vae_precision == "bfloat16" else precise,
            "pca": precise,
        }
        for name, part in self.named_children():
            cast(part, dtypes[name])

    def denoisers(self) -> dict[str, nn.Module]:
        """The UNet."""
        return {"unet": self.unet}

    def process(self) -> EDM:
        """EDM with SVD's levels."""
        return EDM()

    @torch.no_grad()
    def encode(self, video: Tensor, chunk: int = ENCODED) -> Posterior:
        """Posterior of the latents, computed in the VAE's precision also inside autocast, without gradients.

        The latents without a VAE have a standard deviation of 0.

        Args:
            video: (B, L, 3, H, W) in [-1, 1].
            chunk: Frames per pass.
        """
        frames = video.flatten(0, 1)
        if self.vae is None:
            mean = self.pca.encode(frames) if self.pca else F.pixel_unshuffle(exact(frames), self.grid.space)
            std = torch.zeros_like(mean)
        else:
            with vae_arithmetic(frames.device, self.vae_precision == "tf32"):
                parts = [self.vae.encode(part.to(self.vae.dtype)).latent_dist for part in frames.split(chunk)]
            mean, std = (exact(torch.cat(part)) for part in ([p.mean for p in parts], [p.std for p in parts]))
        return Posterior(*(part.unflatten(0, video.shape[:2]) for part in (mean, std)))

    def encoders(self, device: torch.device) -> SVD:
        """As `VideoBase.encoders`: the VAE in float32, the image encoder in bfloat16 as the recipes train."""
        self.vae_precision = "float32"
        self.build(torch.bfloat16)
        del self.unet, self.network
        self.float().to(device)
        self.image_encoder.to(torch.bfloat16)
        return self

    @torch.no_grad()
    def precomputed(self, video: Tensor) -> dict[str, Tensor]:
        """As `VideoBase.precomputed`, in float16, with the first frame's `image_embedding` (B, 1, D).

        The first frame's latent is not among them: it is encoded with noise that each step draws.
        """
        found = {**super().precomputed(video), "image_embedding": self.embed_image(video[:, 0])}
        return {name: tensor.half() for name, tensor in found.items()}

    def precomputed_by(self) -> dict[str, str]:
        """VAE and image encoder."""
        return {name: self.hashes[name] for name in ("vae", "image_encoder") if name in self.hashes}

    def normalise(self, latents: Tensor) -> Tensor:
        """By one factor for all channels."""
        return latents * self.latent_scale

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """As `VideoBase.decode`, clip by clip; float32, or float64 where the VAE computes in it.

        Args:
            latents: (B, L, C, H/8, W/8).
            chunk: Frames per pass of the VAE, which mixes neighbouring frames: fewer than L take less memory, and are
                decoded in overlapping windows. None: `at_once`.
        """
        latents = exact(latents) / self.latent_scale
        if self.vae is None:
            return self.pca.decode(latents) if self.pca else F.pixel_shuffle(latents, self.grid.space)
        with vae_arithmetic(latents.device, self.vae_precision == "tf32"):
            clips = latents.to(self.vae.dtype)
            return torch.stack([decoded(self.vae, clip, chunk or self.at_once or len(clip)) for clip in clips])

    def fitted(self) -> nn.Module | None:
        """The components of patches."""
        return self.pca

    def to_fit(self) -> bool:
        """Where no checkpoint brought them."""
        return self.pca is not None and not self.pca.fitted

    def fit(self, videos: Iterable[Tensor]) -> None:
        """As `VideoBase.fit`."""
        if self.pca is not None:
            self.pca.fit(videos)

    @torch.no_grad()
    def embed_image(self, first_frame: Tensor) -> Tensor:
        """CLIP embedding (B, 1, D) of frames (B, 3, H, W) in [-1, 1], in the image encoder's dtype."""
        encoder = self.image_encoder
        # the weights are in the compute dtype: autocast could only run the norms in float32, unlike the latent cache
        with torch.autocast(first_frame.device.type, enabled=False):
            pixels = clip_input(first_frame, encoder.config.image_size).to(encoder.dtype)
            return encoder(pixels).image_embeds[:, None]

    def record(self) -> dict[str, Any]:
        """As `VideoBase.record`; without a variant it is as before there were any."""
        record, named = super().record(), self.variant is not None
        return (
            record
            if named
            else record | {"init_args": {k: v for k, v in record["init_args"].items() if k != "variant"}}
        )

    def settings(self) -> dict[str, Any]:
        """The VAE's precision."""
        return {"vae_precision": self.vae_precision}

    def inputs(self) -> dict[str, Input]:
        """Frames per second, mean displacement in pixels, and the noise on the first frame in units of [-1, 1]."""
        return {
            "fps": Input(8.0, 1e-3, 1e4),
            "motion_bucket_id": Input(17.0, 0, 1e4, (DRAWING,)),
            "noise_aug_strength": Input(INFERENCE_STRENGTH, 0, 100),
        }

    def given(self, batch: Mapping[str, Any], bucket: Tensor) -> dict[str, Tensor]:
        """The clips' frame rate and how far their pixels move."""
        return {"fps": batch["fps"].float(), "motion_bucket_id": bucket}

    @torch.no_grad()
    def condition(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], noise: Tensor | None) -> Conditioning:
        """As `VideoBase.condition`; the image encoder sees the frame without noise, the VAE with it.

        Args:
            batch: Also `image_embedding` (B, 1, D), where it is cached.
            inputs: As in `VideoBase.condition`.
            noise: As in `VideoBase.condition`, scaled by `noise_aug_strength` and added.
        """
        dtype = self.arithmetic()
        first = to_float(batch["first_frame"], dtype)
        values = {name: value.to(dtype) for name, value in inputs.items()}
        strength = values["noise_aug_strength"]
        noised = first if noise is None else first + strength[:, None, None, None] * noise
        embedding = batch.get("image_embedding")
        return Conditioning(
            {
                "image_embedding": self.embed_image(first) if embedding is None else embedding,
                "fps": values["fps"],
                "motion_bucket_id": values["motion_bucket_id"],
                "image_latent": self.encode(noised[:, None]).mean[:, 0],
                "sigma_aug": strength,
            },
            frame=noised,
        )

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """As `VideoBase.predict`, in the UNet's dtype."""
        return self.network.predict(noisy, time, cond)

    def levels(self) -> list[Level]:
        """Of the UNet: from the latents' size, each half the one before."""
        widths = self.unet.config.block_out_channels
        return [Level(width, self.grid.space * 2**index) for index, width in enumerate(widths)]

    def places(self) -> list[Place]:
        """In the UNet, see `network.places`."""
        return places(self.unet)

    def lora_targets(self, kind: Literal["attention", "linear"]) -> dict[str, list[str]]:
        """In the UNet, see `network.lora_targets`."""
        return {"unet": lora_targets(self.unet, kind)}

    def freeze_idle(self) -> dict[str, nn.Parameter]:
        """What cross-attention to the one image token does not depend on."""
        return freeze_idle(self.unet)

    def compile(self, *args: Any, **options: Any) -> None:
        """As one graph, see `blocks.compile_unet`."""
        compile_unet(self.unet, *args, **options)
