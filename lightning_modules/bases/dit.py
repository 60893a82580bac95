"""What bases with a transformer of diffusers share: files, control in their tokens, LoRA, and random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.empty_prompt import save_text
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.places import Level, Place
from lightning_modules.bases.prompted import PromptedBase
from lightning_modules.bases.said import whole_hash
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.weight_files import config_file, fingerprint
from lightning_modules.bases.weights import layout_of, read_beside, weights_hash
from lightning_modules.layers import seeded
from remoco.common.errors import UserError
from remoco.common.model_folders import check_config

FINEST = 8  # pixels per feature of the first level
LEAST, MOST = 32, 256  # channels of a feature
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
RECOMPUTED = ("none", "all")
TILES = "tiles"


class TransformerBase(PromptedBase):
    """A base whose network is a transformer of diffusers, conditioned on text.

    Args:
        path: Local folder or hub id `owner/name` in diffusers' layout.
        revision: Revision of the hub id.
        trained: Train the transformer too. It is then in float32.
        recompute: Blocks of the transformer that are computed again in the backward pass, to save memory: `none`, or
            `all`.

    Class attributes:
        model: What a user knows it as.
        blocks: Name of the transformer's blocks.
        spared_by: Name of a network -> names of what a clip has to bring so that a training does not need it.

    Attributes:
        spared: Names of the networks that are not loaded yet, as a cache stands for them.
        networks: Names of the networks that a built base holds.
        transformer: Denoising transformer.
        vae: Autoencoder.
        empty: (n, D) embedding of an empty prompt.
    """

    unconditional: ClassVar[Mapping[str, str]] = {"text": "negative_text"}
    named_by: ClassVar[tuple[str, ...]] = ("path", "revision")
    located_by: ClassVar[tuple[str, ...]] = ("path", "revision")
    model: ClassVar[str]
    blocks: ClassVar[str]
    spared_by: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    spared: frozenset[str] = frozenset()
    networks: Any
    hold: Any  # takes the networks and `empty`
    transformer: Any
    vae: Any
    empty: Tensor

    def __init__(
        self,
        path: str | Path | None = None,
        revision: str | None = None,
        trained: bool = False,
        recompute: Literal["none", "all"] = "none",
    ):
        if recompute not in RECOMPUTED:
            raise UserError(f"base: recompute is {recompute!r:.60}, expected one of {', '.join(RECOMPUTED)}")
        self.path, self.revision = None if path is None else str(path), revision
        self.trained, self.recompute = trained, recompute

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of a network; of a hub id it comes into the cache, and no weights do."""
        if self.path is None:
            raise UserError(f"base: path is missing, expected a folder or hub id of {self.model}, image to video")
        return check_config(config_file(self.path, name, self.revision))

    def freeze(self) -> None:
        """Freeze the networks that are held, but for a transformer that is trained."""
        self.vae.use_slicing = True  # a clip at a time
        self.requires_grad_(False).eval()
        self.controlled.requires_grad_(self.trained)
        if self.recompute == "all":
            self.controlled.enable_gradient_checkpointing()

    # What a cache spares

    def beside_names(self) -> list[str]:
        """Names of the networks that are no transformer."""
        return [name for name in self.networks if not name.startswith("transformer")]

    def spare(self) -> dict[str, str]:
        """Name -> hash of the networks beside the transformer that are not loaded, as clips bring what they give.

        They are those of `spared_by` whose files the cache was made with, by their fingerprints.
        """
        found: dict[str, str] = {}
        if self.cached is not None and self.path is not None:
            for name, brought in self.spared_by.items():
                files = self.cached.files.get(name)
                known = name in self.networks and name in self.cached.hashes
                whole = known and set(brought) <= set(self.cached.layout)
                if whole and files is not None and files == fingerprint(self.path, name, self.revision):
                    found[name] = self.cached.hashes[name]
        return found

    def put(self, name: str, network: Any) -> None:
        """Take a network; a spared one, which has no values, stays out of the module's parts until it is `loaded`."""
        if name in self.spared:
            object.__setattr__(self, name, network)
        else:
            setattr(self, name, network)

    def loaded(self, name: str) -> Any:
        """A network beside the transformer; one that a cache has spared is read now, where a validation needs it.

        Raises:
            UserError: it does not read, or is another than before.
        """
        if name in self.spared:
            with torch.inference_mode(False), torch.device("cpu"):
                network = read_beside(str(self.path), self.revision, name, type(getattr(self, name)), self.arithmetic())
                if (digest := weights_hash(network)) != self.hashes[name]:
                    raise UserError(f"base: {self.path}/{name} is another than when the run began (hash {digest[:12]})")
                self.spared = self.spared - {name}
                vars(self).pop(name, None)
                setattr(self, name, network.requires_grad_(False).eval().to(self.empty.device))
                self.vae.use_slicing = True  # a clip at a time
        return getattr(self, name)

    def encoders(self, device: torch.device) -> VideoBase:
        """As `VideoBase.encoders`; no transformer and no text encoder is read."""
        made: Any = self.layout()
        for name in self.beside_names():
            network = read_beside(str(self.path), self.revision, name, type(getattr(made, name)), torch.float32)
            made.hashes[name] = weights_hash(network)
            setattr(made, name, network.requires_grad_(False).eval().to(device))
        made.vae.use_slicing = True
        return made

    def precomputed_by(self) -> dict[str, str]:
        """Those beside the transformer, without the text encoder."""
        return {name: self.hashes[name] for name in self.beside_names()}

    def identify(self, hashes: Mapping[str, str] | None) -> None:
        """Say whose weights they are: by the hashes of the stored ones, or as they are now."""
        self.hashes = dict(
            hashes
            or {n: weights_hash(net) for n in self.networks if (net := getattr(self, n)) is not self.fitted()}
            | {ENCODER: weights_hash(nn.ParameterDict({"empty": nn.Parameter(self.empty)}))}
        )
        self.identity = {**self.record(), "hash": whole_hash(self.hashes)}

    def export(self, folder: Path) -> None:
        """Write the networks' folders and the embedding of an empty prompt, as a base of this kind loads them.

        Args:
            folder: Made here.
        """
        for name in self.networks:
            getattr(self, name).save_pretrained(folder / name)
        save_text(self.empty, self.hashes[ENCODER], folder)

    @property
    def controlled(self) -> Any:
        """The transformer that is controlled, or trained."""
        return self.transformer

    @property
    def device(self) -> torch.device:
        """As `VideoBase.device`, also while a transformer is off it."""
        return self.empty.device

    def denoisers(self) -> dict[str, nn.Module]:
        """The transformers."""
        return {name: getattr(self, name) for name in self.networks if name.startswith("transformer")}

    def levels(self) -> list[Level]:
        """Down to one feature for each token."""
        config = self.transformer.config
        return token_levels(self.grid, config.num_attention_heads * config.attention_head_dim)

    def places(self) -> list[Place]:
        """What enters the self-attention of each block, after the adaptive norm: the residual stream is untouched.

        Text tokens beside the video's come apart there, and are untouched too.
        """
        coarsest, width = len(self.levels()) - 1, self.transformer.config
        channels = width.num_attention_heads * width.attention_head_dim
        return [
            Place(f"{self.blocks}.{index}", block.attn1, channels, coarsest, "tokens")
            for index, block in enumerate(getattr(self.controlled, self.blocks))
        ]

    def lora_targets(self, kind: Literal["attention", "linear"]) -> dict[str, list[str]]:
        """In the blocks of the controlled transformer, see `dit.lora_targets`."""
        targets = lora_targets(self.controlled, kind, self.blocks)
        return {name: targets for name, network in self.denoisers().items() if network is self.controlled}

    def groups(self) -> dict[str, list[nn.Module]]:
        """The blocks of each transformer."""
        return {name: list(getattr(network, self.blocks)) for name, network in self.denoisers().items()}

    @property
    def vae_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Diffusers' tiles, which overlap, where the VAE is an autoencoder of diffusers."""
        return (TILES,) if hasattr(self.vae, "enable_tiling") else ()

    def work_in(self, part: str | None) -> None:
        """As `VideoBase.work_in`."""
        super().work_in(part)
        if self.vae_parts:
            self.vae.enable_tiling() if part == TILES else self.vae.disable_tiling()

    def part_of(self, part: str, clip: tuple[int, int, int]) -> tuple[int, int, int]:
        """As `VideoBase.part_of`."""
        frames, height, width = clip
        return frames, min(height, self.vae.tile_sample_min_height), min(width, self.vae.tile_sample_min_width)

    def compile(self, *args: Any, **options: Any) -> None:
        """Block by block: all have the same code, which is compiled once."""
        for transformer in self.denoisers().values():
            for block in getattr(transformer, self.blocks):
                block.compile(*args, **options)


