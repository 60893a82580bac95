"""`latent` and `latent_soft`: the first frame's latent features, copied along the control's tracks into the condition.

Both are ways of published models, from our control alone: each cell of the latent grid whose middle pixel moves is a
track. Neither has weights of its own.

- `latent`: Wan-Move, arXiv 2512.08765, code of ali-vilab/Wan-Move (Apache-2.0).
- `latent_soft`: ATI, arXiv 2505.22944, code of bytedance/ATI (Apache-2.0).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from lightning_modules.bases.base import VideoBase
from lightning_modules.conditioning import Conditioning, plain
from remoco.common.errors import UserError

TEMPERATURE, NEAREST, VISIBLE = 220.0, 2, 1e-5  # ATI's: of the weights; tracks that a cell mixes; added to its counts


class LatentEdit(nn.Module):
    """An injection that writes features of the first latent frame into the later ones of a base's condition.

    Class attributes:
        name: In `control.injection`.
        in_both: Whether both branches of guidance have the motion; else the unconditional one has the condition as it
            was.
        weightless: That nothing of it is trained.
    """

    name: str
    in_both: bool
    weightless = True

    @classmethod
    def check(cls, base: VideoBase, condition: Condition) -> None:
        """Raise UserError unless the base has such a condition, and the control says what moves where in each cell."""
        if base.first_latents is None:
            raise UserError(
                f"control.injection: {cls.name} writes into latents of the first frame beside the noisy ones, "
                f"{type(base).__name__} here has none; expected Wan 2.1 I2V or 2.2 A14B, or another injection"
            )
        if not condition.says_motion:
            raise UserError(
                f"model.condition: {cls.name} copies along tracks and a motion mask, {condition} has no such; "
                "expected conditions.RegionWise with motion_mask true"
            )
        if condition.region_size < base.grid.space:
            raise UserError(
                f"model.condition: region_size is {condition.region_size}, expected at least {base.grid.space}, the "
                f"pixels of a latent, for {cls.name}"
            )

    @torch.no_grad()
    def steer(self, control: Tensor, conditioning: Conditioning, base: VideoBase) -> Conditioning:
        """The conditioning with its latents edited.

        Args:
            control: (B, L, 3, H, W) dx, dy in pixels and motion mask, constant over frames.
            conditioning: Of the clips.
            base: Its `first_latents` says where the latents are.
        """
        assert base.first_latents is not None
        name, known = base.first_latents
        before = conditioning.parts[name]
        with torch.autocast(control.device.type, enabled=False):
            after = self.edited(before, known, control, base.grid.space, base.grid.time)
        parts = conditioning.parts | {name: after} | ({} if self.in_both else {plain(name): before})
        return replace(conditioning, parts=parts)

    @abstractmethod
    def edited(self, y: Tensor, known: int, control: Tensor, side: int, time: int) -> Tensor:
        """A condition with the motion in it.

        Args:
            y: (B, F, known + C, h, w), of which the first channels say what is known.
            known: Their number.
            control: (B, L, 3, H, W), L being 1 + time (F - 1).
            side: Pixels per latent.
            time: Frames per latent.
        """


class Latent(LatentEdit):
    """Copies whole cells, as Wan-Move does, and what the mask says stays to where it is.

    A latent frame has the position of its last frame. A cell that leaves the frame is not copied. Where several arrive
    at one, the last in reading order is taken (Wan-Move draws one), and it covers what stays. Cells of the mask without
    a track are free. The channels that say what is known stay as they are.
    """

    name, in_both = "latent", False

    def edited(self, y: Tensor, known: int, control: Tensor, side: int, time: int) -> Tensor:
        """As `LatentEdit.edited`."""
        way, moves = ways(control, side)
        cells = ((starts(way, side) + way[:, time::time]) / side).floor().long()  # (B, F - 1, 2, h, w)
        height, width = y.shape[-2:]
        x, row = cells[:, :, 0], cells[:, :, 1]
        arrives = moves[:, None] & (x >= 0) & (x < width) & (row >= 0) & (row < height)
        numbers = torch.arange(height * width, device=y.device).view(height, width)
        source = torch.where(arrives, numbers, -1).flatten(2)
        target = torch.where(arrives, row * width + x, 0).flatten(2)
        stays = torch.where(still(control, side) & ~moves, numbers, -1).flatten(1)
        taken = torch.full_like(source, -1).scatter_reduce(2, target, source, "amax")  # the same in any order
        taken = torch.where(taken >= 0, taken, stays[:, None])
        first, later = y[:, 0, known:].flatten(2), y[:, 1:, known:].flatten(3)
        index = taken.clamp(min=0)[:, :, None].expand_as(later)
        copied = first[:, None].expand_as(later).gather(3, index)
        edited = torch.where(taken[:, :, None] >= 0, copied, later).unflatten(3, (height, width))
        later = torch.cat([y[:, 1:, :known], edited], 2)
        return torch.cat([y[:, :1], later], 1)


class LatentSoft(LatentEdit):
    """Mixes features around each track by Gaussian weights, as ATI does; what the mask says stays is left free.

    A latent frame has the mean position of its frames. Each cell takes the two tracks of the largest weights, and the
    sum of these weights takes the place of what is known. Coordinates are ATI's: the shorter side is from -1 to 1.
    """

    name, in_both = "latent_soft", True

    def edited(self, y: Tensor, known: int, control: Tensor, side: int, time: int) -> Tensor:
        """As `LatentEdit.edited`."""
        way, moves = ways(control, side)
        at = starts(way, side) + way  # (B, L, 2, h, w)
        clips = zip(y, at, moves, strict=True)
        return torch.stack([self._of_clip(clip, known, paths[:, :, here], side, time) for clip, paths, here in clips])

    def _of_clip(self, y: Tensor, known: int, paths: Tensor, side: int, time: int) -> Tensor:
        """The condition (F, known + C, h, w) of a clip with (L, 2, N) tracks in pixels."""
        if not paths.shape[2]:
            return y
        height, width = y.shape[-2:]
        sides = torch.tensor([width, height], dtype=y.dtype, device=y.device)
        short = sides.min()
        points = ((paths.to(y.dtype) - side * sides[:, None] / 2) / (side * short) * 2).transpose(1, 2)  # (L, N, 2)
        means = points[1:].unflatten(0, (-1, time)).sum(1) / (time + VISIBLE)
        begin = (points[:1] / (sides / short)).clamp(-1, 1)
        features = F.grid_sample(y[:1, known:], begin[None], align_corners=False)[0, :, 0].T  # (N, C)
        x, row = (
            torch.linspace(-float(n / short), float(n / short), int(n), dtype=y.dtype, device=y.device) for n in sides
        )
        frames = [y[0]]
        for now, mean in zip(y[1:], means, strict=True):
            far = (mean[:, 0] - x[:, None]).square() + (mean[:, 1] - row[:, None, None]).square()  # (h, w, N)
            weights, nearest = (-TEMPERATURE * far).exp().topk(min(NEAREST, far.shape[-1]), -1)
            total = weights.sum(-1)
            mixed = (features[nearest] * weights[..., None]).sum(-2).movedim(-1, 0)
            rest = now[known:] * (1 - total.clamp(0, 1))
            frames.append(torch.cat([total.expand(known, -1, -1), mixed + rest]))
        return torch.stack(frames)


def ways(control: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(B, L, 2, h, w) float64 displacement of each cell's middle pixel, and (B, h, w) whether it moves."""
    way = control[:, :, :2, side // 2 :: side, side // 2 :: side].double()
    return way, (way != 0).any(2).any(1)


def starts(way: Tensor, side: int) -> Tensor:
    """(2, h, w) x, y in pixels of the cells' middles."""
    row, x = (side * torch.arange(n, device=way.device, dtype=way.dtype) + side // 2 for n in way.shape[-2:])
    return torch.stack(torch.meshgrid(x, row, indexing="xy"))


def still(control: Tensor, side: int) -> Tensor:
    """(B, h, w) whether all of a cell is outside of the motion mask."""
    return F.max_pool2d(control[:, :, 2].amax(1), side) == 0
