"""Modules and denoisers in few words, for tests."""

import torch
from torch import Tensor

from conditions import RegionWise
from lightning_modules import BaseModule, MotionControlModule
from lightning_modules.bases import SVD, Sprites
from lightning_modules.bases.svd.network import Network, conditioning, lora_targets, places
from lightning_modules.config import Control, Noise, Sampling, Speed, Start
from lightning_modules.control.injection import attach
from lightning_modules.control.lora import add_lora
from lightning_modules.optimizer import OURS, Plan, adamw
from lightning_modules.process.base import Denoiser
from lightning_modules.process.edm import EDM
from lightning_modules.process.sampler import euler_sample

GROUPS = {
    "control": (Control, ("injection", "lora", "rank", "flow_scale")),
    "noise": (Noise, ("mean", "std", "spread", "dropout")),
    "sampling": (Sampling, ("steps", "sigma_max", "guidance", "inputs")),
    "speed": (Speed, ("compile", "decode_chunk", "sample_graph")),
}
BASE = ("trained", "vae_precision", "recompute")
RATES = ("lr", "betas", "weight_decay", "warmup_steps", "decay")
RANDOM = ("size", "init_seed", "latents", "components")


def plan(warmup_steps=0, decay=0.0, **adam) -> Plan:
    """AdamW with these arguments, under a rate that warms up and decays where it says so."""
    schedule = {"class_path": OURS, "init_args": {"warmup_steps": warmup_steps, "decay": decay}}
    return Plan(adamw(**adam), schedule if warmup_steps or decay else None)


def motion_control(condition=None, path=None, start=None, kind=MotionControlModule, **flat):
    """A module from the fields of its base and settings by their own names: over random weights, or those at a path.

    Args:
        condition: RegionWise by default.
        path: Of SVD.
        start: (kind, file).
        kind: Of module.
        **flat: The rest.
    """
    named = {name: flat.pop(name) for name in BASE if name in flat}
    random = {name: flat.pop(name) for name in RANDOM if name in flat}
    motionpro = start is not None and start[0] == "motionpro"
    base = SVD(path, **named) if path or motionpro else Sprites(**{"latents": "vae", **random, **named})
    settings = {
        group: cls(**{name: flat.pop(name) for name in names if name in flat}) for group, (cls, names) in GROUPS.items()
    }
    if kind is BaseModule:
        settings.pop("control")
    more = {} if start is None else {"start": Start(start[0], str(start[1]))}
    rates = {name: flat.pop(name) for name in RATES if name in flat}
    module = kind(base, condition or RegionWise(), **settings, **more, **flat)
    module.plan = plan(**rates)
    return module


class OfTensors:
    """A base's denoiser that takes image latent, image embedding, ids and keep, as the released code's does.

    Args:
        base: Or its UNet, or a denoiser.
    """

    def __init__(self, base):
        base = base if hasattr(base, "predict") or isinstance(base, Denoiser) else Network(base)
        self.denoiser = base if isinstance(base, Denoiser) else Denoiser(base, EDM())

    def __call__(self, noisy: Tensor, sigma: Tensor, *parts: Tensor) -> Tensor:
        return self.denoiser(noisy, sigma, conditioning(*parts))

    def network(self, noisy: Tensor, time: Tensor, *parts: Tensor) -> Tensor:
        return self.denoiser.network(noisy, time, conditioning(*parts))

    def sample(self, noise: Tensor, *parts: Tensor, **options: object) -> Tensor:
        return euler_sample(self.denoiser, noise, conditioning(*parts), **options)


def attached(unet, kind="modulation", seed=0):
    """An injection at the places of a UNet."""
    return attach(places(unet), unet.config.block_out_channels, kind, seed)


def with_lora(unet, targets, rank, seed=0):
    """LoRA in a UNet."""
    add_lora(unet, lora_targets(unet, targets), rank, seed)


def random_svd(size="tiny", seed=0, latents="vae", dtype=torch.float32, **more):
    """A built base of random weights."""
    return Sprites(size, seed, latents, **more).build(dtype)
