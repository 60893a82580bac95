"""The network of DOT's estimator and refiner: RAFT (Teed and Deng, ECCV 2020) with patches of 8 or 4 pixels.

Names of parameters and the arithmetic are those of the released checkpoints (Le Moing, Ponce, Schmid, CVPR 2024). Flow
inside the network counts in coarse pixels, one per patch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.trackers.dot.correlation import CHANNELS, Correlation
from remoco.common.errors import UserError

HIDDEN = 128
Statistics = Literal["batch", "running"]


class BatchNorm(nn.BatchNorm2d):
    """Normalises by the batch's own statistics, unless `running`; never moves the stored ones."""

    running = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        stored = (self.running_mean, self.running_var) if self.running else (None, None)
        return F.batch_norm(x, *stored, self.weight, self.bias, training=not self.running, eps=self.eps)


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution only where the stride is not 1."""

    def __init__(self, into: int, out: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(into, out, 3, stride, padding=1), norm(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1), norm(out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, smaller by the stride."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.downsample(x) + y)


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] to (B, 256, H / patch, W / patch)."""

    def __init__(self, patch: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, 2 if patch == 8 else 1, padding=3), norm(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1, norm), Block(64, 64, 1, norm))
        self.layer2 = nn.Sequential(Block(64, 96, 2, norm), Block(96, 96, 1, norm))
        self.layer3 = nn.Sequential(Block(96, 128, 2, norm), Block(128, 128, 1, norm))
        self.conv2 = nn.Conv2d(128, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode frames."""
        x = F.relu(self.norm1(self.conv1(x)))
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class MotionEncoder(nn.Module):
    """Correlation and `moved` (flow, and with visibility its logit and two zeros) to 128 channels ending in `moved`."""

    def __init__(self, alpha: bool) -> None:
        super().__init__()
        into = 5 if alpha else 2
        self.convc1, self.convc2 = nn.Conv2d(CHANNELS, 256, 1), nn.Conv2d(256, 192, 3, padding=1)
        self.convf1, self.convf2 = nn.Conv2d(into, 128, 7, padding=3), nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(64 + 192, 128 - into, 3, padding=1)

    def forward(self, moved: Tensor, corr: Tensor) -> Tensor:
        """Encode, at the coarse size."""
        c = F.relu(self.convc2(F.relu(self.convc1(corr))))
        f = F.relu(self.convf2(F.relu(self.convf1(moved))))
        return torch.cat([F.relu(self.conv(torch.cat([c, f], 1))), moved], 1)


class SepConvGRU(nn.Module):
    """A gated recurrent unit along rows, then one along columns."""

    def __init__(self) -> None:
        super().__init__()
        for place, size in (("1", (1, 5)), ("2", (5, 1))):
            for gate in "zrq":
                padding = (size[0] // 2, size[1] // 2)
                self.add_module(f"conv{gate}{place}", nn.Conv2d(HIDDEN + 256, HIDDEN, size, padding=padding))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Hidden state (B, 128, h, w) after input (B, 256, h, w)."""
        for place in "12":
            convz, convr, convq = (self.get_submodule(f"conv{gate}{place}") for gate in "zrq")
            hx = torch.cat([h, x], 1)
            z, r = convz(hx).sigmoid(), convr(hx).sigmoid()
            h = (1 - z) * h + z * convq(torch.cat([r * h, x], 1)).tanh()
        return h


def _head(out: int) -> nn.Sequential:
    first, second = nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.Conv2d(256, out, 3, padding=1)
    return nn.Sequential(OrderedDict(conv1=first, relu=nn.ReLU(), conv2=second))


def _mask(patch: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 9 * patch**2, 1))


class UpdateBlock(nn.Module):
    """The parts of one iteration; `Raft.steps` puts them together."""

    def __init__(self, patch: int, alpha: bool) -> None:
        super().__init__()
        self.encoder, self.gru = MotionEncoder(alpha), SepConvGRU()
        self.flow_head, self.mask = _head(2), _mask(patch)
        if alpha:
            self.alpha_head, self.alpha_mask = _head(1), _mask(patch)


class Features(NamedTuple):
    """What the network sees of a frame: `matched` (B, 256, h, w) of both frames, `context` of the source only."""

    matched: Tensor
    context: Tensor | None


class Step(NamedTuple):
    """One iteration: the correlation it read (B, 324, h, w), and hidden state, flow (B, 2, h, w) in coarse pixels and
    visibility logit (B, 1, h, w) after it.
    """

    corr: Tensor
    net: Tensor
    flow: Tensor
    logit: Tensor | None


