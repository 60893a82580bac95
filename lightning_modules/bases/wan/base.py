"""Wan as a base: loaded from a folder in the hub's layout; its latents, conditioning and prediction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPVisionModel

from lightning_modules.bases.arithmetic import exact, vae_arithmetic
from lightning_modules.bases.base import Posterior, VideoBase
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.said import TEXTS, Input
from lightning_modules.bases.svd.clip import standardised
from lightning_modules.bases.svd.network import without_autocast
from lightning_modules.bases.text import cleaned
from lightning_modules.bases.text_reader import TextKind
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.wan import per_frame
from lightning_modules.bases.wan.components import ClipPCA
from lightning_modules.bases.wan.experts import EXPERTS, Experts, write_boundary
from lightning_modules.bases.wan.network import TEXT_LENGTH, cast_transformer, joined, masked, padded, prepare
from lightning_modules.bases.wan.per_frame import use_blocks
from lightning_modules.bases.wan.weights import COMPONENTS, TIME, changes_of, class_of, load, networks_of
from lightning_modules.bases.weight_files import config_file
from lightning_modules.bases.weights import layout_of
from lightning_modules.conditioning import Conditioning, plain, to_float
from lightning_modules.hub import is_hub_id
from lightning_modules.layers import cast
from lightning_modules.process.flow_matching import TIMES, FlowMatching
from remoco.common.errors import UserError
from remoco.common.model_folders import check_model

Y = "y"  # the condition of 2.1 beside the noisy latents


class Wan(Experts):
    """Wan, image to video: 2.1 I2V, 2.2 TI2V and 2.2 I2V A14B, told by the configurations in the folder.

    All have a transformer and a causal VAE; 2.1 also has CLIP's image encoder. A14B has two transformers, the experts
    of high and of low noise. One of them is controlled and trained, at its own noise levels; samples use both.

    2.1 and A14B are conditioned on latents of the first frame beside the noisy ones. 2.2 TI2V is given the first latent
    clean, at time 0; it is not in the loss.

    Its text encoder is read for the embedding of an empty prompt, and again for prompts (`embed_text`), and not kept.

    Args:
        path: Local folder or hub id `owner/name` in diffusers' layout.
        revision: Revision of the hub id.
        trained: Train the transformer too. It is then in float32.
        recompute: Blocks of the transformer that are computed again in the backward pass, to save memory: `none`, or
            `all`.
        expert: `high` or `low`: the expert of A14B that is controlled and trained. None for the others.

    Attributes:
        transformer: Denoising transformer; of A14B, that of high noise.
        transformer_2: Of A14B, that of low noise; None otherwise.
        vae: Causal autoencoder, in at least float32: in bfloat16 its latents are too coarse to condition on.
        image_encoder: CLIP vision model, in at least float32; None in Wan 2.2.
        first_given: Whether it is TI2V, which is given the first latent.
        empty: (n, D) embedding of an empty prompt.
        elsewhere: Networks that are not the folder's -> what reads them with their hash, of a dtype; see `wan.peers`.
    """

    conditionings = ("text",)
    unconditional = {**Experts.unconditional, Y: plain(Y)}
    model = "Wan"
    blocks = "blocks"
    spared_by: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("latent_mean", "first_latent"),
        "image_encoder": ("image_embedding",),
    }
    image_encoder: Any
    first_given: bool
    latent_mean: Tensor
    latent_std: Tensor
    elsewhere: Mapping[str, Callable[[torch.dtype], tuple[nn.Module, str]]] = MappingProxyType({})

    @functools.cached_property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that a built base holds; reads configurations."""
        networks = networks_of(self.config("transformer"), self.config("vae"), self.called)
        self.check_experts(networks)
        return networks

    @functools.cached_property
    def grid(self) -> Grid:  # type: ignore[override]
        """Of the autoencoder; reads its configuration."""
        space = self.config("vae").get("scale_factor_spatial", 8)
        if space not in (8, 16):
            raise UserError(f"base: {self.path}/vae: scale_factor_spatial is {space!r:.60}, expected 8 or 16")
        return Grid(space=space, step=2 * space, time=TIME)

    @functools.cached_property
    def patches(self) -> bool:
        """Whether components of patches stand for the autoencoder; reads its configuration."""
        return class_of("vae", self.config("vae")) is ClipPCA

    @property
    def first_latents(self) -> tuple[str, int] | None:  # type: ignore[override]
        """Of 2.1 and A14B, whose `y` begins with a mask; reads configurations."""
        return None if self.networks == ("transformer", "vae") else (Y, TIME)

    @property
    def per_frame(self) -> str | None:  # type: ignore[override]
        """Of 2.1 and A14B, whose `y` may hold more than the first frame; reads configurations."""
        return None if self.first_latents is None else Y

    def build(self, dtype: torch.dtype = torch.float32) -> Self:
        """Load the folders transformer/, vae/, image_encoder/ and text_encoder/, safetensors alone.

        In a local folder `text/embeddings.safetensors`, as `export` writes it, stands for the text encoder.
        """
        exact, trained = torch.float32 if self.trained else dtype, EXPERTS[self.expert or "high"]
        dtypes = {name: dtype for name in self.networks if name in EXPERTS.values()} | {trained: exact}
        spared = {name: digest for name, digest in self.spare().items() if not (name == "vae" and self.patches)}
        parts, hashes = load(
            str(self.path), self.revision, self.networks, exact, dtypes, self.cached, spared, self.elsewhere
        )
        self.spared = frozenset(spared)
        return self.hold(**parts, hashes=hashes)

    def layout(self) -> VideoBase:
        """Built from the configurations alone; no weights are read."""
        made: dict[str, Any] = {}
        for name in self.networks:
            changes = changes_of(self.networks) if name in EXPERTS.values() else {}
            config = self.config(name) | changes
            make = partial(layout_of(class_of(name, config)), config)
            if not is_hub_id(str(self.path)) and name not in self.elsewhere:
                check_model(config_file(str(self.path), name, self.revision).parent, lambda _, make=make: make())  # type: ignore[misc]
            with torch.device("meta"):
                made[name] = make()
        fresh = type(self)(**self.arguments)
        return fresh.hold(**made, empty=torch.empty(1, made["transformer"].config.text_dim, device="meta"))

    def hold(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan | ClipPCA,
        image_encoder: CLIPVisionModel | None = None,
        transformer_2: WanTransformer3DModel | None = None,
        *,
        empty: Tensor,
        hashes: Mapping[str, str] | None = None,
    ) -> Self:
        """Take these networks, in their dtypes, as the base's own, and freeze them.

        Args:
            transformer: Transformer of diffusers.
            vae: Autoencoder of diffusers, or components of patches.
            image_encoder: Image encoder of transformers, where there is one.
            transformer_2: Expert of low noise, where there is one.
            empty: (n, D) embedding of an empty prompt.
            hashes: Of the stored weights, by name; by default they are taken here.
        """
        self.first_given = transformer.config.in_channels == transformer.config.out_channels
        for network in (transformer, transformer_2):
            if network is not None:
                prepare(network)
        if self.first_given:
            use_blocks(transformer)
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.put("vae", vae)
        self.put("image_encoder", image_encoder)
        self.freeze()
        self.channels = vae.config.z_dim
        for name, values in (("latent_mean", vae.config.latents_mean), ("latent_std", vae.config.latents_std)):
            column = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1).to(empty.device)
            self.register_buffer(name, column, persistent=False)
        self.register_buffer("empty", empty, persistent=False)
        self.identify(hashes)
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """As `VideoBase.cast`; what stays in float32 does."""
        for transformer in (self.transformer, self.transformer_2):
            if transformer is not None:
                cast_transformer(transformer, dtype)
        for network in self.beside():
            cast(network, torch.promote_types(dtype, torch.float32))
        self.empty = self.empty.to(dtype)

    def process(self) -> FlowMatching:
        """Flow matching with the authors' shift, except for 480 lines, where theirs is 3."""
        return FlowMatching(5.0)

    def usual(self) -> tuple[int, int, int]:
        """Of the weights for 480 lines, and of TI2V."""
        return (121, 704, 1280) if self.networks == ("transformer", "vae") else (81, 480, 832)

    def export(self, folder: Path) -> None:
        """As `TransformerBase.export`; two experts with their boundary."""
        super().export(folder)
        if self.stages > 1:
            write_boundary(self.boundary, folder)

    # Latents

    @torch.no_grad()
    def encode(self, video: Tensor) -> Posterior:
        """As `VideoBase.encode`: the mode, which Wan is trained on, so with a standard deviation of 0.

        The autoencoder is causal: latent 0 is that of the first frame alone, and each other one that of four frames.

        Args:
            video: (B, L, 3, H, W) in [-1, 1].
        """
        with vae_arithmetic(video.device, tf32=False):
            vae = self.loaded("vae")
            frames = video.transpose(1, 2).to(vae.dtype)
            mode = exact(vae.encode(frames).latent_dist.mode()).transpose(1, 2)
        return Posterior(mode, torch.zeros_like(mode))

    def normalise(self, latents: Tensor) -> Tensor:
        """By mean and standard deviation of each channel."""
        return (latents - self.latent_mean.to(latents.dtype)) / self.latent_std.to(latents.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """As `VideoBase.decode`, clip by clip and latent by latent, whatever the chunk, without seams."""
        latents = exact(latents)
        latents = latents * self.latent_std.to(latents.dtype) + self.latent_mean.to(latents.dtype)
        with vae_arithmetic(latents.device, tf32=False):
            vae = self.loaded("vae")
            video = vae.decode(latents.transpose(1, 2).to(vae.dtype)).sample
        return exact(video).transpose(1, 2)

    def fitted(self) -> nn.Module | None:
        """The components of patches, where they stand for the autoencoder."""
        return self.vae if self.patches else None

    def to_fit(self) -> bool:
        """Where neither a folder nor a checkpoint brought them."""
        return self.patches and not self.vae.fitted

    def fit(self, videos: Iterable[Tensor]) -> None:
        """As `VideoBase.fit`."""
        self.vae.fit(videos)

    # Conditioning and prediction

    @torch.no_grad()
    def embed_image(self, first_frame: Tensor) -> Tensor:
        """CLIP's tokens (B, n, D) of frames (B, 3, H, W) in [-1, 1], before its last block, as the authors take them.

        The whole frame is squeezed into CLIP's square, by bicubic interpolation without a blur.
        """
        encoder = self.loaded("image_encoder")
        side = encoder.config.image_size
        with torch.autocast(first_frame.device.type, enabled=False):
            frames = first_frame.to(encoder.dtype)
            square = F.interpolate(frames, size=(side, side), mode="bicubic", align_corners=False)
            states = encoder(standardised(square), output_hidden_states=True).hidden_states
        return states[-2]

    @torch.no_grad()
    def condition(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], noise: Tensor | None) -> Conditioning:
        """As `VideoBase.condition`.

        Args:
            batch: Also, where prompts are known, their embeddings `text` (B, n, D) with their `text_length` (B,), and
                `negative_text` (B, n, D), which guidance leads away from; each is by default that of an empty prompt.
                And what is cached of the first frame: `first_latent` and `image_embedding`, as `precomputed` gives it.
            inputs: None.
            noise: None.
        """
        first = to_float(batch["first_frame"], self.arithmetic())
        empty = self.empty_text(len(first))
        text, negative = batch.get("text"), batch.get("negative_text")
        texts = {
            "text": empty if text is None else padded(text, batch.get("text_length")),
            "negative_text": empty if negative is None else padded(negative),
        }
        latents, image = batch.get("first_latent"), batch.get("image_embedding")
        latents = self.normalise(self.first_latent(first, batch["frames"]) if latents is None else latents.to(first))
        if self.first_given:
            return Conditioning({**texts, "first": latents}, given=1)
        y = joined(latents, batch["frames"], self.grid.time)
        if self.image_encoder is not None:
            texts["image_embedding"] = self.embed_image(first) if image is None else image
        return Conditioning({**texts, Y: y}, frame=first)

    def moved(self, clips: Tensor, unknown: Tensor, marks: Tensor) -> Tensor:
        """As `VideoBase.moved`: y, whose mask has the cells that hold known pixels alone, frame by frame."""
        known = 1 - F.max_pool2d(unknown, self.grid.space)
        return masked(self.normalise(self.encode(clips).mean) + marks, known, self.grid.time)

    def first_latent(self, first: Tensor, frames: int) -> Tensor:
        """Latents of what the network is given of first frames (B, 3, H, W), as `encode` gives them.

        They are those of a clip of this many frames whose other frames are grey; for TI2V of the first frame alone.
        """
        if self.first_given:
            return self.encode(first[:, None]).mean
        grey = first.new_zeros(len(first), frames - 1, *first.shape[1:])
        return self.encode(torch.cat([first[:, None], grey], 1)).mean

    @torch.no_grad()
    def precomputed(self, video: Tensor) -> dict[str, Tensor]:
        """As `VideoBase.precomputed`, in float32; the latents are the mode."""
        first = video[:, 0]
        found = {"latent_mean": self.encode(video).mean, "first_latent": self.first_latent(first, video.shape[1])}
        return found | ({} if self.image_encoder is None else {"image_embedding": self.embed_image(first)})

    def inputs(self) -> dict[str, Input]:
        """The texts, where the base has files that may have a text encoder among them."""
        return dict(TEXTS) if self.path is not None else {}

    def text_kind(self) -> TextKind:
        """Up to 512 tokens, each text of its own length, cleaned as diffusers' pipeline does."""
        return TextKind(COMPONENTS[ENCODER], TEXT_LENGTH, cleaned=cleaned)

    def empty_text(self, count: int) -> Tensor:
        """(count, 512, D) embedding of an empty prompt."""
        return padded(self.empty[None]).expand(count, -1, -1)

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """As `VideoBase.predict`, in the transformer's dtype.

        A clip that drops its text has that of an empty prompt, and y without motion, as guidance's other branch has it.
        """
        transformer = self.transformer_at(time)
        dtype = transformer.patch_embedding.weight.dtype
        text, y = cond.parts["text"], cond.parts.get(Y)
        if cond.keep is not None and "text" in cond.keep:
            keep = cond.keep["text"]
            text = torch.where(keep[:, None, None], text, self.empty_text(len(text)).to(text.dtype))
            if y is not None and plain(Y) in cond.parts:
                y = torch.where(keep.view(-1, 1, 1, 1, 1), y, cond.parts[plain(Y)])
        if y is None:
            return self._after_first(noisy, time, cond.parts["first"], text.to(dtype))
        inputs = torch.cat([noisy.to(dtype), y.to(dtype)], dim=2)
        image = None if self.image_encoder is None else cond.parts["image_embedding"].to(dtype)
        with without_autocast(inputs):
            out = transformer(inputs.transpose(1, 2), time, text.to(dtype), image, return_dict=False)[0]
        return out.transpose(1, 2)

    def _after_first(self, noisy: Tensor, time: Tensor, first: Tensor, text: Tensor) -> Tensor:
        """TI2V's prediction; for the first latent, which it is given, what leads there in one step."""
        inputs = torch.cat([first.to(text.dtype), noisy[:, 1:].to(text.dtype)], dim=1)
        times = time[:, None].repeat(1, noisy.shape[1])
        times[:, 0] = 0
        with without_autocast(inputs):
            out = per_frame.predict(self.transformer, inputs.transpose(1, 2), times, text).transpose(1, 2)
        straight = (noisy[:, :1] - first) * (TIMES / time.to(noisy.dtype)).view(-1, 1, 1, 1, 1)
        return torch.cat([straight, out[:, 1:].to(noisy.dtype)], dim=1)

    def beside(self) -> list[nn.Module]:
        """Image encoder and VAE."""
        parts = {"image_encoder": self.image_encoder, "vae": self.vae}
        return [part for name, part in parts.items() if part is not None and name not in self.spared]
