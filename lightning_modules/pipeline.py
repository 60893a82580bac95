"""MotionControlPipeline: an image, drawn tracks and a brushed mask to a video, in diffusers' conventions."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from conditions import Condition, mix
from lightning_modules import record
from lightning_modules.conditioning import INFERENCE_SIGMA_AUG, from_first_frame, to_uint8
from lightning_modules.diffusion import randn
from lightning_modules.framing import Framing, Picture, read_brush, read_image
from lightning_modules.motion_control import AUG_NOISE, INITIAL, MotionControlModule

WEIGHTS, RECORD = "motion_control.safetensors", "motion_control.json"


class MotionControlPipeline:
    """Motion-controlled image-to-video generation with a trained module.

    Args:
        module: The module, its networks built.
        sampling: What the model was trained for, taken where a call does not say: `num_frames`, `motion_bucket_id`.
    """

    def __init__(self, module: MotionControlModule, sampling: Mapping[str, Any] | None = None):
        self.module = module.eval()
        self.sampling = {"num_frames": 16, "motion_bucket_id": 17.0, **(sampling or {})}
        self._said = False

    def to(self, device: torch.device | str) -> MotionControlPipeline:
        """Move the networks to a device; their dtype is chosen where they are built."""
        self.module.to(device)
        return self

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        svd: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        ema: bool = True,
    ) -> MotionControlPipeline:
        """Build the pipeline of a checkpoint that `python -m lightning fit` wrote.

        Args:
            path: The checkpoint; `embedded` is the small one in the package. A condition or injection of your own,
                which it names, has to be imported before: nothing is imported because a file says so.
            svd: Where the base is now, when not where the checkpoint says; its weights must be the same.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks.
            ema: Use the averaged weights where the run kept them, as its validation did.

        Raises:
            ValueError: not a checkpoint of ours, or over another base; one line.
        """
        with _value_errors():
            checkpoint = record.read_checkpoint(path)
            found = record.of(checkpoint, str(path))
            averaged = checkpoint.get("callbacks", {}).get("EMA", {}).get("shadow", {}) if ema else {}
            return cls(*_built(found, checkpoint["state_dict"] | averaged, svd, dtype)).to(device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        svd: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MotionControlPipeline:
        """Build the pipeline of a folder that `save_pretrained` wrote; the arguments are `from_checkpoint`'s.

        Raises:
            ValueError: a file is missing or damaged, or the base is another; one line.
        """
        folder = Path(folder)
        with _value_errors():
            try:
                found = json.loads((folder / RECORD).read_text())
                state = safetensors.torch.load_file(folder / WEIGHTS)
            except (OSError, ValueError, SafetensorError) as error:
                raise ValueError(f"{folder}: expected {RECORD} and {WEIGHTS} of save_pretrained ({error})") from error
            found = record.of({record.KEY: found}, str(folder / RECORD))
            return cls(*_built(found, state, svd, dtype)).to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what was trained and what it belongs to, without the frozen base, for `from_pretrained`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored = self.module.stored(self.module.whole)  # of a file that brought its base, the base too
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
        safetensors.torch.save_file(state, folder / WEIGHTS)
        found = self.module.own_record()
        found |= {"sampling": {**self.sampling, **found["sampling"]}, "whole": self.module.whole}
        (folder / RECORD).write_text(json.dumps(found, indent=1) + "\n")

    @classmethod
    def from_adapter(
        cls,
        path: str | Path,
        svd: str,
        condition: Condition,
        lora: Literal["attention", "linear"] = "linear",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MotionControlPipeline:
        """Build the pipeline of an adapter file; what a checkpoint says of itself, a bare adapter leaves to the caller.

        Args:
            path: `adapter.safetensors`, as `remoco convert` writes it.
            svd: diffusers' folder or hub id of the base.
            condition: The condition it was trained with; the released weights' is
                `RegionWise(visibility_rule="block", motion_norm="squared")`.
            lora: Where it has LoRA; the released weights have it on every linear layer.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks.

        Raises:
            ValueError: its tensors are not those of this architecture; one line.
        """
        with _value_errors():
            return cls._of_adapter(path, svd, condition, lora, dtype).to(device)

    @classmethod
    def _of_adapter(
        cls, path: str | Path, svd: str, condition: Condition, lora: Literal["attention", "linear"], dtype: torch.dtype
    ) -> MotionControlPipeline:
        from lightning_modules.released.files import read_adapter

        ranks = {t.shape[0] for name, t in read_adapter(path)["lora"].items() if ".lora_A." in name}
        module = MotionControlModule(condition, svd=svd, adapter=str(path), lora=lora, lora_rank=max(ranks, default=1))
        module.configure_model(dtype)
        return cls(module)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture,
        tracks: Sequence[Any],
        brush: Picture | None = None,
        num_frames: int | None = None,
        fps: float = 8,
        motion_bucket_id: float | None = None,
        noise_aug_strength: float = INFERENCE_SIGMA_AUG,
        num_inference_steps: int | None = None,
        min_guidance_scale: float | None = None,
        max_guidance_scale: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> np.ndarray:
        """Generate one clip.

        An image of another size than the frame's is scaled to cover it and cropped in the middle, as clips are for
        training, and tracks and brush with it; a warning says so once.

        Args:
            image: First frame: a PIL image, (H, W, 3) uint8, or a file.
            tracks: Drawn tracks, each (n, 2) points x, y in pixels of `image`, the first where the motion starts.
            brush: (H, W) array, PIL image (its alpha, if it has one) or file of the image's size, non-zero where things
                may move; all ones is camera motion, None the drawn regions alone.
            num_frames: Length L of the clip, at least 2; by default what the checkpoint was trained for, or 16.
            fps: Frames per second, passed as it is (the released code; diffusers' own pipeline passes fps - 1).
            motion_bucket_id: Mean displacement in pixels; by default the checkpoint's, or 17 as on WebVid (SVD's own
                default 127 is another scale).
            noise_aug_strength: Standard deviation of the noise on the first frame.
            num_inference_steps: Euler steps; the training configuration's by default.
            min_guidance_scale: Guidance of the first frame; the training configuration's by default.
            max_guidance_scale: Guidance of the last frame; the training configuration's by default.
            seed: The same seed gives the same clip.
            generator: Draws the seed instead: the same state gives the same clip, and two calls differ.
            height: Of the frame, a multiple of 64; the image's, rounded down, by default.
            width: Of the frame, a multiple of 64; the image's, rounded down, by default.

        Returns:
            (L, height, width, 3) uint8 frames.

        Raises:
            ValueError: the image, a track, the brush or a number does not fit; one line.
        """
        module = self.module
        num_frames = self.sampling["num_frames"] if num_frames is None else num_frames
        motion_bucket_id = self.sampling["motion_bucket_id"] if motion_bucket_id is None else motion_bucket_id
        steps = module.sample_steps if num_inference_steps is None else num_inference_steps
        guidance = [
            own if given is None else given
            for given, own in zip((min_guidance_scale, max_guidance_scale), module.guidance, strict=True)
        ]
        _check(num_inference_steps=(steps, 1), num_frames=(num_frames, 2), fps=(fps, 1e-3),
               noise_aug_strength=(noise_aug_strength, 0), motion_bucket_id=(motion_bucket_id, 0))  # fmt: skip
        frame, control = self._drawn(read_image(image), tracks, brush, num_frames, height, width)
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        first = torch.from_numpy(frame).to(module.device).permute(2, 0, 1)[None]
        # one stream per purpose, as in training; an inference has no position
        seeds = {stream: [int(mix(seed, 0, stream))] for stream in (AUG_NOISE, INITIAL)}
        values = {"fps": fps, "motion_bucket_id": motion_bucket_id, "sigma_aug": noise_aug_strength}
        ids = {name: torch.tensor([float(value)], device=module.device) for name, value in values.items()}
        with module.autocast():
            noise = randn(seeds[AUG_NOISE], first.shape[1:], module.device)
            cond = from_first_frame(module.svd, first, control[None].to(module.device), ids, noise)
            shape = (num_frames, module.svd.latent_channels, *cond.image_latent.shape[2:])
            noise = randn(seeds[INITIAL], shape, module.device)
            sigma = module.sample_sigma_max
            video = module.networks.generate(cond, noise, steps, tuple(guidance), sigma_max=sigma)
        if not video.isfinite().all():
            raise ValueError("the generated video holds NaN or infinite values")
        return to_uint8(video[0]).permute(0, 2, 3, 1).cpu().numpy()

    def _drawn(
        self,
        picture: np.ndarray,
        tracks: Sequence[Any],
        brush: Picture | None,
        frames: int,
        height: int | None,
        width: int | None,
    ) -> tuple[np.ndarray, torch.Tensor]:
        """The frame, (H, W, 3) uint8, and the control on it, (L, 3, H, W)."""
        framing = Framing.of(picture.shape[:2], height, width)
        with _value_errors():
            record.check_size(self.module.condition, *framing.frame)
        if framing.frame != framing.size and not self._said:
            self._said = True
            (h, w), (rows, columns) = framing.size, framing.frame
            warnings.warn(
                f"the image is {w} x {h}, the clip {columns} x {rows}: scaled and cropped as in training, "
                "tracks and brush with it",
                stacklevel=3,
            )
        drawn = [framing.track(track, index) for index, track in enumerate(tracks)]
        painted = read_brush(brush, framing.size)
        painted = None if painted is None else framing.brush(painted)
        return framing.image(picture), self.module.condition.draw(drawn, painted, frames, *framing.frame)


def _built(
    found: dict[str, Any], state: dict[str, torch.Tensor], svd: str | None, dtype: torch.dtype
) -> tuple[MotionControlModule, dict[str, Any]]:
    """The module of a record and its tensors, and what the record says beyond the module."""
    base = {k: v for k, v in found["base"].items() if k not in ("hash", "latents")}
    architecture = dict(found["architecture"])
    if "." in (kind := str(architecture.get("injection"))) and kind.rpartition(".")[0] not in sys.modules:
        raise ValueError(f"injection: {kind} is not imported; import its module before, if you trust it")
    architecture["condition"] = Condition.from_record(architecture["condition"])
    if svd is not None:
        base = {"svd": svd}
    if architecture["lora"] is None:
        architecture.pop("lora_rank")
    sampling = dict(found.get("sampling") or {})
    names = {"steps": "sample_steps", "sigma_max": "sample_sigma_max", "guidance": "guidance"}
    settings = {names[name]: sampling.pop(name) for name in names if name in sampling}
    module = MotionControlModule(**base, **architecture, **settings)
    module.configure_model(dtype)
    module.on_load_checkpoint({record.KEY: found, "state_dict": state})
    module.load_state_dict(state, strict=False)
    return module, sampling


def _check(**numbers: tuple[float, float]) -> None:
    for name, (value, least) in numbers.items():
        if not value >= least or value == float("inf"):
            raise ValueError(f"{name} is {value}, expected a number of at least {least:g}")


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """What is wrong with a file or argument as a ValueError of one line."""
    try:
        yield
    except (MisconfigurationException, KeyError, TypeError, AttributeError, ValueError) as error:
        text = " ".join(str(error).split())
        named = isinstance(error, (MisconfigurationException, ValueError))
        raise ValueError(text if named else f"not a record of ours ({type(error).__name__}: {text})") from error
