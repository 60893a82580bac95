"""The same network, training and sampling as three people would write them: what `against.py` compares.

Each side has the same weights, drawn from one seed. `bare` is diffusers' network alone, frozen. `with_peft` adds peft's
LoRA, and the modulation in plain hooks. `ours` is the module that the recipes train.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import harness  # noqa: F401  # the checkout on the path
import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomCogVideoX, RandomWan, Sprites
from lightning_modules.bases.cogvideox.random import SIZES as COGVIDEOX
from lightning_modules.bases.sprites.sizes import SIZES as SVD
from lightning_modules.bases.sprites.sizes import _size
from lightning_modules.bases.svd.network import IDS, conditioning
from lightning_modules.bases.svd.norms import set_res_block_eps
from lightning_modules.bases.wan.random import SIZES as WAN
from lightning_modules.conditioning import Conditioning
from lightning_modules.config import Control, Noise
from lightning_modules.control.injection import Modulation
from lightning_modules.control.lora import lora_layers, merged_lora
from lightning_modules.layers import TemporalConv, seeded
from lightning_modules.process.base import Denoiser
from lightning_modules.process.sampler import euler_sample

# SVD's topology at 0.3 of its width: group norms have 32 groups, so a quarter, 80 channels, is no width of it
SVD["quarter"] = _size(
    (96, 192, 384, 384), 2, (3, 6, 12, 12), 320, 256, (32, 32, 32, 32),
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
     "patch_size": 8},
)  # fmt: skip
# the 5B models at a quarter of their widths with all blocks: with fewer, the motion encoder's share would be larger
WAN["quarter"] = {
    "transformer": {
        "num_attention_heads": 6, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48, "text_dim": 1024,
        "freq_dim": 256, "ffn_dim": 3584, "num_layers": 30,
    },
    "vae": {**WAN["tiny_ti2v"]["vae"], "z_dim": 48, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
}  # fmt: skip
COGVIDEOX["quarter"] = {
    "transformer": {
        **COGVIDEOX["i2v_5b"]["transformer"], "num_attention_heads": 12, "text_embed_dim": 1024,
    },
    "vae": {**COGVIDEOX["tiny_i2v"]["vae"], "latent_channels": 16},
}  # fmt: skip
TINY = {"svd": "tiny", "wan": "tiny_ti2v", "cogvideox": "tiny_i2v"}
RANK = {
    "svd": 10,
    "wan": 8,
    "cogvideox": 8,
}  # 32 of the full width: what LoRA takes beside a layer goes by rank over width
AWAKE = 0.02  # deviation of what is added to the trained weights, most of which are zero at the start


class Case(NamedTuple):
    """What is compared: a base, its size, one clip, and where LoRA is."""

    base: str = "svd"
    size: str = "quarter"
    frames: int = 8  # of SVD; the others have that many halved, times four, and one
    height: int = 160
    width: int = 256
    lora: str = "attention"

    def module(self, dtype: torch.dtype, recompute: str = "none") -> MotionControlModule:
        """Ours, with all weights away from zero."""
        size = TINY[self.base] if self.size == "tiny" else self.size
        made: Any = {
            "svd": lambda: Sprites(size, latents="vae", recompute=recompute),
            "wan": lambda: RandomWan(size, recompute=recompute),
            "cogvideox": lambda: RandomCogVideoX(size, recompute=recompute),
        }
        if self.base == "cogvideox":  # which knows one clip
            sides = {"sample_height": self.height // 8, "sample_width": self.width // 8}
            COGVIDEOX[size]["transformer"].update(sides, sample_frames=self.length)
        control = Control(lora=self.lora, rank=4 if self.size == "tiny" else RANK[self.base])
        module = MotionControlModule(made[self.base](), RegionWise(), control, noise=Noise())
        module.configure_model(dtype)
        with torch.no_grad(), seeded(1):
            for parameter in module.trained().values():
                parameter += AWAKE * torch.randn(parameter.shape)
        return module.double() if dtype == torch.float64 else module

    @property
    def length(self) -> int:
        """Frames of the clip."""
        return self.frames if self.base == "svd" else 4 * (self.frames // 2) + 1

    def inputs(self, module: MotionControlModule) -> Inputs:
        """Random ones of the module's shapes."""
        base, dtype = module.base, module.base.arithmetic()
        latents, (h, w) = base.grid.latents(self.length), base.grid.size(self.height, self.width)
        with seeded(2):
            clean, noise = (torch.randn(1, latents, base.channels, h, w) for _ in range(2))
            control = 5 * torch.randn(1, self.length, 3, self.height, self.width)
            if self.base == "svd":
                token = torch.randn(1, 1, base.unet.config.cross_attention_dim)
                cond = conditioning(torch.randn(1, base.channels, h, w), token, torch.tensor([[8.0, 17.0, 0.02]]))
            else:
                config = base.transformer.config
                n, width = (512, config.text_dim) if self.base == "wan" else base.empty.shape
                texts = {name: torch.randn(1, n, width) for name in ("text", "negative_text")}
                first = {"first": torch.randn(1, 1, base.channels, h, w)}
                cond = Conditioning({**texts, **first}, given=int(self.base == "wan"))
        sigma = torch.full((1,), 2.0, dtype=dtype)
        cond = Conditioning({name: part.to(dtype) for name, part in cond.parts.items()}, given=cond.given)
        return Inputs(clean.to(dtype), noise.to(dtype), sigma, control.to(dtype), cond)


