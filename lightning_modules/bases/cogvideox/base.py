"""CogVideoX 5B as a base: loaded from a folder in the hub's layout; its latents, conditioning and prediction."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from lightning_modules.bases.arithmetic import exact, vae_arithmetic
from lightning_modules.bases.base import Posterior, VideoBase
from lightning_modules.bases.cogvideox.weights import (
    COMPONENTS,
    PATCH,
    SPACE,
    TIME,
    check_transformer,
    load,
    text_length,
)
from lightning_modules.bases.dit import TransformerBase, refuse_fusing
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.said import TEXTS, Input
from lightning_modules.bases.svd.network import without_autocast
from lightning_modules.bases.text_reader import TextKind
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.weight_files import config_file
from lightning_modules.bases.weights import layout_of
from lightning_modules.conditioning import Conditioning, to_float
from lightning_modules.hub import is_hub_id
from lightning_modules.layers import cast
from lightning_modules.process.v_prediction import VPrediction
from remoco.common.errors import UserError
from remoco.common.model_folders import check_model


class CogVideoX(TransformerBase):
    """CogVideoX 5B, image to video: transformer and autoencoder. Its positions are learned, so it takes one clip size.

    Its text encoder is read for the embedding of an empty prompt, and again for prompts (`embed_text`), and not kept.

    Args:
        path: Local folder or hub id `owner/name` in diffusers' layout.
        revision: Revision of the hub id.
        trained: Train the transformer too. It is then in float32.
        recompute: Blocks of the transformer that are computed again in the backward pass, to save memory: `none`, or
            `all`.

    Attributes:
        transformer: Denoising transformer.
        vae: Autoencoder, in at least float32.
        empty: (226, D) embedding of an empty prompt.
    """

    conditionings = ("text", "first")
    model = "CogVideoX 5B"
    blocks = "transformer_blocks"
    networks = ("transformer", "vae")
    frame_noise = (-3.0, 0.5)
    cosines: Tensor
    sines: Tensor

    @functools.cached_property
    def grid(self) -> Grid:  # type: ignore[override]
        """Of the transformer, which knows one length and size; reads its configuration."""
        config = self.config("transformer")
        check_transformer(config, str(self.path))
        sides = (SPACE * config["sample_height"], SPACE * config["sample_width"])
        return Grid(space=SPACE, step=SPACE * PATCH, time=TIME, only=(config["sample_frames"], *sides))

    def build(self, dtype: torch.dtype = torch.float32) -> Self:
        """Load the folders transformer/, vae/ and text_encoder/, safetensors alone.

        In a local folder `text/embeddings.safetensors`, as `export` writes it, stands for the text encoder.
        """
        _ = self.grid  # refuses another model before any weight is read
        length = text_length(self.config("transformer"))
        kept = torch.float32 if self.trained else dtype
        parts, hashes = load(str(self.path), self.revision, length, kept, self.cached)
        return self.hold(**parts, hashes=hashes)

    def layout(self) -> VideoBase:
        """Built from the configurations alone; no weights are read."""
        _ = self.grid
        made: dict[str, Any] = {}
        for name in self.networks:
            make = layout_of(COMPONENTS[name])
            if not is_hub_id(str(self.path)):
                check_model(config_file(str(self.path), name, self.revision).parent, make)
            with torch.device("meta"):
                made[name] = make(self.config(name))
        fresh, config = type(self)(**self.arguments), made["transformer"].config
        return fresh.hold(**made, empty=torch.empty(config.max_text_seq_length, config.text_embed_dim, device="meta"))

    def hold(
        self,
        transformer: CogVideoXTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        *,
        empty: Tensor,
        hashes: Mapping[str, str] | None = None,
    ) -> Self:
        """Take these networks, in their dtypes, as the base's own, and freeze them.

        Args:
            transformer: Transformer of diffusers.
            vae: Autoencoder of diffusers.
            empty: (n, D) embedding of an empty prompt.
            hashes: Of the stored weights, by name; by default they are taken here.
        """
        transformer.fuse_qkv_projections = refuse_fusing
        self.transformer, self.vae = transformer, vae
        self.freeze()
        self.channels = vae.config.latent_channels
        self.register_buffer("empty", empty, persistent=False)
        for name, table in zip(("cosines", "sines"), rotary(transformer.config, empty.device), strict=True):
            self.register_buffer(name, table, persistent=False)
        self.identify(hashes)
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """As `VideoBase.cast`; the VAE stays in float32."""
        cast(self.transformer, dtype)
        cast(self.vae, torch.promote_types(dtype, torch.float32))
        self.empty = self.empty.to(dtype)

    def process(self) -> VPrediction:
        """Its authors', without a shift."""
        return VPrediction()

    def usual(self) -> tuple[int, int, int]:
        """The one clip that it takes."""
        assert self.grid.only is not None
        return self.grid.only

    # Latents

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """As `VideoBase.encode`, clip by clip and in each 8 frames at a time, the first part longer, as diffusers cuts.

        Within a part each latent depends on all of its frames: that of a first frame alone is another.

        Args:
            video: (B, L, 3, H, W) in [-1, 1].
        """
        with vae_arithmetic(video.device, tf32=False):
            dist = self.vae.encode(video.transpose(1, 2).to(self.vae.dtype)).latent_dist
        return Posterior(exact(dist.mean).transpose(1, 2), exact(dist.std).transpose(1, 2))

    def normalise(self, latents: Tensor) -> Tensor:
        """By one factor for all channels."""
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """As `VideoBase.decode`, clip by clip and two latents at a time, whatever the chunk: as it was trained."""
        latents = exact(latents) / self.vae.config.scaling_factor
        with vae_arithmetic(latents.device, tf32=False):
            video = self.vae.decode(latents.transpose(1, 2).to(self.vae.dtype)).sample
        return exact(video).transpose(1, 2)

    # Conditioning and prediction

    def inputs(self) -> dict[str, Input]:
        """The noise on the first frame in units of [-1, 1], without which its authors sample; texts as for Wan."""
        return {"noise_aug_strength": Input(0.0, 0, 100), **(TEXTS if self.path is not None else {})}

    def text_kind(self) -> TextKind:
        """As many tokens as the transformer says, padding included, of texts as they are written."""
        return TextKind(COMPONENTS[ENCODER], text_length(self.config("transformer")), padded=True)

    @torch.no_grad()
    def condition(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], noise: Tensor | None) -> Conditioning:
        """As `VideoBase.condition`. The first frame's latent is the mode.

        Args:
            batch: Also, where prompts are known, their embeddings `text` (B, 226, D) and `negative_text` (B, 226, D),
                which guidance leads away from; each is by default that of an empty prompt.
            inputs: As in `VideoBase.condition`.
            noise: As in `VideoBase.condition`, scaled by `noise_aug_strength` and added.
        """
        dtype = self.arithmetic()
        first = to_float(batch["first_frame"], dtype)
        if noise is not None:
            first = first + inputs["noise_aug_strength"].to(dtype)[:, None, None, None] * noise
        return Conditioning(
            {
                "text": self.text_of(batch, "text", len(first)),
                "negative_text": self.text_of(batch, "negative_text", len(first)),
                "first": self.normalise(self.encode(first[:, None]).mean),
            }
        )

    def text_of(self, batch: Mapping[str, Any], name: str, count: int) -> Tensor:
        """(count, 226, D) embeddings of a batch, or those of an empty prompt.

        Raises:
            UserError: they are of another length; padding is part of the network's text, and differs by prompt.
        """
        text = batch.get(name)
        if text is None:
            return self.empty.expand(count, -1, -1)
        if text.shape[1:] != self.empty.shape:
            length, width = self.empty.shape
            raise UserError(
                f"{name}: {text.shape[1]} tokens of {text.shape[2]} values, expected {length} of {width}, padding "
                "included"
            )
        return text

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """As `VideoBase.predict`, in the transformer's dtype. Text that is dropped is that of an empty prompt."""
        dtype = self.transformer.dtype
        text = cond.parts["text"]
        if cond.keep is not None and "text" in cond.keep:
            text = torch.where(cond.keep["text"][:, None, None], text, self.empty.to(text.dtype))
        first = cond.kept("first").to(dtype)
        later = first.new_zeros(len(first), noisy.shape[1] - 1, *first.shape[2:])
        inputs = torch.cat([noisy.to(dtype), torch.cat([first, later], 1)], dim=2)
        with without_autocast(inputs):
            return self.transformer(
                inputs, text.to(dtype), time, image_rotary_emb=(self.cosines, self.sines), return_dict=False
            )[0]

    def beside(self) -> list[nn.Module]:
        """The VAE."""
        return [self.vae]


def rotary(config: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, head) float32 of the positions of a clip's tokens, as diffusers' pipeline has them."""
    rows, columns = config.sample_height // PATCH, config.sample_width // PATCH
    frames = (config.sample_frames - 1) // TIME + 1
    return get_3d_rotary_pos_embed(
        config.attention_head_dim, ((0, 0), (rows, columns)), (rows, columns), frames, device=device
    )
