"""What the UNet is conditioned on, as one class that travels whole; from a batch or a first frame and a drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from conditions import MOTION_NORMS, Condition, Motion, flow_to_pixels, motion_of
from remoco.common.errors import UserError

if TYPE_CHECKING:  # the contract between the rooms, and what `--help` has no need of
    from datamodules.batch import Batch
    from lightning_modules.svd import SVD

INFERENCE_SIGMA_AUG = 0.02  # noise on the first frame at inference (released configuration)
FITTING_CLIPS = 128  # of the training set, for latents that are fitted to it
IDS = ("fps", "motion_bucket_id", "sigma_aug")  # what SVD embeds as vectors, in its order
CONDITIONINGS = (
    "image_embedding",
    "fps",
    "motion_bucket_id",
    "image_latent",
    "sigma_aug",
)  # the order of the dropout's draws


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is conditioned on, for a batch of B clips.

    Attributes:
        image_latent: (B, C, H/8, W/8), mode of the noise-augmented first frame, not scaled; joined to every frame.
        image_embedding: (B, n, D) image tokens for the cross-attention; SVD has n = 1.
        ids: (B, 3) in the order of `IDS`: frames per second, motion bucket (mean displacement in pixels), sigma_aug.
        control: (B, L, 3, H, W) dx, dy in pixels, mask; None where the motion was given to the injection already.
        keep: Name in `CONDITIONINGS` -> (B,) bool, False where it is dropped; names that are absent are kept.
    """

    image_latent: Tensor
    image_embedding: Tensor
    ids: Tensor
    control: Tensor | None = None
    keep: dict[str, Tensor] | None = None

    @classmethod
    def of(
        cls,
        first: Conditioning | Tensor,
        image_embedding: Tensor | None,
        ids: Tensor | None,
        keep: Tensor | None = None,
    ) -> Conditioning:
        """A conditioning as it is, or one from image latent, image embedding, ids and a (B, 5) keep."""
        if isinstance(first, Conditioning):
            return first
        if image_embedding is None or ids is None:
            raise UserError("expected a Conditioning, or image_latent, image_embedding and ids")
        return cls(first, image_embedding, ids).dropping(keep)

    def dropping(self, keep: Tensor | None) -> Conditioning:
        """The same with dropout: `keep` is (B, 5) bool in the order of `CONDITIONINGS`; None keeps all."""
        return replace(self, keep=None if keep is None else dict(zip(CONDITIONINGS, keep.unbind(1), strict=True)))

    def without_image(self) -> Conditioning:
        """The unconditional branch of guidance: image embedding and image latent are zero, ids and motion stay."""
        return replace(
            self,
            image_latent=torch.zeros_like(self.image_latent),
            image_embedding=torch.zeros_like(self.image_embedding),
        )

    def followed_by(self, other: Conditioning) -> Conditioning:
        """Both as one batch; the motion is the injection's, which repeats it for each branch."""
        return Conditioning(
            torch.cat([self.image_latent, other.image_latent]),
            torch.cat([self.image_embedding, other.image_embedding]),
            torch.cat([self.ids, other.ids]),
        )

    def kept(self, name: str, value: Tensor) -> Tensor:
        """The value of a conditioning, zero for the clips that drop it."""
        if self.keep is None or name not in self.keep:
            return value
        return value * self.keep[name].view(-1, *[1] * (value.ndim - 1))

    def kept_ids(self) -> Tensor | None:
        """(B, 3) bool in the order of `IDS`; None when all are kept."""
        if self.keep is None:
            return None
        everything = torch.ones(len(self.ids), dtype=torch.bool, device=self.ids.device)
        return torch.stack([self.keep.get(name, everything) for name in IDS], dim=1)


