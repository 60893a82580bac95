"""MotionControlPipeline: an image, drawn tracks and a brushed mask to a video, in diffusers' conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from conditions import Condition
from lightning_modules import record
from lightning_modules.conditioning import INFERENCE_SIGMA_AUG, from_first_frame, to_uint8
from lightning_modules.diffusion import randn
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.released.files import read_adapter


class MotionControlPipeline:
    """Motion-controlled image-to-video generation with a trained module.

    Args:
        module: The module, its networks built.
        sampling: What the model was trained for, taken where a call does not say: `num_frames`, `motion_bucket_id`.
    """

    def __init__(self, module: MotionControlModule, sampling: Mapping[str, Any] | None = None):
        self.module = module.eval()
        self.sampling = {"num_frames": 16, "motion_bucket_id": 17.0, **(sampling or {})}

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
            path: The checkpoint; `embedded` is the small one in the package.
            svd: Where the base is now, when not where the checkpoint says; its weights must be the same.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks.
            ema: Use the averaged weights where the run kept them, as its validation did.

        Raises:
            MisconfigurationException: not a checkpoint of ours, or over another base.
        """
        checkpoint = record.read_checkpoint(path)
        found = record.of(checkpoint, str(path))
        base = {k: v for k, v in found["base"].items() if k not in ("hash", "latents")}
        architecture = found["architecture"] | {"condition": Condition.from_record(found["architecture"]["condition"])}
        if svd is not None:
            base = {"svd": svd}
        if architecture["lora"] is None:
            architecture.pop("lora_rank")
        sampling = dict(found.get("sampling", {}))
        names = {"steps": "sample_steps", "sigma_max": "sample_sigma_max", "guidance": "guidance"}
        settings = {names[name]: sampling.pop(name) for name in names if name in sampling}
        module = MotionControlModule(**base, **architecture, **settings)
        module.configure_model(dtype)
        module.on_load_checkpoint(checkpoint)
        averaged = checkpoint["callbacks"].get("EMA", {}).get("shadow", {}) if ema else {}
        module.load_state_dict(checkpoint["state_dict"] | averaged, strict=False)
        return cls(module.to(device), sampling)

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
            MisconfigurationException: its tensors are not those of this architecture.
        """
        ranks = {t.shape[0] for name, t in read_adapter(path)["lora"].items() if ".lora_A." in name}
        module = MotionControlModule(condition, svd=svd, adapter=str(path), lora=lora, lora_rank=max(ranks, default=1))
        module.configure_model(dtype)
        return cls(module.to(device))

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray,
        tracks: Sequence[np.ndarray],
        brush: np.ndarray | None = None,
        num_frames: int | None = None,
        fps: int = 8,
        motion_bucket_id: float | None = None,
        noise_aug_strength: float = INFERENCE_SIGMA_AUG,
        num_inference_steps: int | None = None,
        min_guidance_scale: float | None = None,
        max_guidance_scale: float | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Generate one clip.

        Args:
            image: First frame, (H, W, 3) uint8 or a PIL image; height and width multiples of 64.
            tracks: Drawn tracks, each (n, 2) points x, y in pixels, the first where the motion starts.
            brush: (H, W), non-zero where things may move; all ones is camera motion, None the drawn regions alone.
            num_frames: Length L of the clip; by default what the checkpoint was trained for, or 16.
            fps: Frames per second, passed as it is (the released code; diffusers' own pipeline passes fps - 1).
            motion_bucket_id: Mean displacement in pixels; by default the checkpoint's, or 17 as on WebVid (SVD's own
                default 127 is another scale).
            noise_aug_strength: Standard deviation of the noise on the first frame.
            num_inference_steps: Euler steps; by default the module's, as for its guidance.
            min_guidance_scale: Guidance of the first frame.
            max_guidance_scale: Guidance of the last frame.
            seed: The same seed gives the same clip.

        Returns:
            (L, H, W, 3) uint8 frames.

        Raises:
            ValueError: the image's size, a track or the brush does not fit.
        """
        module = self.module
        num_frames = self.sampling["num_frames"] if num_frames is None else num_frames
        motion_bucket_id = self.sampling["motion_bucket_id"] if motion_bucket_id is None else motion_bucket_id
        steps = module.sample_steps if num_inference_steps is None else num_inference_steps
        drawn = (min_guidance_scale, max_guidance_scale)
        guidance = tuple(own if given is None else given for given, own in zip(drawn, module.guidance, strict=True))
        frame = torch.from_numpy(np.array(image)).to(module.device)
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != torch.uint8:
            raise ValueError(f"image is {tuple(frame.shape)} {frame.dtype}, expected (height, width, 3) uint8 (RGB)")
        height, width = frame.shape[:2]
        record.check_size(module.condition, height, width)
        control = module.condition.draw(tracks, brush, num_frames, height, width)
        first = frame.permute(2, 0, 1)[None]
        noise = randn([seed], first.shape[1:], module.device)
        values = {"fps": fps, "motion_bucket_id": motion_bucket_id, "sigma_aug": noise_aug_strength}
        ids = {name: torch.tensor([float(value)], device=module.device) for name, value in values.items()}
        with module.autocast():
            cond = from_first_frame(module.svd, first, control[None].to(module.device), ids, noise)
            shape = (num_frames, module.svd.latent_channels, *cond.image_latent.shape[2:])
            noise = randn([seed + 1], shape, module.device)
            video = module.networks.generate(cond, noise, steps, guidance, sigma_max=module.sample_sigma_max)
        if not video.isfinite().all():
            raise ValueError("the generated video holds NaN or infinite values")
        return to_uint8(video[0]).permute(0, 2, 3, 1).cpu().numpy()