class RandomTransformer(TransformerBase):
    """Before a base of this kind among the parents: its networks with random weights; no global generator moves.

    Class attributes:
        sizes: Name of a size -> name of a network -> its configuration.
        components: Name of a network -> its class.
    """

    named_by: ClassVar[tuple[str, ...]] = ("size", "init_seed")
    located_by = ()
    drawn = True
    sizes: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]
    components: ClassVar[Mapping[str, Any]]
    size: str
    init_seed: int

    def config(self, name: str) -> dict[str, Any]:
        """As `TransformerBase.config`, of the size."""
        return dict(self.sizes[self.size][name])

    def class_of(self, name: str) -> Any:
        """The class of a network."""
        return self.components[name]

    def draw_rest(self, transformer: Any) -> Tensor:
        """Draw what is left once the networks are: the embedding (n, D) of an empty prompt."""
        return torch.randn(1, transformer.config.text_dim)

    def build(self, dtype: torch.dtype = torch.float32) -> Self:
        """Draw the weights; on the meta device nothing is drawn or allocated."""
        with seeded(self.init_seed):
            parts = {name: layout_of(self.class_of(name))(self.config(name)) for name in self.networks}
            empty = self.draw_rest(parts["transformer"])
        self.hold(**parts, empty=empty)  # hashed in float32, whatever the dtype
        self.cast(dtype)
        return self

    def layout(self) -> VideoBase:
        """The networks on the meta device."""
        return VideoBase.layout(self)

    def encoders(self, device: torch.device) -> VideoBase:
        """All of it, drawn."""
        return VideoBase.encoders(self, device)

    def small(self) -> bool:
        """Whether it is a tiny one."""
        return self.size.startswith(("tiny", "micro"))

    @classmethod
    def check_named(cls, arguments: Mapping[str, Any]) -> None:
        """As `VideoBase.check_named`; the size is one of ours too."""
        super().check_named(arguments)
        if (size := arguments.get("size", next(iter(cls.sizes)))) not in cls.sizes:
            raise UserError(f"base: size is {size!r:.60}, expected one of {', '.join(cls.sizes)}")
        if type(seed := arguments.get("init_seed", 0)) is not int:
            raise UserError(f"base: init_seed is {seed!r:.60}, expected a whole number")


