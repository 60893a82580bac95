"""What a pipeline holds, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lightning_modules.bases.said import class_path

if TYPE_CHECKING:
    from lightning_modules.pipeline import MotionControlPipeline


def described(pipeline: MotionControlPipeline) -> str:
    """The base and its networks, the control, the sampler and the LoRA files, a line each."""
    module, base = pipeline.module, pipeline.module.base
    record = base.record()
    named = ", ".join(f"{name}={value!r}" for name, value in record["init_args"].items() if value is not None)
    networks = ", ".join(f"{name} {_size(part)}" for name, part in base.named_children())
    control, sampling = module.control, module.sampling
    lora = f", LoRA of rank {control.rank} in {control.lora} layers" if control.lora else ""
    trained = sum(p.numel() for p in module.trained().values())
    condition = module.condition.record()
    settings = ", ".join(f"{name}={value!r}" for name, value in condition["init_args"].items())
    height, width = pipeline.trained_size
    inputs = ", ".join(f"{name} {value}" for name, value in pipeline.usual_inputs().items() if value != "")
    low, high = sampling.guidance
    second = "" if sampling.guidance_2 is None else ", of low noise {:g} to {:g}".format(*sampling.guidance_2)
    lines = {
        "base": f"{class_path(type(base)).rpartition('.')[2]}({named})",
        "networks": networks,
        "control": f"{', '.join(control.injection) or 'none'}{lora}; {_millions(trained)} trained parameters",
        "condition": f"{condition['class_path']}({settings})",
        "sampler": f"{type(module.process).__name__}, {sampling.steps} steps, guidance {low:g} to {high:g}{second}",
        "clips": f"{pipeline.sampling['num_frames']} frames of {height} x {width}{f'; {inputs}' if inputs else ''}",
        "computes": f"{str(pipeline.dtype).removeprefix('torch.')} on {pipeline.device}",
    }
    if pipeline.lora_files.files:
        active = pipeline.lora_files.active
        shown = [
            f"{name} x {active[name]:g}" if name in active else f"{name} (off)" for name in pipeline.lora_files.files
        ]
        lines["LoRA files"] = ", ".join(shown)
    return "\n".join([f"{type(pipeline).__name__}("] + [f"  {name}: {text}" for name, text in lines.items()] + [")"])


def _size(network: nn.Module) -> str:
    """Class and number of values; components of patches are buffers."""
    values = sum(tensor.numel() for tensor in network.state_dict().values())
    return f"{type(network).__name__} of {_millions(values)}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}"