class Raft(nn.Module):
    """Flow from a source to a target frame, and with `alpha` whether the source's pixel is seen in the target.

    Args:
        patch: pixels per coarse pixel, 8 or 4.
        iterations: number of iterations of the update.
        alpha: visibility too.
        batch_norm: the context encoder has batch norm (released: the estimator's only) instead of instance norm.
    """

    def __init__(self, patch: int, iterations: int, alpha: bool, batch_norm: bool) -> None:
        super().__init__()
        self.patch, self.iterations, self.alpha = patch, iterations, alpha
        self.fnet = Encoder(patch, nn.InstanceNorm2d)
        self.cnet = Encoder(patch, BatchNorm if batch_norm else nn.InstanceNorm2d)
        self.update_block = UpdateBlock(patch, alpha)

    def use_statistics(self, statistics: Statistics) -> None:
        """`batch`: as DOT's own scripts run it, which never call eval(); `running`: the statistics of the training."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.running = statistics == "running"

    def encode(self, frame: Tensor, context: bool = True) -> Features:
        """Frames (B, 3, H, W) in [0, 1]; with batch statistics each call counts as one batch.

        Raises:
            UserError: a size that the released network does not take, or turns into NaN.
        """
        require_size(self.patch, *frame.shape[2:])
        frame = frame * 2 - 1
        return Features(self.fnet(frame), self.cnet(frame) if context else None)

    def steps(
        self, source: Features, target: Features, flow: Tensor | None = None, alpha: Tensor | None = None
    ) -> Iterator[Step]:
        """The iterations, one after another.

        Args:
            source: features with context.
            target: features.
            flow: to start from, (B, h, w, 2) in coarse pixels; zero where None.
            alpha: probability of being seen to start from, (B, h, w); one where None.
        """
        if source.context is None:
            raise UserError("the source frame was encoded without context")
        b, _, h, w = source.matched.shape
        correlation = Correlation(source.matched, target.matched)
        net, inp = source.context.split(HIDDEN, 1)
        net, inp = net.tanh(), inp.relu()
        start = coarse_grid(h, w, like=net)
        points = start + (net.new_zeros(b, 2, h, w) if flow is None else flow.permute(0, 3, 1, 2))
        logit = None
        if self.alpha:
            logit = (net.new_ones(b, 1, h, w) if alpha is None else alpha[:, None]).logit(eps=1e-5)
        block = self.update_block
        for _ in range(self.iterations):
            corr, moved = correlation(points), points - start
            if logit is not None:
                moved = torch.cat([moved, logit, torch.zeros_like(moved)], 1)
            net = block.gru(net, torch.cat([inp, block.encoder(moved, corr)], 1))
            points = points + block.flow_head(net)
            if logit is not None:
                logit = logit + block.alpha_head(net)
            yield Step(corr, net, points - start, logit)

    def upsampled(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """Flow (B, H, W, 2) in pixels and the probability of being seen (B, H, W)."""
        flow = _convex(self.patch * step.flow, 0.25 * self.update_block.mask(step.net), self.patch)
        if step.logit is None:
            return flow.permute(0, 2, 3, 1), None
        logit = _convex(step.logit, 0.25 * self.update_block.alpha_mask(step.net), self.patch)
        return flow.permute(0, 2, 3, 1), logit[:, 0].sigmoid()

    def forward(
        self, source: Features, target: Features, flow: Tensor | None = None, alpha: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Flow (B, H, W, 2) in pixels and the probability of being seen (B, H, W); see `steps`."""
        *_, last = self.steps(source, target, flow, alpha)
        return self.upsampled(last)


def estimator() -> Raft:
    """The network of `cvo_raft_patch_8.pth`: flow between neighbouring frames."""
    return Raft(patch=8, iterations=12, alpha=False, batch_norm=True)


def refiner() -> Raft:
    """The network of `movi_f_raft_patch_4_alpha.pth`: flow and visibility from a coarse guess."""
    return Raft(patch=4, iterations=4, alpha=True, batch_norm=False)


def require_size(patch: int, height: int, width: int) -> None:
    """Refuse what leaves a correlation level less than two pixels: the released code gives NaN there."""
    if min(height, width) < 16 * patch or height % patch or width % patch:
        raise UserError(
            f"DOT's {'estimator' if patch == 8 else 'refiner'} got {height} x {width} pixels, "
            f"expected sides of at least {16 * patch} in multiples of {patch}"
        )


def coarse_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(1, 2, height, width): x, y of each coarse pixel."""
    x = torch.arange(width, dtype=like.dtype, device=like.device)
    y = torch.arange(height, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def _convex(values: Tensor, mask: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) to (B, C, h patch, w patch): each pixel a convex combination of 3 x 3 coarse ones, zero outside."""
    b, c, h, w = values.shape
    weight = mask.view(b, 1, 9, patch, patch, h, w).softmax(2)
    near = F.unfold(values, 3, padding=1).view(b, c, 9, 1, 1, h, w)
    return (weight * near).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(b, c, h * patch, w * patch)