def token_levels(grid: Grid, width: int) -> list[Level]:
    """Down to one feature for each token, of the grid's step and time; the finer ones are on the way there.

    Args:
        grid: Of the base.
        width: Channels of a token.
    """
    most = max(LEAST, min(MOST, width // 8 // LEAST * LEAST))
    halvings = (grid.step // FINEST).bit_length() - 1
    finer = [Level(max(LEAST, most >> (halvings - n)), FINEST * 2**n) for n in range(halvings)]
    return [*finer, Level(most, grid.step, grid.time)]


def lora_targets(transformer: nn.Module, kind: Literal["attention", "linear"], blocks: str) -> list[str]:
    """Names of the layers in the blocks: `attention`: q, k, v and output of all attentions; `linear`: every one.

    Args:
        transformer: Of diffusers.
        kind: Which layers.
        blocks: Name of the blocks.
    """
    named = transformer.named_modules()
    names = [name for name, module in named if type(module) is nn.Linear and name.startswith(f"{blocks}.")]
    if kind == "attention":
        names = [name for name in names if name.endswith(tuple(f".{part}" for part in ATTENTION_PROJECTIONS))]
    return names


def refuse_fusing(*args: Any, **kwargs: Any) -> None:
    """In the place of diffusers' `fuse_qkv_projections`."""
    raise UserError("fuse_qkv_projections joins the base's weights alone and drops LoRA; expected no call of it")
