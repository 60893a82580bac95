"""SG-I2V: boxes that move, by optimising the latent so that their content keeps its features. It has no weights.

Source: Kmcode1/SG-I2V (MIT, Copyright 2024 Koichi Namekata), its formulas and constants written anew; the Butterworth
filter is FreeTraj's. The base is SVD img2vid of 14 frames under Stability AI's licence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.drawings import Drawing
from lightning_modules.process.sampler import OnStep
from lightning_modules.systems.controlled import FrameConditioning, Settings, SVDSampler, timestep_of
from lightning_modules.systems.files import base_parts
from lightning_modules.systems.quirks import Quirks
from lightning_modules.systems.system import FramedSystem, check_size, in_words, stretched
from lightning_modules.systems.tracks import paths, track_brushes
from remoco.common.errors import UserError

BASE_FRAMES = 14
LATENT = 8  # pixels per latent
UP_BLOCK, ATTENTIONS = 2, (1, 2)  # whose self-attention gives the features
FILTER_ORDER = 4
BOX = 96  # pixels per side of a track without a brush, in frames of 576 x 1024


@dataclass(frozen=True)
class Optimisation:
    """How the latent is optimised.

    Attributes:
        first: Steps before which nothing is.
        last: The last step in which it is.
        iterations: Number of iterations of AdamW in each step.
        rate: Its learning rate.
        spread: Standard deviation of a box's Gaussian weight, in halves of its sides.
        cut: Cut-off of the low-pass filter, in halves of the spectrum: lower frequencies are the optimised latent's.
        recompute: Activations are computed again in the backward pass, which takes less memory and more time.
    """

    first: int = 5
    last: int = 20
    iterations: int = 5
    rate: float = 0.21
    spread: float = 0.4
    cut: float = 0.5
    recompute: bool = True


RELEASED, OPTIMISATION = Settings(size=(576, 1024), frames=14, steps=50), Optimisation()


class RecordingAttention:
    """A self-attention's processor that can keep what each frame's queries find in the first frame.

    Attributes:
        inner: The processor it stands for.
        seen: (L, h*w, C) at each call; None while nothing is kept.
    """

    def __init__(self, inner: Any):
        self.inner = inner
        self.seen: list[Tensor] | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the inner one."""
        if self.seen is not None:
            q, k, v = (each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in _qkv(attn))
            k, v = (each[:1].detach().expand_as(each) for each in (k, v))
            self.seen.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.inner(attn, hidden_states, *args, **kwargs)


def _qkv(attn: Any) -> tuple[Any, Any, Any]:
    return attn.to_q, attn.to_k, attn.to_v


class _Seen(Exception):
    """Leaves the UNet where no later block is needed."""