class Inputs(NamedTuple):
    """What all sides are given."""

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    control: Tensor
    cond: Conditioning


@dataclass
class Side:
    """One way of computing it.

    Attributes:
        module: Ours, for its process and its base's rules.
        predict: As `VideoBase.predict`.
        trained: Our name of a parameter -> the side's own; none for a frozen network.
        steer: Takes the control before the network runs.
        context: Around all that is computed, as autocast.
        sampling: Around a sampler's steps, as merged LoRA.
    """

    module: MotionControlModule
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor]
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    steer: Callable[[Tensor], Any] = lambda control: None
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    sampling: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    def __post_init__(self) -> None:
        self.process, self.unconditional = self.module.process, self.module.base.unconditional
        self.denoiser = Denoiser(self, self.process)
        del self.module  # what is measured holds one network
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-5) if self.trained else None

    def backward(self, given: Inputs) -> Tensor:
        """The loss, with its gradients; of a frozen network that of its input, which a controller's needs as well."""
        noisy = self.process.mix(given.clean, given.noise, given.sigma).requires_grad_(not self.trained)
        with self.context():
            self.steer(given.control)
            denoised = self.denoiser(noisy, given.sigma, given.cond)
        loss = self.process.loss(denoised, given.clean, given.sigma)[:, given.cond.given :].mean()
        loss.backward()
        return loss.detach()

    def step(self, given: Inputs) -> Tensor:
        """A training step."""
        loss = self.backward(given)
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    @torch.no_grad()
    def sample(self, given: Inputs, steps: int) -> Tensor:
        """Latents of a guided sampling run."""
        with self.context(), self.sampling():
            self.steer(given.control)
            return euler_sample(self.denoiser, given.noise, given.cond, steps)


def ours(case: Case, dtype: torch.dtype, recompute: str = "none") -> Side:
    """The module of a recipe; its sampler merges LoRA."""
    module = case.module(dtype, recompute)
    network = next(iter(module.base.denoisers().values()))
    names = {id(p): name for name, p in shared_names(module).items()}
    trained: Any = {names[id(p)]: p for p in module.optimized().values()}
    # without its `steer` the base alone would be held
    steer, base = (lambda control: module.steer(Conditioning({}, control=control))), module.base
    return Side(module, base.predict, trained, steer, module.autocast, lambda: merged_lora(network))


def shared_names(module: MotionControlModule) -> dict[str, nn.Parameter]:
    """`network.X`, `encoder.X`, `injection.X` -> parameter of our module: names that do not depend on the base."""
    parts = {
        "network": next(iter(module.base.denoisers().values())),
        "encoder": module.motion_encoder,
        "injection": module.injections[0],
    }
    trained = {id(p) for p in module.trained().values()}
    return {
        f"{part}.{name}": p for part, m in parts.items() for name, p in m.named_parameters() if id(p) in trained
    }  # fmt: skip


def bare(case: Case, dtype: torch.dtype) -> Side:
    """diffusers' own network, frozen: what no controller is cheaper than."""
    module = case.module(dtype)
    return Side(module, caller(case, module, stock(case, module, with_lora=False)))


def stock(case: Case, module: MotionControlModule, with_lora: bool) -> Any:
    """diffusers' network with our module's weights, and with the LoRA that peft makes of the same layers."""
    network: Any = next(iter(module.base.denoisers().values()))
    layers, dtype = list(lora_layers(network)), next(network.parameters()).dtype
    # the class that a swap of ours came from is diffusers' own, and so are all that it makes
    theirs = type(network).from_config(network.config).requires_grad_(False).eval()
    if case.base == "svd":
        set_res_block_eps(theirs)
    state = network.state_dict()
    if with_lora:
        config = peft.LoraConfig(r=module.control.rank, lora_alpha=module.control.rank, target_modules=layers)
        peft.inject_adapter_in_model(config, theirs)
    else:
        state = {name.replace(".base_layer.", "."): t for name, t in state.items() if ".lora_" not in name}
    for name, parameter in theirs.named_parameters():
        parameter.data = parameter.data.to(state[name].dtype)
    if dtype == torch.float64:
        nn.Module.double(theirs)
    theirs.load_state_dict(state)
    return theirs


