"""Wan 2.2 A14B with tiny networks: a module over it, and the velocity by diffusers' own transformer."""

from __future__ import annotations

import torch
from diffusers import WanImageToVideoPipeline

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.config import Control, Noise
from tests.support.modules import draw

SIZE, EXPERTS = "tiny_a14b", {"high": "transformer", "low": "transformer_2"}
FRAMES, HEIGHT, WIDTH = 9, 32, 48


def module(base, kinds=(), lora="linear", dtype=torch.float64, **settings):
    made = MotionControlModule(
        base, RegionWise(min_mask_ratio=0.5), Control([*kinds], lora, 2), **{"noise": Noise(dropout=0), **settings}
    )
    made.configure_model(dtype)
    made.log = lambda *args, **kwargs: None
    return made


def pipeline(folder):
    """diffusers' pipeline over a folder, in float64."""
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    for name in (*EXPERTS.values(), "vae", "text_encoder"):
        torch.nn.Module.to(getattr(pipe, name), torch.float64)
    assert pipe.config.boundary_ratio == 0.9 and pipe.image_encoder is None
    return pipe


def first_frame(batch=1):
    return draw(batch, 3, HEIGHT, WIDTH, seed=1).tanh()


def conditioned(base, **more):
    return base.condition({"first_frame": first_frame(), "frames": FRAMES, **more}, {}, None)


def velocity(net, x, t, cond, text):
    """diffusers' network, as its pipeline calls it."""
    inputs = torch.cat([x.transpose(1, 2), cond.parts["y"].transpose(1, 2)], 1)
    return net(inputs, 1000 * t.expand(len(x)), text, None, return_dict=False)[0].transpose(1, 2)


# Folders
