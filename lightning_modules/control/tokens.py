"""Motion features into a transformer's tokens, by hooks on the modules that the base names as places.

What a place adds is computed in its hook, from the features, which all places share: kept for every place, as for
feature maps, it would be 27 GB for a clip of 480 x 832 and 81 frames at Wan 14B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.bases.places import Place
from lightning_modules.control.injection import Injection, per_clip, zero
from remoco.common.errors import UserError

EPS = 1e-6
TOKENS = "hidden_states"  # what diffusers' attention calls them where they have a name


class TokenModulation(nn.Module):
    """`x + LN(x) * gamma + beta`, gamma and beta linear in the motion feature (eq. 8 on tokens); zero at the start."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.project = zero(nn.Linear(feature_channels, 2 * channels))

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        """Tokens (n*B, N, C) with the control of (B, N, C_s) features added; the norm is float32 in half precision."""
        gamma, beta = linear(self.project, feature, x.dtype).chunk(2, -1)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        normal = per_clip(F.layer_norm(exact, x.shape[-1:], eps=EPS).to(x.dtype), feature)
        return (per_clip(x, feature) + torch.addcmul(beta, normal, gamma)).flatten(0, 1)


class TokenConcat(nn.Module):
    """`x + P([x, l])`: P is linear in the tokens and the feature together, zero at the start."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.project = zero(nn.Linear(channels + feature_channels, channels))

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        """As `TokenModulation.forward`."""
        own, other = self.project.weight.to(x.dtype).split((x.shape[-1], feature.shape[-1]), 1)
        added = F.linear(feature.to(x.dtype), other, self.project.bias.to(x.dtype))
        return (per_clip(x, feature) + (per_clip(F.linear(x, own), feature) + added)).flatten(0, 1)


class TokenAdd(nn.Module):
    """`x + P(l)`: P is linear in the feature, zero at the start."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.project = zero(nn.Linear(feature_channels, channels))

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        """As `TokenModulation.forward`."""
        return (per_clip(x, feature) + linear(self.project, feature, x.dtype)).flatten(0, 1)


KINDS: dict[str, type[nn.Module]] = {"modulation": TokenModulation, "concat": TokenConcat, "add": TokenAdd}


def linear(layer: nn.Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A layer of float32 weights, computed in a dtype."""
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


class TokenInjection(Injection):
    """As `Injection`, at places whose input is tokens.

    Args:
        kind: `modulation`, `concat` or `add`.
        places: Places of the base; their weights are drawn in this order.
        feature_channels: Channels of the motion features, level by level.
        seed: Seed of the initial weights.
    """

    def __init__(self, kind: str, places: Sequence[Place], feature_channels: Sequence[int], seed: int = 0):
        if kind not in KINDS:
            raise UserError(
                f"control.injection: {kind} is for feature maps, this base has tokens; expected {', '.join(KINDS)}"
            )
        super().__init__(kind, places, feature_channels, seed, KINDS[kind])

    def set(self, features: list[Tensor] | None) -> None:
        """Use these features, one (B, F, C_s, h_s, w_s) per level, from now on; None removes the control."""
        tokens = {} if features is None else {level: _tokens(features[level]) for level in set(self._levels)}
        self._features = [tokens[level] for level in self._levels] if tokens else None

    prepare = set

    def inject(self, place: Any, index: int, h: Tensor) -> Tensor:
        """Tokens (n*B, N, C) with the motion at one place added."""
        if self._features is None:
            return h
        feature = self._features[index]
        if h.shape[1] != feature.shape[1]:
            raise UserError(f"control.injection: {h.shape[1]} tokens for {feature.shape[1]} features of the control")
        return place(h, feature)


def _tokens(feature: Tensor) -> Tensor:
    """(B, F, C, h, w) -> (B, F h w, C), frame by frame and row by row."""
    return feature.movedim(2, -1).flatten(1, 3)


def attach_tokens(places: Sequence[Place], feature_channels: Sequence[int], kind: str, seed: int = 0) -> TokenInjection:
    """Hook an injection onto what enters a base's places, as `injection.attach` does onto what leaves them."""
    injection = TokenInjection(kind, places, feature_channels, seed)
    for index, place in enumerate(places):
        place.module.register_forward_pre_hook(_hook(injection, index), with_kwargs=True)
    return injection


def _hook(injection: TokenInjection, index: int):
    weights = injection._weights[index]

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if TOKENS in kwargs:
            return args, {**kwargs, TOKENS: injection.inject(weights, index, kwargs[TOKENS])}
        return (injection.inject(weights, index, args[0]), *args[1:]), kwargs

    return hook