def caller(case: Case, module: MotionControlModule, network: Any) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """How diffusers' pipelines call the network, with the signature of `VideoBase.predict`."""
    dtype = next(network.parameters()).dtype if case.base != "wan" else network.patch_embedding.weight.dtype

    def svd(noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        latent = cond.parts["image_latent"][:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        inputs = torch.cat([noisy, latent], 2).to(dtype)
        ids = torch.stack([cond.parts[name] for name in IDS], 1)
        return network(inputs, time, cond.parts["image_embedding"].to(dtype), ids, return_dict=False)[0]

    def wan(noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        first, (rows, columns) = cond.parts["first"], network.config.patch_size[1:]
        inputs = torch.cat([first, noisy[:, 1:]], 1).to(dtype).transpose(1, 2)
        tokens = noisy.shape[3] // rows * (noisy.shape[4] // columns)
        times = time[:, None].repeat(1, noisy.shape[1] * tokens)
        times[:, :tokens] = 0
        out = network(inputs, times, cond.parts["text"].to(dtype), return_dict=False)[0].transpose(1, 2)
        straight = (noisy[:, :1] - first) * (1000 / time.to(noisy.dtype)).view(-1, 1, 1, 1, 1)
        return torch.cat([straight, out[:, 1:].to(noisy.dtype)], 1)

    tables = (module.base.cosines, module.base.sines) if case.base == "cogvideox" else None

    def cogvideox(noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        first = cond.parts["first"]
        known = torch.cat([first, first.new_zeros(len(first), noisy.shape[1] - 1, *first.shape[2:])], 1)
        inputs, text = torch.cat([noisy, known], 2).to(dtype), cond.parts["text"].to(dtype)
        return network(inputs, text, time, image_rotary_emb=tables, return_dict=False)[0]

    return {"svd": svd, "wan": wan, "cogvideox": cogvideox}[case.base]


def with_peft(case: Case, dtype: torch.dtype) -> Side:
    """diffusers' network with peft's LoRA, merged for sampling, and eq. 8 in hooks, written down as it stands."""
    module = case.module(dtype)
    network = stock(case, module, with_lora=True)
    encoder, weights = copy.deepcopy(module.motion_encoder), copy.deepcopy(module.injections[0])
    for layer in (*encoder.modules(), *weights.modules()):
        if isinstance(layer, TemporalConv):
            layer.__class__ = PlainTemporalConv
        elif isinstance(layer, nn.GroupNorm):
            layer.__class__ = nn.GroupNorm
    features: list[Tensor] = []
    names = {id(m): name for own in module.base.denoisers().values() for name, m in own.named_modules()}
    for place, made in zip(module.base.places(), weights._weights, strict=True):
        target = network.get_submodule(names[id(place.module)])
        if place.layout == "tokens":
            target.register_forward_pre_hook(modulate_tokens(made, features, place.level), with_kwargs=True)
        else:
            target.register_forward_hook(modulate(made, features, place.level))
    parts = {"network": network, "encoder": encoder, "injection": weights}
    trained = {f"{part}.{name}": p for part, m in parts.items() for name, p in m.named_parameters() if p.requires_grad}

    def steer(control: Tensor) -> None:
        features[:] = encoder(control)

    half = dtype.itemsize < 4
    return Side(
        module, caller(case, module, network), trained, steer,
        lambda: torch.autocast("cpu", dtype, enabled=half), lambda: merged(network),
    )  # fmt: skip


class PlainTemporalConv(TemporalConv):
    """The convolution over the frames of each pixel, by Conv1d."""

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """(B*frames, C, h, w) -> (B*frames, C', h, w)."""
        h, w = x.shape[2:]
        rows = x.unflatten(0, (-1, frames)).permute(0, 3, 4, 2, 1).flatten(0, 2)
        rows = F.conv1d(F.pad(rows, (1, 1), mode="replicate"), self.weight, self.bias)
        return rows.unflatten(0, (-1, h, w)).permute(0, 4, 3, 1, 2).flatten(0, 1)


def modulate(place: Modulation, features: list[Tensor], level: int) -> Any:
    """`h + GN(h) * gamma + beta`, gamma and beta made where they are used; guidance's branches share the feature."""

    def hook(module: nn.Module, args: tuple, h: Tensor) -> Tensor:
        gamma, beta = place.gamma(features[level]), place.beta(features[level])
        n = len(h) // len(gamma)
        return h + place.norm(h) * gamma.repeat(n, 1, 1, 1) + beta.repeat(n, 1, 1, 1)

    return hook


def modulate_tokens(place: Any, features: list[Tensor], level: int) -> Any:
    """`x + LN(x) * gamma + beta` of what enters an attention."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        x = kwargs.get("hidden_states", args[0] if args else None)
        gamma, beta = place.project(features[level].movedim(2, -1).flatten(1, 3)).chunk(2, -1)
        n = len(x) // len(gamma)
        normal = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        x = x + normal * gamma.repeat(n, 1, 1) + beta.repeat(n, 1, 1)
        return ((), {**kwargs, "hidden_states": x}) if "hidden_states" in kwargs else ((x, *args[1:]), kwargs)

    return hook


@contextlib.contextmanager
def merged(network: nn.Module) -> Iterator[None]:
    """peft's own merging, for the time of the block."""
    layers: list[Any] = list(lora_layers(network).values())
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer in layers:
            layer.unmerge()
