"""Keys of earlier configurations, and where each is now: an old YAML or option is one line that says so."""

from __future__ import annotations

import re

BASE = "base.init_args"
MOVED = {
    "svd": f"{BASE}.path of lightning_modules.bases.SVD", "revision": f"{BASE}.revision",
    "random_init": f"{BASE}.size of lightning_modules.bases.Sprites", "init_seed": f"{BASE}.init_seed",
    "latents": f"{BASE}.latents", "pca_channels": f"{BASE}.components", "train_base": f"{BASE}.trained",
    "gradient_checkpointing": f"{BASE}.recompute", "vae_precision": f"{BASE}.vae_precision",
    "injection": "control.injection, a list", "lora": "control.lora", "lora_rank": "control.rank",
    "flow_scale": "control.flow_scale", "p_mean": "noise.mean", "p_std": "noise.std", "spread_sigmas": "noise.spread",
    "dropout": "noise.dropout", "compile_unet": "speed.compile", "decode_chunk": "speed.decode_chunk",
    "sample_graph": "speed.sample_graph", "sample_steps": "sampling.steps", "sample_sigma_max": "sampling.sigma_max",
    "guidance": "sampling.guidance", "motion_bucket_id": "sampling.inputs.motion_bucket_id",
    "released": "start: {kind: motionpro, file: FILE}", "adapter": "start: {kind: adapter or checkpoint, file: FILE}",
}  # fmt: skip
"""Argument of `model` before -> where it is below `model.init_args`."""

TOP = {
    "learning_rate": "optimizer.init_args.lr", "weight_decay": "optimizer.init_args.weight_decay",
    "schedule": "lr_scheduler of class lightning_modules.WarmupDecay (its betas: optimizer.init_args.betas)",
}  # fmt: skip
"""Argument of `model` before -> what stands beside `model` now."""

PARTS = {"SampleLogger": "samples", "VideoMetrics": "metrics", "ControlErrors": "control_errors"}
"""Callback before -> what it is of callbacks.Evaluation now; their `every_n_validations` is the evaluation's own."""


def moved(message: str) -> str:
    """What a parser's error about an option that it does not know gains: nothing, or where the option went."""
    if part := re.search(r"callbacks(?:\.|' has no attribute ')(SampleLogger|VideoMetrics|ControlErrors)\b", message):
        return f"; it is callbacks.Evaluation with init_args.{PARTS[part[1]]} now"
    match = re.search(r"[Oo]ption '(\w+)(?:\.[\w.]+)?' is not accepted(?!;)", message)
    if "callbacks" in message or 'key "data"' in message:  # another class's option of that name
        return ""
    if match and match[1] in TOP:
        return f"; it is {TOP[match[1]]} now, beside model"
    return f"; it is model.init_args.{MOVED[match[1]]} now" if match and match[1] in MOVED else ""
