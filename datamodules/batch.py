"""The batch: what the data modules return and the module takes (the table in docs/data.md)."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor

# the keys of a clip's motion, from which control and motion bucket are computed
MOTION = ("flow", "flow_step", "visibility", "moving", "motion_bucket")


class Batch(TypedDict):
    """B clips of L frames of H x W pixels; B is the batch size of this rank.

    Attributes:
        video: (B, L, 3, H, W) uint8, or float in [-1, 1]; absent when latents are cached.
        latent_mean: (B, F, C, h, w) mean of the VAE's posterior, not scaled, when latents are cached.
        latent_std: Its standard deviation; absent where nothing is drawn.
        first_latent: (B, f, C, h, w) latents of what a base is given of the first frame, not scaled, when cached.
        image_embedding: (B, n, D) of the image encoder, when latents are cached.
        text: (B, n, D) embeddings of prompts, where they are known.
        text_length: (B,) int64, each prompt's own number of tokens of those.
        negative_text: (B, n, D) embeddings of the prompts that guidance leads away from.
        flow: (B, L, 2, H, W) displacement (x, y) from frame 1, which is zero: float pixels, or uint16 with `flow_step`.
        flow_step: (B,) float32, pixels per unit of a stored flow, whose zero is 32768.
        visibility: (B, L, H, W) bool, whether frame 1's pixel is seen in the frame; frame 1 is all true.
        moving: (B, 2, H, W) bool, motion masks ("l2", "squared") of the tracker's own flow, before it was filled.
        motion_bucket: (B,) float32 mean displacement in pixels, of the same.
        first_frame: (B, 3, H, W), as video.
        fps: (B,) float32 frames per second.
        position: (B,) int64, samples that the run consumed before this one, over all ranks.
        key: Names of the clips.
        replaced: (B,) int64, candidates that could not be used before this one.
    """

    video: NotRequired[Tensor]
    latent_mean: NotRequired[Tensor]
    latent_std: NotRequired[Tensor]
    first_latent: NotRequired[Tensor]
    image_embedding: NotRequired[Tensor]
    text: NotRequired[Tensor]
    text_length: NotRequired[Tensor]
    negative_text: NotRequired[Tensor]
    flow: Tensor
    flow_step: NotRequired[Tensor]
    visibility: Tensor
    moving: NotRequired[Tensor]
    motion_bucket: NotRequired[Tensor]
    first_frame: Tensor
    fps: Tensor
    position: Tensor
    key: list[str]
    replaced: NotRequired[Tensor]
