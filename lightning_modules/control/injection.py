"""Motion features into a stock diffusers UNet, by hooks in the first res block of every level (eq. 8, fig. 9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import GroupNorm, TemporalConv, seeded

if TYPE_CHECKING:  # it takes seconds, and `--help` has no need of it
    from diffusers import UNetSpatioTemporalConditionModel

UNET_GROUPS = 32
Conv = TypeVar("Conv", bound=nn.Module)


class AdaptiveScale(nn.Module):
    """gamma or beta of eq. 8: Conv2d 3x3 to a quarter of the channels, temporal Conv1d back; zero at the start."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.spatial = nn.Conv2d(feature_channels, channels // 4, 3, padding=1)
        self.temporal = TemporalConv(channels // 4, channels)
        zero(self.temporal)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, L, C_s, h, w) -> (B*L, C, h, w)."""
        return self.temporal(self.spatial(feature.flatten(0, 1).to(self.spatial.weight.dtype)), feature.shape[1])


class Modulation(nn.Module):
    """`h + GN_32(h) * gamma + beta` (eq. 8), gamma and beta from the motion feature, each by its own convolutions."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.norm = GroupNorm(UNET_GROUPS, channels)
        self.gamma = AdaptiveScale(feature_channels, channels)
        self.beta = AdaptiveScale(feature_channels, channels)

    def maps(self, feature: Tensor) -> tuple[Tensor, ...]:
        """Feature (B, L, C_s, h, w) -> (gamma, beta), each (B*L, C, h, w): what depends on the clip alone."""
        return self.gamma(feature), self.beta(feature)

    def coefficients(self, feature: Tensor) -> tuple[Tensor, ...]:
        """As `maps`, with the norm's weight w and bias b multiplied in: (gamma w, beta + gamma b).

        In float32 and rounded once: weights near 1, rounded to bfloat16 themselves, would not move at the paper's rate.
        """
        gamma, beta = self.maps(feature)
        weight, bias = (part[:, None, None] for part in (self.norm.weight, self.norm.bias))
        return (gamma * weight).to(gamma.dtype), (beta + gamma * bias).to(gamma.dtype)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """`h` (n*B*L, C, h, w) with the control's parts added; the statistics are float32 also in half precision."""
        norm = F.group_norm(h, UNET_GROUPS, eps=self.norm.eps)
        return (per_clip(h, scale) + torch.addcmul(shift, per_clip(norm, scale), scale)).flatten(0, 1)


class Concat(nn.Module):
    """`h + P0([h, l])` (ReMoCo_C): P0 is a 1x1 convolution of h and the feature together, zero at the start."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.project = zero(nn.Conv2d(channels + feature_channels, channels, 1))

    def coefficients(self, feature: Tensor) -> tuple[Tensor, ...]:
        """Feature -> its share of P0 (B*L, C, h, w); P0 is linear, so the share of h is added per step."""
        weight = self.project.weight[:, self.project.out_channels :]
        return (F.conv2d(feature.flatten(0, 1).to(weight.dtype), weight, self.project.bias),)

    maps = coefficients

    def forward(self, h: Tensor, projected: Tensor) -> Tensor:
        """`h` (n*B*L, C, h, w) with the control's parts added."""
        weight = self.project.weight[:, : self.project.out_channels]
        own = F.conv2d(h.to(weight.dtype), weight).to(h.dtype)
        return (per_clip(h, projected) + (per_clip(own, projected) + projected)).flatten(0, 1)


class Add(nn.Module):
    """`h + P0(l)` (ReMoCo_+): P0 is a 1x1 convolution, zero at the start."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.project = zero(nn.Conv2d(feature_channels, channels, 1))

    def coefficients(self, feature: Tensor) -> tuple[Tensor, ...]:
        """Feature (B, L, C_s, h, w) -> projection (B*L, C, h, w)."""
        return (self.project(feature.flatten(0, 1).to(self.project.weight.dtype)),)

    maps = coefficients

    def forward(self, h: Tensor, projected: Tensor) -> Tensor:
        """`h` (n*B*L, C, h, w) with the control's parts added."""
        return (per_clip(h, projected) + projected).flatten(0, 1)


KINDS = {"modulation": Modulation, "concat": Concat, "add": Add}


