"""The settings of a module, one dataclass for each concern. A YAML has them as mappings below `model.init_args`.

The types hold the ranges, for the parser. `__post_init__` checks them again, because records and Python bypass the
parser. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from remoco.common.errors import UserError
from remoco.common.ranges import number, within

if TYPE_CHECKING:  # what `noise.process` is an instance of; nothing of torch is imported for settings
    from lightning_modules.process.base import NoiseProcess
else:
    NoiseProcess = object

MOST_STEPS = 10_000
MOST_SIGMA = 1e6
MOST_RANK = 4096
PEERS = ("wan_move", "ati")  # kinds of `Start`, see `bases.wan.peers`

if not TYPE_CHECKING:  # jsonargparse runs what stands below `if TYPE_CHECKING`
    Rank = number(int, 1, MOST_RANK)
    Steps = number(int, 1, MOST_STEPS)
    Count = number(int, 1, 2**31 - 1)
    Sigma = number(float, 0.01, MOST_SIGMA)
    Factor = number(float, 0, MOST_SIGMA)
    Mean = number(float, -20, 20)
    Deviation = number(float, 0, 20)
    Share = number(float, 0, 1)
    Scale = number(float, 0, 1000)
else:
    Rank: TypeAlias = int
    Steps: TypeAlias = int
    Count: TypeAlias = int
    Sigma: TypeAlias = float
    Factor: TypeAlias = float
    Mean: TypeAlias = float
    Deviation: TypeAlias = float
    Share: TypeAlias = float
    Scale: TypeAlias = float


@dataclass(frozen=True)
class Control:
    """How motion enters the base."""

    injection: list[str] = field(default_factory=lambda: ["modulation"])
    """Injections of the control, in order. Each is `modulation` (eq. 8), `concat` or `add` (the ablation of fig. 9), at
    the places of the base; `warp`, which moves the first frame's pixels and conditions each frame on them; `latent`,
    which copies the first frame's latent features along the tracks, or `latent_soft`, which mixes them in around the
    tracks, both for Wan 2.1 and A14B; or the class path of your own."""
    lora: Literal["attention", "linear"] | None = "attention"
    """Layers with LoRA: all `attention` projections (paper), every `linear` layer (released weights), or null for
    none."""
    rank: Rank = 32
    """Rank of LoRA; its alpha is the same, so its scale is 1."""
    flow_scale: Factor = 1.0
    """Factor on the motion encoder's first weights of dx and dy. Below 1 it balances displacements in pixels against
    the mask, which is 0 or 1."""
    every: Count = 1
    """Of the base's places, use the first and every so many after it."""

    def __post_init__(self) -> None:
        if not isinstance(self.injection, list) or not all(isinstance(kind, str) for kind in self.injection):
            raise UserError(f"control.injection is {self.injection!r:.60}, expected a list, for example [modulation]")
        if len(set(self.injection)) < len(self.injection) or len(self.injection) > 8:
            raise UserError(f"control.injection is {self.injection!r:.60}, expected different entries, at most 8")
        if self.lora not in ("attention", "linear", None):
            raise UserError(f"control.lora is {self.lora!r:.60}, expected attention, linear or null")
        within("control.every", self.every, 1, 2**31 - 1, whole=True)
        within("control.rank", self.rank, 1, MOST_RANK, whole=True)
        within("control.flow_scale", self.flow_scale, 0, MOST_SIGMA)

    def record(self) -> dict[str, Any]:
        """The settings that a checkpoint must share."""
        return {
            "injection": list(self.injection), "lora": self.lora, "lora_rank": self.rank if self.lora else None,
        } | ({} if self.every == 1 else {"every": self.every})  # fmt: skip


@dataclass(frozen=True)
class Noise:
    """The noise of training."""

    process: NoiseProcess | None = None
    """Noise process, by class path. Default: the process of the base."""
    mean: Mean | None = None
    """Mean of ln sigma. Default: the process's, for EDM 0.7."""
    std: Deviation | None = None
    """Standard deviation of ln sigma. Default: the process's, for EDM 1.6."""
    spread: bool = False
    """Spread sigma evenly over neighbouring samples instead of drawing it independently."""
    dropout: Share = 0.1
    """Probability with which each of the base's conditionings is dropped, independently."""

    def __post_init__(self) -> None:
        if self.process is not None and not hasattr(self.process, "asked"):
            raise UserError("noise.process: expected the class path of a NoiseProcess")
        if self.mean is not None:
            within("noise.mean", self.mean, -20, 20)
        if self.std is not None:
            within("noise.std", self.std, 0, 20)
        within("noise.dropout", self.dropout, 0, 1)

    def over(self, process: NoiseProcess) -> Noise:
        """The same with this process, and its mean and standard deviation where none are said."""
        usual = zip((self.mean, self.std), process.training, strict=True)
        mean, std = (default if said is None else said for said, default in usual)
        return dataclasses.replace(self, process=process, mean=mean, std=std)


