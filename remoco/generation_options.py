"""The options of the pipeline's call that the flags of `remoco generate` stand for."""

from __future__ import annotations

from typing import Any

from lightning_modules.bases.said import NEGATIVE, PROMPT
from lightning_modules.longer import Plan, planned
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.pipeline_call import base_inputs
from remoco.common.errors import UserError
from remoco.common.ranges import within
from remoco.generate import MOST_FRAMES, Clip, SamplingChanges


def options_of(pipe: MotionControlPipeline, clip: Clip, sampling: SamplingChanges) -> tuple[dict[str, Any], int]:
    """Options of the pipeline's call, those that are given, else the checkpoint's; and how many parts a clip has.

    Raises:
        UserError: the base has no such input, the checkpoint's length is none, or the clip cannot be made so.
    """
    usual = pipe.module.sampling
    scales = [
        own if scale is None else scale
        for scale, own in zip((sampling.min_guidance_scale, sampling.max_guidance_scale), usual.guidance, strict=True)
    ]
    plan = plan_of(pipe, clip)
    inputs: dict[str, Any] = {}
    for name in ("motion_bucket_id", PROMPT, NEGATIVE):
        try:
            inputs |= base_inputs(pipe.module.base.inputs(), usual.inputs, {name: getattr(sampling, name)})
        except UserError as error:
            raise UserError(f"--{name.replace('_', '-')}: {error}") from None
    if sampling.guidance_scale_2 is not None and pipe.module.base.stages == 1:
        raise UserError("--guidance-scale-2: this base has no second expert, expected none")
    rare = {name: getattr(sampling, name) for name in (PROMPT, NEGATIVE, "guidance_scale_2")}
    rare |= {"longer": clip.longer, "overlap": clip.overlap}
    options = {name: value for name, value in rare.items() if value is not None} | {
        "num_frames": plan.frames,
        "num_inference_steps": usual.steps if sampling.steps is None else sampling.steps,
        "min_guidance_scale": scales[0],
        "max_guidance_scale": scales[1],
        "motion_bucket_id": inputs.get("motion_bucket_id"),
        "fps": clip.fps,
    }
    return options, len(plan.starts)


def plan_of(pipe: MotionControlPipeline, clip: Clip) -> Plan:
    """How clips are made, of the length that is named, else the checkpoint's.

    Raises:
        UserError: the checkpoint's length is none, or the clip cannot be made so.
    """
    frames = pipe.sampling["num_frames"] if clip.num_frames is None else clip.num_frames
    within("--num-frames", frames, 2, MOST_FRAMES, whole=True)
    try:
        return planned(pipe.module.base, pipe.sampling["num_frames"], frames, clip.longer, clip.overlap)
    except UserError as error:
        raise UserError(f"--longer {clip.longer}: {error}") from None
