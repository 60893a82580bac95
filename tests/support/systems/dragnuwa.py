"""DragNUWA's sets: networks (`latent_hw` in the configuration) and controls (`cases`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from conditions.dragnuwa import spread
from lightning_modules.bases.svd.network import conditioning
from lightning_modules.process.edm import karras_sigmas
from lightning_modules.process.sampler import euler_sample
from lightning_modules.released import Network, build, take_apart
from lightning_modules.released.names import matched
from lightning_modules.systems.dragnuwa import Drags, released_drags
from tests.support import frequencies
from tests.support.systems import RecordedSet

PREFIX = "model.diffusion_model."
TOLERANCES = {r".*/out\.sampled\.float32_sigmas": 1e-5}
LEFT_OUT = {r".*/in\..*": "an input"}


def outputs(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    yield from (controls if "cases" in recorded.spec else networks)(recorded)


def network(recorded: RecordedSet) -> Network:
    """Through the checks that a released file passes."""
    built = build(take_apart(recorded.part(PREFIX), recorded.config["num_head_channels"]), torch.float64)
    frequencies.apply(built.unet)
    return built


def networks(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    net, layers = network(recorded), recorded.config["num_res_blocks"] + 1
    drag = recorded.input("in.drag")
    drag[:, 0] = 0
    latent, sigma, ids = (recorded.input(f"in.{name}") for name in ("image_latent", "sigma", "ids"))
    token, tokens = recorded.input("in.image_embedding"), recorded.input("in.image_embedding2")
    noisy = recorded.input("in.noisy")

    def predicted(context: Tensor) -> Tensor:
        return net.denoiser.network(noisy, 0.25 * sigma.log(), conditioning(latent, context, ids))

    features = net.motion_encoder(drag)
    yield from ((f"out.flow_feature.{i}", feature.flatten(0, 1)) for i, feature in enumerate(features))
    net.injection.set(features)
    inside, hooks = {}, []
    for name in recorded.outputs:
        if "_blocks." in name:
            _, what, side, number = matched(r"(out)\.(\w+)\.(input|output)_blocks\.(\d+)", name).groups()
            level = (int(number) - (side == "input")) // layers
            block = (net.unet.down_blocks if side == "input" else net.unet.up_blocks)[level].resnets[0]
            module = block.spatial_res_block.conv1 if what == "before_modulation" else block
            keep = lambda _, inputs, output, name=name: inside.setdefault(name, output.clone()) * 0 + output  # noqa: E731
            hooks.append(module.register_forward_hook(keep, prepend=True))
    yield "out.unet", predicted(token)
    yield from inside.items()
    for hook in hooks:
        hook.remove()
    yield "out.unet.two_tokens", predicted(tokens)
    net.injection.set(net.motion_encoder(torch.zeros_like(drag)))
    yield "out.unet.zero_drag", predicted(token)
    net.injection.set(net.motion_encoder(drag[:1]))
    first = conditioning(latent[:1], token[:1], ids[:1])
    yield "out.denoised", net.denoiser(recorded.input("in.noisy_denoiser")[None], sigma[:1], first)[0]
    steps, noise = recorded.config["steps"], recorded.input("in.noise")[None]
    exact, rounded = karras_sigmas(steps, dtype=torch.float64), float32_sigmas(steps)
    for name, sigmas in (("out.sampled", exact), ("out.sampled.float32_sigmas", rounded)):
        yield name, euler_sample(net.denoiser, noise, first, guidance=(1.0, 2.5), sigmas=sigmas)[0]


def float32_sigmas(steps: int) -> Tensor:
    """`karras_sigmas` with every operation rounded to float32, as the release computes them."""
    low, high = 0.002 ** (1 / 7), 700.0 ** (1 / 7)
    return torch.cat([(high + torch.linspace(0, 1, steps) * (low - high)) ** 7, torch.zeros(1)]).double()


def controls(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    for name, case in recorded.spec["cases"].items():
        size = case["height"], case["width"]
        found = released_drags(case["tracks"], case["canvas_wh"][::-1], size, case["frames"])
        frame, point = found.step.any(-1).nonzero(as_tuple=True)
        x, y = found.at[frame, point].unbind(-1)
        order = ((frame * size[0] + y) * size[1] + x).argsort()
        yield f"{name}.sparse_at", torch.stack([frame, y, x], -1)[order]
        yield f"{name}.sparse", found.step[frame, point][order]
        yield f"{name}.filtered", spread(Drags(found.at, found.step.double()), *size)
