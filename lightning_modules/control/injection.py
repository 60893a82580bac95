"""Motion features into a base's network, by hooks on the modules that the base names as places (eq. 8, fig. 9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.places import Place
from lightning_modules.control.latent import Latent, LatentEdit, LatentSoft
from lightning_modules.control.warp import Warp
from lightning_modules.layers import GroupNorm, TemporalConv, seeded
from remoco.common.errors import UserError

GROUPS = 32
Layer = TypeVar("Layer", bound=nn.Module)


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
        self.norm = GroupNorm(GROUPS, channels)
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
        norm = F.group_norm(h, GROUPS, eps=self.norm.eps)
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
        of_feature = F.conv2d(h.to(weight.dtype), weight).to(h.dtype)
        return (per_clip(h, projected) + (per_clip(of_feature, projected) + projected)).flatten(0, 1)


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


KINDS: dict[str, type[nn.Module]] = {
    "modulation": Modulation, "concat": Concat, "add": Add, "warp": Warp, "latent": Latent, "latent_soft": LatentSoft,
}  # fmt: skip


def injection_class(kind: str) -> type[nn.Module]:
    """The class behind an entry of `control.injection`: one of `KINDS`, or your own by its class path.

    One of your own either stands at the base's places, made with (channels of the motion feature, channels of the
    place), and has `coefficients` and `forward` as `Modulation` has them; or it is made without arguments, or of the
    built base where it has `over`, and has `steer(control, conditioning, base) -> conditioning`, which edits what the
    network is conditioned on. Its `check(base, condition)`, if any, refuses before a weight is read.

    Raises:
        UserError: it is neither.
    """
    if kind in KINDS:
        return KINDS[kind]
    module, _, name = kind.rpartition(".")
    expected = f"expected one of {', '.join(KINDS)}, or the class path of a module with `coefficients` or `steer`"
    try:
        cls = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"control.injection is {kind!r}, {expected} ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"control.injection is {kind!r}, {expected}")
    if not (hasattr(cls, "coefficients") or hasattr(cls, "steer")):
        raise UserError(f"control.injection is {kind!r}, {expected}")
    return cls


def check_injections(kinds: Sequence[str], base: VideoBase, condition: Condition) -> None:
    """Raise UserError unless entries of `control.injection` fit a base and a condition, and each other.

    Args:
        kinds: The entries.
        base: It need not be built.
        condition: The condition.
    """
    classes: list[Any] = [injection_class(kind) for kind in kinds]
    if sum(issubclass(each, (Warp, LatentEdit)) for each in classes) > 1:
        # the later one would drop what the earlier wrote, or its gradients
        raise UserError(
            f"control.injection is {list(kinds)}, expected one at most of warp, latent and latent_soft: each writes "
            "into the first frame's condition"
        )
    for each in classes:
        if hasattr(each, "check"):
            each.check(base, condition)


def per_clip(h: Tensor, part: Tensor) -> Tensor:
    """(n*B*L, ...) -> (n, B*L, ...), or (n*B, ...) of clips: guidance runs n branches that share the clips' motion."""
    return h.unflatten(0, (-1, len(part)))


def zero(layer: Layer) -> Layer:
    """The layer with weight and bias set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Injection(nn.Module):
    """The weights at a base's places, and the motion features of the current batch.

    `set` before the network runs; `set(None)` gives the bare network. Under gradient checkpointing the hooks run again
    in the backward pass, so the features stay set until the next `set`: call it again only after the backward pass. A
    batch of the network that is n times the features' batch, as guidance makes it, sees them n times.

    Args:
        kind: `modulation`, `concat`, `add`, or a class path.
        places: Places of the base; their weights are drawn in this order.
        feature_channels: Channels of the motion features, level by level.
        seed: Seed of the initial weights.
        made: Class of the weights at a place; by default the kind's.
    """

    def __init__(
        self,
        kind: str,
        places: Sequence[Place],
        feature_channels: Sequence[int],
        seed: int = 0,
        made: type[nn.Module] | None = None,
    ):
        super().__init__()
        make = made or injection_class(kind)
        self._levels = [place.level for place in places]
        self._weights: list[nn.Module] = []  # also registered, by the places' names
        with seeded(seed):
            for place in places:
                group = place.name.rpartition(".")[0]
                if group not in self._modules:
                    self.add_module(group, nn.ModuleList())
                weights = make(feature_channels[place.level], place.channels)
                self.get_submodule(group).append(weights)  # type: ignore[operator]  # a ModuleList
                self._weights.append(weights)
        self._features: list[Tensor] | None = None
        self._coefficients: list[tuple[Tensor, ...]] | None = None

    def set(self, features: list[Tensor] | None) -> None:
        """Use these features, one (B, L, C_s, h_s, w_s) per level, from now on; None removes the control.

        What the places add is computed here, once: it depends on the clip alone, and inside the network it would be
        computed again in every step of a sampler and in every recomputed block.
        """
        self._features = None if features is None else [features[level] for level in self._levels]
        self._coefficients = None if features is None else [p.coefficients(f) for p, f in self._at_places()]

    prepare = set

    def held(self) -> tuple[Any, Any]:
        """What is kept of the features, for `hold`."""
        return self._features, self._coefficients

    def hold(self, held: tuple[Any, Any]) -> None:
        """Use again what was kept of features before, without computing it again."""
        self._features, self._coefficients = held

    def _at_places(self) -> Iterable[tuple[Any, Tensor]]:
        return zip(self._weights, self._features or [])

    def coefficients(self) -> list[tuple[Tensor, ...]] | None:
        """The control at the places, in their order: (gamma, beta) each (B*L, C, h, w); None without."""
        return None if self._features is None else [place.maps(feature) for place, feature in self._at_places()]

    def inject(self, place: Any, index: int, h: Tensor) -> Tensor:
        """`h` (n*B*L, C, h, w) with the motion at one place added."""
        if self._coefficients is None:
            return h
        return place(h, *(part.to(h.dtype) for part in self._coefficients[index]))


def attach(places: Sequence[Place], feature_channels: Sequence[int], kind: str, seed: int = 0) -> Injection:
    """Hook an injection onto the outputs of a base's places.

    Args:
        places: Their modules' code and state dict stay as they are.
        feature_channels: Channels of the motion features, level by level.
        kind: `modulation` (eq. 8), `concat` or `add` (the ablation), or a class path.
        seed: Seed of the initial weights.

    Returns:
        The injection's weights and switch. Until `set` is called the network computes what it did before.
    """
    injection = Injection(kind, places, feature_channels, seed)
    for index, place in enumerate(places):
        place.module.register_forward_hook(_hook(injection, index))
    return injection


def _hook(injection: Injection, index: int):
    weights = injection._weights[index]

    def hook(module: nn.Module, args: tuple, h: Tensor) -> Tensor:
        return injection.inject(weights, index, h)

    return hook
