"""Sinusoidal frequencies: the product's are diffusers', those of recordings are in `tests/support/frequencies.py`."""

import math

import torch
from diffusers.models.embeddings import Timesteps

from lightning_modules.released import build, load_released
from tests.support import frequencies

TIMES = torch.tensor([8.0, 0.02])


def test_the_product_computes_them_plainly_and_a_recording_has_its_own(released_file):
    unet = build(load_released(released_file)).unet
    layers = [layer for layer in unet.modules() if isinstance(layer, Timesteps)]
    assert layers and {type(layer) for layer in layers} == {Timesteps}
    plain, names = [layer(TIMES) for layer in layers], list(unet.state_dict())
    frequencies.apply(unet)
    assert list(unet.state_dict()) == names
    expected = []
    for layer in layers:
        angles = TIMES[:, None] * frequencies.recorded(layer.num_channels // 2)
        expected.append(torch.cat([angles.cos(), angles.sin()], dim=-1))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.nn.Module.to(unet, dtype)
        assert all(torch.equal(layer(TIMES), there) for layer, there in zip(layers, expected, strict=True))
    for before, there in zip(plain, expected, strict=True):
        assert (before - there).abs().max() < 1e-5  # one unit in the last place of a frequency


def test_recorded_ones_are_exp_rounded_once_but_for_those_rounded_up():
    """By Python's own exp, in float64."""
    found = frequencies.recorded(160)
    exact = [math.exp(float(each)) for each in -math.log(10000) * torch.arange(160, dtype=torch.float32) / 160]
    nearest = torch.tensor(exact, dtype=torch.float64).float()
    up = found != nearest
    assert torch.equal(found[up], nearest[up].nextafter(torch.tensor(1.0)))
    assert int(up.sum()) == 3  # of 160; other widths have the other four
