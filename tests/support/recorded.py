"""What the shipped configurations compute at small size, in float64: recorded once, compared at 1e-9.

    python -m tests.support.recorded    # writes tests/fixtures/configurations.safetensors anew

A change that is not meant to change arithmetic leaves the file as it is. Float32 draws, `exp` and `cos` differ by CPU,
so noise, noise levels, sinusoidal frequencies and weights are inputs here, by rules of integers and float64. Of a
gradient a few values and the largest are kept, of a sample every seventh pixel.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch
from diffusers.models.embeddings import Timesteps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules import MotionControlModule, video_module
from lightning_modules.bases import Sprites
from lightning_modules.conditioning import to_float
from remoco import configs
from remoco.training import Unstarted
from tests.support.parity import FIXTURES, procedural

FILE = FIXTURES / "configurations.safetensors"
CLIPS, FRAMES, SIDE = 2, 4, 64  # clips in the batch, frames a clip, pixels a side
KEPT, STRIDE = 3, 7  # values kept of a gradient, pixels between those kept of a sample: no multiple of a patch
ZERO = 1e-12  # of the largest gradient: those below are zero but for rounding, as a bias's before a norm
SIGMA, SIGMA_AUG = (0.7, 9.0), (0.04, 0.07)  # noise levels of the two clips
SEED = 5

TINY = ["--model.init_args.base=lightning_modules.bases.Sprites", "--model.init_args.base.init_args.size=tiny"]
TINY += ["--model.init_args.base.init_args.latents=vae", "--data=datamodules.SpritesDataModule"]
TINY += ["--model.init_args.sampling.steps=4"]  # a random network makes more of its rounding at every step
CASES = {
    "quickstart": ["quickstart.yaml"],
    "sprites": ["sprites.yaml"],
    "sprites_base": ["sprites_base.yaml"],
    "sprites_lora": ["sprites_lora.yaml"],
    "remoco_svd": ["remoco_svd.yaml", *TINY],
    "motionpro_bundle": ["remoco_svd.yaml", "motionpro_released.yaml", *TINY, "--model.init_args.start=null"],
    "no_mask": ["remoco_svd.yaml", "experiment/condition_no_mask.yaml", *TINY],
    "concat": ["quickstart.yaml", "experiment/injection_concat.yaml"],
    "add": ["quickstart.yaml", "experiment/injection_add.yaml"],
}
"""Name -> files of `configs/`, and overrides that make it small."""

COMPONENTS = ("unet", "vae", "image_encoder", "pca")


class Sinusoids(nn.Module):
    """diffusers' `Timesteps` in float64: frequencies, cosines and sines are the same on every machine."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.frequencies = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(N,) -> (N, channels), cosines first."""
        angles = timesteps[:, None].double() * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def build(case: str) -> MotionControlModule:
    """The module of a configuration in float64, with weights by rule; the base in the package keeps its own."""
    words = ["fit"]
    for word in CASES[case]:
        words += ["--config", f"configs/{word}"] if word.endswith(".yaml") else [word]
    module = Unstarted(configs.resolved(words)).model
    module.configure_model(torch.float64)
    module.double()
    trained = module.trained()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and (name in trained or isinstance(module.base, Sprites)):
            with torch.no_grad():
                tensor.copy_(_weight(name, tensor))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Timesteps):
                hooks = child._forward_hooks
                setattr(parent, name, Sinusoids(child.num_channels))
                getattr(parent, name)._forward_hooks = hooks
    return module


def _weight(name: str, tensor: Tensor) -> Tensor:
    """By the rule of the public parity sets, from the name of the component and the name inside of it."""
    inside = canonical(name)
    if inside.startswith("pca."):  # `scale` divides
        weight = procedural(SEED, inside, list(tensor.shape))
        return torch.from_numpy(np.abs(weight) + 0.5 if inside.endswith("scale") else weight).double()
    return torch.from_numpy(procedural(SEED, inside, list(tensor.shape))).double()