class SGI2VSampler(SVDSampler):
    """SVD whose latent is optimised before some steps.

    Attributes:
        boxes: (N, L, 4) top, left, bottom, right in pixels, in every frame; to be set before sampling.
    """

    def __init__(self, unet: Any, vae: Any, image_encoder: Any, settings: Settings, optimisation: Optimisation):
        super().__init__(unet, vae, image_encoder, settings, Quirks.corrected())
        self.optimisation, self.boxes = optimisation, np.zeros((0, settings.frames, 4))
        attentions = getattr(unet.up_blocks[UP_BLOCK], "attentions", [])
        if len(attentions) <= max(ATTENTIONS):
            raise UserError(
                f"SG-I2V: the base's up block {UP_BLOCK} has {len(attentions)} attention layers, expected SVD's "
                f"{max(ATTENTIONS) + 1}"
            )
        self.recorders = []
        for index in ATTENTIONS:
            attention = attentions[index].transformer_blocks[0].attn1
            self.recorders.append(RecordingAttention(attention.processor))
            attention.set_processor(self.recorders[-1])
        if optimisation.recompute:
            unet.enable_gradient_checkpointing()

    def before_step(self, number: int, x: Tensor, sigma: Tensor, cond: FrameConditioning) -> Tensor:
        """Latents (1, L, C, h, w) optimised in the steps that are for it."""
        chosen = self.optimisation.first <= number <= self.optimisation.last
        return self.optimised(x, sigma, cond) if chosen and len(self.boxes) else x

    def optimised(self, x: Tensor, sigma: Tensor, cond: FrameConditioning) -> Tensor:
        """Some AdamW steps on the latents, of which the low frequencies are kept."""
        how, dtype = self.optimisation, torch.promote_types(x.dtype, torch.float32)
        half = x.is_cuda and dtype == torch.float32  # as released: float32 weights in float16 arithmetic
        scaler = torch.amp.GradScaler(x.device.type, enabled=half)
        with torch.enable_grad():
            latents = x.detach().to(dtype).clone().requires_grad_(True)
            optimizer = torch.optim.AdamW([latents], lr=how.rate)
            for _ in range(how.iterations):
                with self.recorded() as seen:
                    with torch.autocast(x.device.type, torch.float16, enabled=half):
                        self._run(latents, sigma, cond)
                    features = self.features(seen, latents.shape[-2:])
                    loss = box_loss(features, self.boxes, how.spread)
                    if loss is None:  # no box is in any later frame
                        break
                    optimizer.zero_grad()
                    scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return mixed(latents.detach(), x.to(dtype), how.cut).to(x.dtype)

    @contextmanager
    def recorded(self) -> Iterator[list[list[Tensor]]]:
        """What the recorders see; they go on recording in the backward pass, where blocks run again."""
        for recorder in self.recorders:
            recorder.seen = []
        hook = self.unet.up_blocks[UP_BLOCK + 1].register_forward_pre_hook(_leave)
        try:
            yield [recorder.seen for recorder in self.recorders if recorder.seen is not None]
        finally:
            hook.remove()
            for recorder in self.recorders:
                recorder.seen = None

    def _run(self, latents: Tensor, sigma: Tensor, cond: FrameConditioning) -> None:
        """The conditional branch alone, as far as the features."""
        inputs = torch.cat([latents / (sigma**2 + 1) ** 0.5, cond.latents[1:, None].expand_as(latents)], 2)
        try:
            self.unet(inputs, timestep_of(sigma).to(inputs.device), cond.tokens[1:], cond.ids[1:])
        except _Seen:
            pass

    def features(self, seen: list[list[Tensor]], grid: Any) -> Tensor:
        """(L, C, h, w) at the latents' size, of both attentions."""
        maps = []
        for each in seen:
            feature = each[0].float() if each[0].dtype == torch.float16 else each[0]
            small = feature.mT.unflatten(-1, (grid[0] // 2, grid[1] // 2))
            maps.append(F.interpolate(small, size=tuple(grid), mode="bilinear"))
        return torch.cat(maps, 1)


def _leave(*_: Any) -> None:
    raise _Seen


def grid_box(box: np.ndarray) -> tuple[int, int, int, int]:
    """A box in pixels -> top, left, bottom, right in whole latents, one at least."""
    top, left, bottom, right = (box // LATENT).astype(int).tolist()
    return top, left, max(top + 1, bottom), max(left + 1, right)


def cut_out(feature: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """(C, h, w) -> what is in a box."""
    return feature[:, box[0] : box[2], box[1] : box[3]]


def box_loss(features: Tensor, boxes: np.ndarray, spread: float) -> Tensor | None:
    """Weighted mean of the squared difference between boxes' content and the first frame's, which stays; resized where
    a box changes its size.

    Args:
        features: (L, C, h, w).
        boxes: (N, L, 4) in pixels.
        spread: See `Optimisation`.

    Returns:
        (), or None where no box is in any later frame.
    """
    height, width = features.shape[2:]
    targets = [cut_out(features[0].detach(), grid_box(box)) for box in boxes[:, 0]]
    total, count = features.new_zeros(()), torch.zeros((), device=features.device)
    for frame in range(1, len(features)):
        for box, target in zip(boxes[:, frame], targets, strict=True):
            top, left, bottom, right = grid_box(box)
            inside = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
            if inside[0] >= inside[2] or inside[1] >= inside[3]:
                continue
            size = bottom - top, right - left
            offset = (inside[0] - top, inside[1] - left, inside[2] - top, inside[3] - left)
            wanted = cut_out(F.interpolate(target[None], size=size, mode="bilinear")[0], offset)
            weight = cut_out(gaussian(*size, spread)[None], offset)[0].to(features.device)
            difference = (wanted - cut_out(features[frame], inside)).square().mean(0)
            total = total + (weight * difference).sum()
            count = count + weight.sum()
    return total / count.clamp(min=1e-8) if bool(count > 0) else None


def gaussian(height: int, width: int, spread: float) -> Tensor:
    """(height, width) float32 Gaussian around the middle, 1 at its largest value."""
    y, x = (np.arange(n) + 0.5 - n / 2 for n in (height, width))
    down, across = spread * height / 2, spread * width / 2
    values = 1 / (2 * np.pi * down * across) * np.exp(-((x / across) ** 2 + (y[:, None] / down) ** 2) / 2)
    values = values.astype(np.float32)
    return torch.from_numpy(values / values.max())


def mixed(low: Tensor, high: Tensor, cut: float) -> Tensor:
    """Low spatial frequencies of one latent and the high ones of another, by a Butterworth filter of order 4."""
    rows, columns = (2 * torch.arange(n, device=low.device, dtype=low.dtype) / n - 1 for n in low.shape[-2:])
    distance = rows[:, None].square() + columns.square()
    share = 1 / (1 + (distance / cut**2) ** FILTER_ORDER)
    spectra = (torch.fft.fftshift(torch.fft.fft2(each), dim=(-2, -1)) for each in (low, high))
    first, second = spectra
    return torch.fft.ifft2(torch.fft.ifftshift(first * share + second * (1 - share), dim=(-2, -1))).real


class SGI2V(FramedSystem):
    """SG-I2V, as a `System`.

    Args:
        svd: The networks.
    """

    name = "SG-I2V"

    def __init__(self, svd: SGI2VSampler):
        box = f"a box around the brush under each start, else of {BOX} pixels at height 576"
        super().__init__(svd.settings, f"{in_words(svd.optimisation)}; {box}", svd.unet)
        self.svd = svd

    @classmethod
    def load(
        cls,
        svd: str,
        settings: Settings = RELEASED,
        optimisation: Optimisation = OPTIMISATION,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> SGI2V:
        """Read the base.

        Args:
            svd: diffusers' SVD of 14 frames, folder or hub id.
            settings: How it is sampled.
            optimisation: How the latent is optimised.
            dtype: Dtype of all networks.
            device: Where they go.

        Raises:
            UserError: another base, or one that does not read; one line.
        """
        check_size(cls.name, settings.size)
        parts = base_parts(svd, BASE_FRAMES, cls.name)
        sampler = SGI2VSampler(parts["unet"], parts["vae"], parts["image_encoder"], settings, optimisation)
        sampler.to(device, dtype)
        return cls(sampler)

    def control(self, drawing: Drawing) -> np.ndarray:
        """(N, L, 4) float32 top, left, bottom, right of each track's box in pixels.

        Raises:
            UserError: a box does not begin in the frame.
        """
        resized, tracks = self.tracks(drawing)
        boxes = []
        for brush, path in zip(track_brushes(resized, tracks), paths(tracks, self.frames, click=False), strict=True):
            box = first_box(brush, path[0], self.size)
            boxes.append(box + (path - path[:1])[:, [1, 0, 1, 0]])
        return np.stack(boxes).astype(np.float32)

    @torch.no_grad()
    def __call__(self, drawing: Drawing, seed: int, on_step: OnStep | None = None) -> Tensor:
        """(L, 3, H, W) float32 in [-1, 1]; see `System`."""
        resized = stretched(drawing, self.size)
        self.svd.boxes = self.control(resized)
        return self.svd.video(resized.image, (), seed, on_step)


def first_box(brush: np.ndarray | None, start: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(4,) top, left, bottom, right around a brush, else around a start (x, y); at most the frame."""
    if brush is not None:
        rows, columns = np.flatnonzero(brush.any(1)), np.flatnonzero(brush.any(0))
        return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float64)
    half = BOX * size[0] / RELEASED.size[0] / 2
    box = np.array([start[1] - half, start[0] - half, start[1] + half, start[0] + half])
    if (start < 0).any() or (start >= size[::-1]).any():
        raise UserError(f"SG-I2V: a track starts at x, y = {start.round(1).tolist()}, expected a start in the frame")
    return box.clip(0, [size[0], size[1], size[0], size[1]])