@dataclass(frozen=True)
class Sampling:
    """How a clip is sampled unless a call gives other values."""

    steps: Steps = 25
    """Number of sampler steps."""
    sigma_max: Sigma | None = None
    """Noise level sigma at which sampling starts. Default: the process's, for EDM 700."""
    guidance: tuple[Scale, Scale] = (1.0, 2.5)
    """Guidance scale of the first and of the last frame; it is linear in between."""
    inputs: dict[str, float | str] = field(default_factory=dict)
    """Inputs of the base beside image and control, by name; the others have the base's defaults. SVD has `fps`,
    `motion_bucket_id` (a mean displacement in pixels, or `drawing` to measure it on the drawing) and
    `noise_aug_strength`."""
    solver: Literal["euler", "unipc"] = "euler"
    """How a sampler steps. Flow matching also has `unipc`, of second order."""
    guidance_2: tuple[Scale, Scale] | None = None
    """As `guidance`, at the noise levels of the low-noise expert of Wan 2.2 A14B. Default: `guidance`."""

    def __post_init__(self) -> None:
        within("sampling.steps", self.steps, 1, MOST_STEPS, whole=True)
        if self.sigma_max is not None:
            within("sampling.sigma_max", self.sigma_max, 0.01, MOST_SIGMA)
        for name, scales in (("guidance", self.guidance), ("guidance_2", self.guidance_2)):
            if scales is None and name == "guidance_2":
                continue
            if not isinstance(scales, (list, tuple)) or len(scales) != 2:
                raise UserError(f"sampling.{name} is {scales!r:.60}, expected two numbers")
            for scale in scales:
                within(f"sampling.{name}", scale, 0, 1000)
            object.__setattr__(self, name, tuple(scales))
        if not isinstance(self.inputs, dict) or len(self.inputs) > 64:
            raise UserError(
                f"sampling.inputs is {self.inputs!r:.60}, expected a mapping from input names to values, at most 64"
            )

    def record(self) -> dict[str, Any]:
        """The settings as plain values."""
        values = {**dataclasses.asdict(self), "guidance": list(self.guidance)}
        second = values.pop("guidance_2")
        return values | ({} if second is None else {"guidance_2": list(second)})

    def over(self, process: NoiseProcess) -> Sampling:
        """The same with this process's first noise level where none is said.

        Raises:
            UserError: the process has no such solver, or no levels from there on.
        """
        if self.solver not in process.solvers:
            known = ", ".join(process.solvers)
            raise UserError(f"sampling.solver is {self.solver!r:.60}, expected one of {known} with this noise process")
        process.levels(self.steps, self.sigma_max)  # refused now, not at the first sample
        return self if self.sigma_max is not None else dataclasses.replace(self, sigma_max=process.highest)

    def but(self, **changes: Any) -> Sampling:
        """A copy with the changes that are not None; `inputs` are added to the present ones."""
        said = {name: value for name, value in changes.items() if value is not None}
        if "inputs" in said:
            said["inputs"] = {**self.inputs, **{k: v for k, v in said["inputs"].items() if v is not None}}
        return dataclasses.replace(self, **said)


@dataclass(frozen=True)
class Speed:
    """Options that change time and memory, not what is computed."""

    compile: bool = False
    """Compile the base's network at the first step. Compiling takes minutes."""
    decode_chunk: Count | None = None
    """Number of frames that SVD's VAE decodes at once. Default: all. Fewer take less memory, in overlapping windows."""
    sample_graph: bool = False
    """Record the first sampler step as a CUDA graph and replay it for the other steps."""

    def __post_init__(self) -> None:
        if self.decode_chunk is not None:
            within("speed.decode_chunk", self.decode_chunk, 1, 2**31 - 1, whole=True)


@dataclass(frozen=True)
class Start:
    """Weights that training starts from."""

    kind: Literal["adapter", "checkpoint", "motionpro", "wan_move", "ati"]
    """`adapter`: an `adapter.safetensors`, as `remoco convert` writes it. `checkpoint`: the weights
    of an earlier run. `motionpro`: a released MotionPro file, which brings the base too. `wan_move`, `ati`: these
    authors' transformer, in the place of the one of Wan 2.1."""
    file: str
    """Path of the file; of `wan_move` and `ati` a safetensors file or a folder of its parts."""

    def __post_init__(self) -> None:
        if self.kind not in (known := ("adapter", "checkpoint", "motionpro", *PEERS)):
            raise UserError(f"start.kind is {self.kind!r:.60}, expected one of {', '.join(known)}")
        if self.peer and not Path(self.file).expanduser().exists():
            raise UserError(f"start.file: no file {self.file}, expected a safetensors file or a folder of its parts")
        if self.kind in ("adapter", "checkpoint") and not Path(self.file).is_file():
            raise UserError(f"start.file: no file {self.file}, expected adapter.safetensors or a checkpoint")

    @property
    def peer(self) -> bool:
        """Whether it is another author's transformer for a base."""
        return self.kind in PEERS

    @property
    def whole(self) -> bool:
        """Whether it generates without a training."""
        return self.peer or self.kind == "motionpro"