def canonical(name: str) -> str:
    """A weight's name without what the module calls its parts: `unet.conv_in.weight`, `injection...`."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part in COMPONENTS), 0)
    return ".".join(parts[place:]).replace("injections.0.", "injection.")


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(f"{SEED}:{name}".encode())).random_sample(shape)


def normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """About standard normal, by sums alone: twelve uniform numbers less six."""
    return torch.from_numpy(_uniform(name, (12, *shape)).sum(0) - 6.0)


def batch() -> dict:
    """Two clips whose flow, mask and visibility have structure and whose pixels are noise, all exact in float32."""
    shape = (CLIPS, FRAMES, SIDE, SIDE)
    video = torch.from_numpy((_uniform("video", (CLIPS, FRAMES, 3, SIDE, SIDE)) * 256).astype(np.uint8))
    flow = np.round(_uniform("flow", (CLIPS, FRAMES, 2, SIDE // 16, SIDE // 16)) * 256 - 128) / 16
    flow = torch.from_numpy(flow.astype(np.float32)).repeat_interleave(16, 3).repeat_interleave(16, 4)
    flow[:, 0] = 0
    visibility = torch.from_numpy(_uniform("visibility", shape) > 0.02)
    visibility[:, 0] = True
    moving = torch.from_numpy(_uniform("moving", (CLIPS, 2, SIDE // 8, SIDE // 8)) > 0.4)
    return {
        "video": to_float(video, torch.float64),
        "first_frame": to_float(video[:, 0], torch.float64),
        "flow": flow,
        "visibility": visibility,
        "moving": moving.repeat_interleave(8, 2).repeat_interleave(8, 3),
        "motion_bucket": torch.tensor([3.25, 17.5]),
        "fps": torch.tensor([8.0, 7.0]),
        "position": torch.tensor([11, 12]),
        "key": ["first", "second"],
    }


@contextmanager
def inputs(module: MotionControlModule) -> Iterator[None]:
    """Noise and noise levels by rule in place of the product's draws."""

    def levels(log_mean: float) -> Tensor:
        return torch.tensor(SIGMA_AUG if log_mean == -3.0 else SIGMA, dtype=torch.float64)

    with ExitStack() as stack:
        for change in (
            patch.object(module, "draw_noise", lambda batch, stream, shape: normal(f"noise {stream}", (CLIPS, *shape))),
            patch.object(video_module, "sample_sigma", lambda seeds, mean, std, device, within=None: levels(mean)),
            patch.object(
                video_module, "spread_sigma", lambda positions, offset, mean, std, device, within=None: levels(mean)
            ),
        ):
            stack.enter_context(change)
        yield


def outputs(case: str) -> dict[str, Tensor]:
    """What is recorded of a configuration: control, loss, gradients, a denoised clip and a sample."""
    module, clips = build(case), batch()
    with inputs(module), patch.object(module, "log", lambda *args, **options: None):
        out = {"control": module.draw_control(clips).double()[..., ::STRIDE, ::STRIDE]}
        loss = module.training_step(clips, 0)
        loss.backward()
        out["loss"] = loss.detach()
        out |= {
            "denoised": _thinned(module.denoise_once(clips, 2.0)),
            "sample": _thinned(module.sample(clips, module.draw_control(clips))),
        }
    gradients = {f"gradient {canonical(name)}": _some(name, p.grad) for name, p in module.optimized().items()}
    bound = ZERO * max(gradient[0] for gradient in gradients.values())
    out |= {name: gradient if gradient[0] > bound else 0 * gradient for name, gradient in gradients.items()}
    return {name: tensor.double().contiguous() for name, tensor in out.items()}


def _thinned(video: Tensor) -> Tensor:
    return video[..., ::STRIDE, ::STRIDE]


def _some(name: str, gradient: Tensor) -> Tensor:
    """The largest size of a gradient, then values at places drawn by its name."""
    flat = gradient.flatten()
    places = (_uniform(f"places {canonical(name)}", (KEPT,)) * len(flat)).astype(np.int64)
    return torch.cat([flat.abs().max()[None], flat[torch.from_numpy(places)]])


def recorded() -> dict[str, dict[str, Tensor]]:
    """Case -> its outputs, as committed."""
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(FILE, "pt") as file:
        names = json.loads(file.metadata()["names"])
        for case, tensors in names.items():
            gradients = [name for name in tensors if name.startswith("gradient ")]
            found[case] = {name: file.get_tensor(f"{case} {name}") for name in tensors if name not in gradients}
            found[case] |= dict(zip(gradients, file.get_tensor(f"{case} gradients"), strict=True))
    return found


def main() -> None:
    """Record every case."""
    tensors, names = {}, {}
    for case in CASES:
        found = outputs(case)
        gradients = [name for name in found if name.startswith("gradient ")]
        names[case] = list(found)
        tensors |= {f"{case} {name}": found[name] for name in found if name not in gradients}
        tensors[f"{case} gradients"] = torch.stack([found[name] for name in gradients])
        print(f"{case}: loss {found['loss'].item():.12g}, {len(gradients)} gradients")
    save_file(tensors, FILE, {"names": json.dumps(names)})


if __name__ == "__main__":
    main()
