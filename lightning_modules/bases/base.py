"""VideoBase: what training, sampling and control ask of an image-to-video model. A base is one class of this kind.

Everything that is known of one model only lies in its class. Nothing here imports diffusers.
"""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.bases.grid import Grid
from lightning_modules.bases.places import Level, Place
from lightning_modules.bases.said import Input, class_path
from lightning_modules.bases.staged import Staged
from lightning_modules.bases.trained_on import TrainedOn
from lightning_modules.conditioning import Conditioning, to_float
from lightning_modules.layers import cast
from lightning_modules.process.base import NoiseProcess
from remoco.common.errors import UserError

if TYPE_CHECKING:  # the contract between the rooms
    from datamodules.shards.cached import Cached


class Posterior(NamedTuple):
    """Latents of clips as the autoencoder gives them, which is how they are cached: `VideoBase.normalise` comes after.

    Attributes:
        mean: (B, F, C, h, w), the mode.
        std: (B, F, C, h, w), the standard deviation; 0 where nothing is drawn.
    """

    mean: Tensor
    std: Tensor


class VideoBase(Staged, nn.Module, ABC):
    """An image-to-video model. The constructor keeps its arguments and reads nothing; `build` loads or draws weights.

    Class attributes:
        grid: Lengths and sizes that it takes.
        conditionings: Names of what the network is conditioned on, in the order of the dropout's draws.
        unconditional: Name of a conditioning -> its value in guidance's unconditional branch: `zero`, `keep`, or the
            name of the part of a `Conditioning` that takes its place.
        named_by: Arguments of the constructor that say which weights these are; they are recorded in checkpoints.
        located_by: Those of them that only say where the weights are. Another value is the same base where the hash
            is equal.
        frame_noise: Mean and standard deviation of the log of the noise on the first frame in training; None for none.
        per_frame: Name of the conditioning that is the first frame's latent and may have one for each latent frame,
            as `moved` makes it. `condition` then gives the frame too. None: the base takes no such.
        one_picture: Whether `per_frame` has one frame alone, of the picture that lies lowest in the clip.
        first_latents: Name of the conditioning (B, F, n + C, h, w) that holds the latents of the first frame and an
            unknown rest, and the number n of channels before them, which say what is known. None: it takes no such.
        drawn: Whether its weights are drawn, so that it has seen nothing but the clips of its run.

    Attributes:
        arguments: Arguments of the constructor, by name.
        cached: What the clips bring that a training will use, set before `build`, which then refuses what was made with
            other weights before it reads the largest, and need not load a network that made all it is for.
        trained: Whether the network is trained too.
        channels: Number of channels of a latent; known once it is built.
        hashes: Name of a network -> SHA-256 of its weights as they were loaded.
        decode_chunk: Number of frames that `decode` takes at once by default; None is all.
        trained_on: What the base states of the pictures it was trained on; None where it states nothing.
        identity: `record()` and `hash`, one SHA-256 for all networks ("meta" without values).
    """

    grid: Grid = Grid()
    conditionings: ClassVar[tuple[str, ...]] = ()
    unconditional: ClassVar[Mapping[str, str]] = {}
    named_by: ClassVar[tuple[str, ...]] = ()
    located_by: ClassVar[tuple[str, ...]] = ()
    frame_noise: ClassVar[tuple[float, float] | None] = None
    per_frame: ClassVar[str | None] = None
    one_picture: ClassVar[bool] = False
    first_latents: tuple[str, int] | None = None
    drawn: ClassVar[bool] = False

    arguments: dict[str, Any]
    cached: Cached | None = None
    trained: bool = False
    trained_on: TrainedOn | None = None
    decode_chunk: int | None = None
    channels: int
    hashes: dict[str, str]
    identity: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" not in vars(cls):
            return
        init, signature = cls.__init__, inspect.signature(cls.__init__)

        @functools.wraps(init)
        def keeping(self: VideoBase, *args: Any, **kwargs: Any) -> None:
            if "_modules" not in vars(self):
                nn.Module.__init__(self)
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            init(self, *args, **kwargs)
            # of the outermost class, whose arguments a record has to give again
            arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
            self.arguments = {name: str(v) if isinstance(v, Path) else v for name, v in arguments.items()}

        cls.__init__ = keeping  # type: ignore[method-assign, assignment]

    # Weights

    @abstractmethod
    def build(self, dtype: torch.dtype = torch.float32) -> VideoBase:
        """Load or draw the weights, in place, and freeze them; on the meta device nothing is drawn or allocated.

        Args:
            dtype: Dtype of the frozen networks. What is `trained` is float32.

        Raises:
            UserError: a file or a weight is missing.
        """

    def cast(self, dtype: torch.dtype) -> None:
        """Give the built networks another compute dtype, as `build` would; what is trained keeps its own."""
        for network in self.children():
            cast(network, dtype)

    def layout(self) -> VideoBase:
        """The same base without its weights, on the meta device: names and shapes of what `build` makes."""
        with torch.device("meta"):
            return type(self)(**self.arguments).build()

    def export(self, folder: Path) -> None:
        """Write the networks where a base of this kind loads them from."""
        raise UserError(f"base: {type(self).__name__} cannot be exported as a folder")

    @abstractmethod
    def denoisers(self) -> dict[str, nn.Module]:
        """Attribute -> network that predicts: where LoRA goes, and what is trained or compiled."""

    @abstractmethod
    def process(self) -> NoiseProcess:
        """The noise process that the network was trained with."""

    def arithmetic(self) -> torch.dtype:
        """Dtype of latents, noise and numbers: float32, or float64 where the networks are."""
        weight = next(next(iter(self.denoisers().values())).parameters())
        return torch.promote_types(weight.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(next(iter(self.denoisers().values())).parameters()).device

    # Latents

    @abstractmethod
    def encode(self, video: Tensor) -> Posterior:
        """(B, L, 3, H, W) in [-1, 1] -> latents, in at least float32, without gradients."""

    def encoders(self, device: torch.device) -> VideoBase:
        """Built on a device as far as `precomputed` needs it, for `remoco cache`: its denoisers may be missing."""
        return self.build().to(device)

    def precomputed(self, video: Tensor) -> dict[str, Tensor]:
        """What the frozen networks make of clips in every epoch, which `remoco cache` keeps: tensors (B, ...) by name.

        They have the names and dtypes of `datamodules.shards.cached`; `clean_latents` and `condition` find them in a
        batch. Texts are not among them.

        Args:
            video: (B, L, 3, H, W) in [-1, 1].
        """
        mean, std = self.encode(video)
        return {"latent_mean": mean, "latent_std": std}

    def precomputed_by(self) -> dict[str, str]:
        """Name -> hash of the networks that `precomputed` asks, once they are built."""
        return {name: digest for name, digest in self.hashes.items() if name not in self.denoisers()}

    @abstractmethod
    def normalise(self, latents: Tensor) -> Tensor:
        """Latents of `encode` -> those of the network, of a standard deviation of about 1; (..., C, h, w)."""

    @abstractmethod
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Latents (B, F, C, h, w) of the network -> (B, L, 3, H, W), about in [-1, 1].

        Args:
            latents: As the sampler gives them.
            chunk: Number of frames to decode at once, for less memory. None: the base's setting, by default all.
        """

    def finished(self, video: Tensor, cond: Conditioning) -> Tensor:
        """What a clip becomes after `decode`, (B, L, 3, H, W): the same, unless a base knows some of it better.

        Args:
            video: As `decode` gives it.
            cond: What it was sampled with, as the injections steered it.
        """
        return video

    def reconstructed(self, video: Tensor) -> Tensor:
        """(B, L, 3, H, W), uint8 or in [-1, 1], encoded and decoded: the best that a sample can be."""
        return self.decode(self.normalise(self.encode(to_float(video)).mean)).clamp(-1, 1)

    def fitted(self) -> nn.Module | None:
        """The part whose buffers are fitted to a training set and kept in checkpoints, where there is one."""
        return None

    def to_fit(self) -> bool:
        """Whether it still has to be."""
        return False

    def fit(self, videos: Iterable[Tensor]) -> None:
        """Fit it to clips, each (L, 3, H, W) in [-1, 1]."""

    def usual(self) -> tuple[int, int, int]:
        """Frames, height and width of a clip where nobody says; of the data that the base knows."""
        return 16, 320, 512

    def small(self) -> bool:
        """Whether it is a small network, whose samples are small."""
        return False

    # Conditioning and prediction

    def inputs(self) -> dict[str, Input]:
        """Inputs that a person may set beside image and control, by name."""
        return {}

    def given(self, batch: Mapping[str, Any], bucket: Tensor) -> dict[str, Tensor]:
        """Inputs of a data set's clips: (B,) values of each of `inputs()` except the noise on the first frame.

        Args:
            batch: The clips.
            bucket: (B,) mean displacement of their pixels.
        """
        return {}

    @abstractmethod
    def condition(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], noise: Tensor | None) -> Conditioning:
        """The network's conditioning, without control; nothing is dropped.

        Args:
            batch: `first_frame` (B, 3, H, W), uint8 or in [-1, 1], `frames`, the clips' length L, and what is cached of
                a clip.
            inputs: (B,) values of each of `inputs()`; where a word other than `drawing` was said, the word, for all.
            noise: (B, 3, H, W) standard normal for the first frame; None where `frame_noise` is.
        """

    def moved(self, clips: Tensor, unknown: Tensor, marks: Tensor) -> Tensor:
        """The `per_frame` conditioning, of clips of the first frame's pixels instead of the first frame.

        Args:
            clips: (B, L, 3, H, W) in [-1, 1].
            unknown: (B, L, H, W), 1 where a pixel is not known and 0 elsewhere.
            marks: (B, F, C, h, w), which are added to the latents.
        """
        return self.encode(clips).mean + marks

    def loss(self, process: NoiseProcess, denoised: Tensor, clean: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """(B, F) of an estimate, whose mean is what training minimises: as `NoiseProcess.loss`."""
        return process.loss(denoised, clean, sigma)

    def embed_text(self, texts: Sequence[str]) -> list[Tensor]:
        """Embeddings (n, D) of texts, each of its own length, for a base that has the inputs `said.TEXTS`.

        They reach `condition` with zeros behind them: `text`, `text_length` and `negative_text` of its batch.

        Raises:
            UserError: it takes no text, or has nothing that reads it.
        """
        if not texts:
            return []
        raise UserError("prompt: this base takes no text, expected none")

    def text_hashes(self) -> dict[str, str]:
        """`tokenizer` -> hash of the file that `embed_text` reads, where it is there, for caches of embeddings."""
        return {}

    @abstractmethod
    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The network's output (B, F, C, h, w).

        Args:
            noisy: (B, F, C, h, w), scaled as the noise process says.
            time: (B,), the noise level in the form that the process gives networks.
            cond: The conditioning, with dropout applied.
        """

    # Control

    def levels(self) -> list[Level]:
        """Features of the control that the places take, finest first."""
        return []

    def places(self) -> list[Place]:
        """Where features of the control enter, in the order in which their weights are drawn."""
        return []

    def lora_targets(self, kind: Literal["attention", "linear"]) -> dict[str, list[str]]:
        """Name of a denoiser -> its linear layers that LoRA goes around: every one by default."""
        return {
            name: [layer for layer, module in network.named_modules() if type(module) is nn.Linear]
            for name, network in self.denoisers().items()
        }

    def freeze_idle(self) -> dict[str, nn.Parameter]:
        """Freeze what would train but has no effect; returns it by name."""
        return {}

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the networks that predict, at their first call."""
        for network in self.denoisers().values():
            network.compile(*args, **options)

    # Record

    def settings(self) -> dict[str, Any]:
        """Plain values of what a step depends on beside the weights, by name; a resume says where they differ."""
        return {}

    def record(self) -> dict[str, Any]:
        """Class path and the arguments that name the weights, as plain values."""
        return {
            "class_path": class_path(type(self)),
            "init_args": {name: self.arguments[name] for name in self.named_by},
        }

    def same_name(self, record: Mapping[str, Any]) -> bool:
        """Whether another base's record may be of the same weights; their hashes decide once they are loaded."""
        identity = self.record()
        return identity["class_path"] == record.get("class_path") and all(
            name in self.located_by or record.get("init_args", {}).get(name) == value
            for name, value in identity["init_args"].items()
        )

    @classmethod
    def check_named(cls, arguments: Mapping[str, Any]) -> None:
        """Raise UserError unless an untrusted file may give these arguments.

        Args:
            arguments: By the names in `named_by`, of any values.
        """
        for name, value in arguments.items():
            plain = value is None or type(value) in (bool, int, float) or (isinstance(value, str) and len(value) < 4097)
            if name not in cls.named_by or not plain or (type(value) is int and abs(value) >= 1 << 63):
                raise UserError(f"{name[:80]} is {value!r:.60}, expected a plain value of {', '.join(cls.named_by)}")

    @classmethod
    def from_record(cls, record: Mapping[str, Any], **arguments: Any) -> VideoBase:
        """The base of a record, not built. Nothing is imported because a record says so.

        Args:
            record: As `record` returns it; it may be untrusted.
            arguments: Replace recorded ones.

        Raises:
            UserError: its class is not one of ours and was not imported before, or an argument does not fit.
        """
        kind = class_of(record)
        kind.check_named(record.get("init_args", {}))
        return kind(**{**record.get("init_args", {}), **arguments})


def class_of(record: Mapping[str, Any]) -> type[VideoBase]:
    """The class that a record names: one of ours, or one whose module is imported already.

    Raises:
        UserError: it is neither.
    """
    path = record.get("class_path")
    if not isinstance(path, str) or len(path) > 200 or not path.isprintable():
        raise UserError(f"base.class_path is {path!r:.60}, expected the class path of a base")
    module, _, name = path.rpartition(".")
    if module == "lightning_modules.bases":
        import_module(module)
    cls = getattr(sys.modules.get(module), name, None)
    if cls is None:
        raise UserError(f"base.class_path is {path}, which is not imported; import its module before, if you trust it")
    if not (isinstance(cls, type) and issubclass(cls, VideoBase)):
        raise UserError(f"base.class_path is {path}, expected the class path of a base")
    return cls