def to_float(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [0, 255] or float [-1, 1] frames -> float32 [-1, 1], or another dtype."""
    return frames.to(dtype) / 127.5 - 1 if frames.dtype == torch.uint8 else frames.to(dtype)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] -> uint8 [0, 255], clamped and rounded; uint8 passes."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte() if frames.dtype.is_floating_point else frames


def fit_latents(svd: SVD, trainer: Trainer) -> None:
    """Fit latents that are fitted, on rank 0, on the first clips of the training order; not where it has been done.

    Raises:
        UserError: there is no training set with frames.
    """
    if svd.pca is None or svd.pca.fitted:
        return
    dataset = getattr(trainer.datamodule, "train_set", None)
    if dataset is None or "video" not in dataset[0]:
        raise UserError("model.latents: pca is fitted on the training set's frames, and there are none")
    if trainer.is_global_zero:
        svd.pca.fit(to_float(dataset[position]["video"]) for position in range(FITTING_CLIPS))
    svd.pca.load_state_dict(trainer.strategy.broadcast({k: v.cpu() for k, v in svd.pca.state_dict().items()}))


def control_of(condition: Condition, batch: Batch, seeds: Tensor, motion: Motion | None = None) -> Tensor:
    """(B, L, 3, H, W) control tensor of the batch's clips; `seeds` (B,) int64 draw the regions. `motion`: where the
    caller has it already.
    """
    flow, seeds = batch["flow"], seeds.to(batch["flow"].device, non_blocking=True)
    return condition(flow, batch["visibility"], seeds, motion or stored_motion(batch), batch.get("flow_step"))


def stored_motion(batch: Batch) -> Motion | None:
    """Motion bucket and masks of the tracker's own flow, where the batch has them."""
    if "moving" not in batch:
        return None
    return Motion(batch["motion_bucket"], dict(zip(MOTION_NORMS, batch["moving"].unbind(1))))


@torch.no_grad()
def conditioning_of(
    svd: SVD, condition: Condition, batch: Batch, seeds: Tensor, sigma_aug: Tensor, noise: Tensor
) -> Conditioning:
    """Conditioning of a batch's clips, nothing dropped.

    Args:
        svd: The frozen networks.
        condition: How flow and visibility become the control.
        batch: The clips.
        seeds: (B,) int64, draw the regions.
        sigma_aug: (B,) standard deviation of the noise on the first frame, in units of [-1, 1].
        noise: (B, 3, H, W) standard normal, for the first frame.
    """
    motion = stored_motion(batch) or motion_of(flow_to_pixels(batch["flow"], batch.get("flow_step")))
    control = control_of(condition, batch, seeds, motion)
    ids = {"fps": batch["fps"].float(), "motion_bucket_id": motion.bucket, "sigma_aug": sigma_aug}
    return from_first_frame(svd, batch["first_frame"], control, ids, noise, batch.get("image_embedding"))


@torch.no_grad()
def from_first_frame(
    svd: SVD,
    first_frame: Tensor,
    control: Tensor,
    ids: dict[str, Tensor],
    noise: Tensor,
    embedding: Tensor | None = None,
) -> Conditioning:
    """Conditioning of clips that start with these frames and move as the control says.

    Args:
        svd: The frozen networks.
        first_frame: (B, 3, H, W) uint8, or float in [-1, 1].
        control: (B, L, 3, H, W).
        ids: (B,) for each of `IDS`.
        noise: (B, 3, H, W) standard normal, scaled by sigma_aug and added to the frame whose latent is taken.
        embedding: (B, 1, D) of the image encoder, where it is cached.
    """
    dtype = torch.promote_types(svd.unet.dtype, torch.float32)  # float64 where the networks are
    first = to_float(first_frame, dtype)
    ids = {name: ids[name].to(dtype) for name in IDS}
    noised = first + ids["sigma_aug"][:, None, None, None] * noise
    return Conditioning(
        image_latent=svd.encode(noised)[0],
        image_embedding=svd.embed_image(first) if embedding is None else embedding,
        ids=torch.stack([ids[name] for name in IDS], dim=1),
        control=control,
    )


@torch.no_grad()
def clean_latents_of(svd: SVD, batch: Batch, noise: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """(B, L, C, H/8, W/8) scaled latents: a sample of the VAE posterior, cached or encoded now.

    Args:
        svd: The frozen networks.
        batch: The clips.
        noise: Shape of a clip's latents -> (B, *shape) standard normal.
    """
    if "latent_mean" in batch:
        mean, std = batch["latent_mean"].float(), batch["latent_std"].float()
    else:
        video = batch["video"]
        mean, std = (x.unflatten(0, video.shape[:2]) for x in svd.encode(to_float(video.flatten(0, 1))))
    return (mean + std * noise(mean.shape[1:])) * svd.latent_scale