def place_class(kind: str) -> type[nn.Module]:
    """The class of an injection's places: one of `KINDS`, or one of your own by its class path, as `my.module.Place`.

    It is made with (channels of the motion feature, channels of the UNet's level) and has `coefficients` and `forward`
    as `Modulation` has them.

    Raises:
        ValueError: it is neither.
    """
    if kind in KINDS:
        return KINDS[kind]
    module, _, name = kind.rpartition(".")
    expected = f"expected one of {', '.join(KINDS)}, or the class path of a module with `coefficients`"
    try:
        found = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"injection is {kind!r}, {expected} ({error})") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "coefficients")):
        raise ValueError(f"injection is {kind!r}, {expected}")
    return found


def per_clip(h: Tensor, part: Tensor) -> Tensor:
    """(n*B*L, C, h, w) -> (n, B*L, C, h, w): guidance runs n branches that share the clips' motion."""
    return h.unflatten(0, (-1, len(part)))


def zero(conv: Conv) -> Conv:
    """The convolution with weight and bias set to zero."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class Injection(nn.Module):
    """The weights at the 8 places, and the motion features of the current batch.

    `set` before the UNet runs; `set(None)` gives the bare UNet. Under gradient checkpointing the hooks run again in the
    backward pass, so the features stay set until the next `set`: call it again only after the backward pass. A UNet
    batch that is n times the features' batch, as guidance makes it, sees them n times.

    Args:
        kind: `modulation`, `concat`, `add`, or a class path.
        channels: Channels of the UNet's levels.
        feature_channels: Channels of the motion features, scale by scale.
        seed: Seed of the initial weights.
    """

    def __init__(self, kind: str, channels: Sequence[int], feature_channels: Sequence[int], seed: int = 0):
        super().__init__()
        place = place_class(kind)
        with seeded(seed):
            self.down = nn.ModuleList(place(f, c) for f, c in zip(feature_channels, channels))
            self.up = nn.ModuleList(place(f, c) for f, c in zip(feature_channels[::-1], channels[::-1]))
        self._features: list[Tensor] | None = None
        self._coefficients: list[tuple[Tensor, ...]] | None = None

    def set(self, features: list[Tensor] | None) -> None:
        """Use these features, one (B, L, C_s, h_s, w_s) per scale, from now on; None removes the control.

        What the places add is computed here, once: it depends on the clip alone, and inside the UNet it would be
        computed again in every step of a sampler and in every recomputed block.
        """
        self._features = None if features is None else [*features, *features[::-1]]
        self._coefficients = None if features is None else [p.coefficients(f) for p, f in self._at_places()]

    prepare = set

    def _at_places(self) -> Iterable[tuple[Any, Tensor]]:
        return zip([*self.down, *self.up], self._features or [])

    def coefficients(self) -> list[tuple[Tensor, ...]] | None:
        """The control at the places, down levels then up levels: (gamma, beta) each (B*L, C, h, w); None without."""
        return None if self._features is None else [place.maps(feature) for place, feature in self._at_places()]

    def inject(self, place: Any, index: int, h: Tensor) -> Tensor:
        """`h` (n*B*L, C, h, w) with the motion at one place added."""
        if self._coefficients is None:
            return h
        return place(h, *(part.to(h.dtype) for part in self._coefficients[index]))


def attach(unet: UNetSpatioTemporalConditionModel, kind: str = "modulation", seed: int = 0) -> Injection:
    """Hook an injection into the UNet: right after conv1 of the first res block of every down and up level.

    Args:
        unet: Stock diffusers UNet; its code and its state dict stay as they are.
        kind: `modulation` (eq. 8), `concat` or `add` (the ablation), or a class path.
        seed: Seed of the initial weights.

    Returns:
        The injection's weights and switch. Until `set` is called the UNet computes what it did before.
    """
    widths = list(unet.config.block_out_channels)
    injection = Injection(kind, widths, widths, seed)
    blocks = [*unet.down_blocks, *unet.up_blocks]
    for index, (block, place) in enumerate(zip(blocks, [*injection.down, *injection.up])):
        block.resnets[0].spatial_res_block.conv1.register_forward_hook(_hook(injection, place, index))
    return injection


def _hook(injection: Injection, place: nn.Module, index: int):
    def hook(module: nn.Module, args: tuple, h: Tensor) -> Tensor:
        return injection.inject(place, index, h)

    return hook
