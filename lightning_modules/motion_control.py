"""MotionControlModule: what `python -m lightning fit` trains. It wires the rooms together and holds no arithmetic of its own."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric

from conditions import Condition, average_magnitude, flow_to_pixels, mix, uniform
from lightning_modules import record
from lightning_modules.conditioning import INFERENCE_SIGMA_AUG, Conditioning, as_float
from lightning_modules.diffusion import Denoiser, edm_loss, euler_sample, randn, sample_sigma
from lightning_modules.injection import attach
from lightning_modules.motion_encoder import MotionEncoder
from lightning_modules.released_base import check_bundle, read_released, released_svd
from lightning_modules.svd import SVD, add_lora

# one random stream per purpose, so that adding a draw never shifts another
REGION, POSTERIOR, SIGMA, NOISE, AUG_SIGMA, AUG_NOISE, DROPOUT, INITIAL = range(8)
# sigmas of the validation loss: the 10, 30, 50, 70 and 90 % quantiles of the training distribution N(0.7, 1.6)
VALIDATION_SIGMAS = (0.26, 0.87, 2.01, 4.66, 15.7)


class MotionControlModule(L.LightningModule):
    """Region-wise motion control of a frozen Stable Video Diffusion.

    Every random draw of a step is a function of (seed, position of the sample), none touches the global generators; the
    batch split, the number of ranks and accumulation therefore see the same samples with the same noise.

    Args:
        condition: How a clip's flow and visibility become the control tensor.
        svd: Local folder or hub id of Stable Video Diffusion in diffusers' layout. Exactly one of `svd` and `random_init`.
        revision: Revision of the hub id.
        random_init: Build the base with random weights at this size instead of loading one: `tiny`, `small` or `full`.
        init_seed: Seed of every random initial weight: a random base, motion encoder, LoRA.
        latents: With `random_init`: `vae` builds a random VAE, `space_to_depth` uses an invertible rearrangement of the pixels,
            so that samples are pictures.
        train_base: Train the UNet too; for configurations without a pretrained base.
        injection: How motion features enter the UNet: `modulation` (eq. 8), `concat` or `add` (the ablation of fig. 9).
        lora: LoRA on all `attention` projections (paper), on every `linear` layer (released weights), or null.
        lora_rank: Rank of LoRA; its alpha is the same, so its scale is 1.
        learning_rate: Constant learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        p_mean: Mean of log sigma in training.
        p_std: Standard deviation of log sigma in training.
        dropout: Probability with which each of the five conditionings is dropped, independently.
        gradient_checkpointing: Recompute activations in the backward pass, in spatial and temporal blocks.
        sample_steps: Euler steps of a sample.
        guidance: Guidance scale of the first and the last frame; linear in between.
        seed: Seed of everything random in a step.
        released: A released MotionPro file to start from, base, LoRA, encoder and modulation; with `svd` the VAE and image encoder
            come from there.
    """

    def __init__(
        self,
        condition: Condition,
        svd: str | None = None,
        revision: str | None = None,
        random_init: Literal["tiny", "small", "full"] | None = None,
        init_seed: int = 0,
        latents: Literal["vae", "space_to_depth"] = "vae",
        train_base: bool = False,
        injection: Literal["modulation", "concat", "add"] = "modulation",
        lora: Literal["attention", "linear"] | None = "attention",
        lora_rank: int = 32,
        learning_rate: float = 1e-5,
        weight_decay: float = 0.01,
        p_mean: float = 0.7,
        p_std: float = 1.6,
        dropout: float = 0.1,
        gradient_checkpointing: bool = False,
        sample_steps: int = 25,
        guidance: tuple[float, float] = (1.0, 2.5),
        seed: int = 0,
        released: str | None = None,
    ):
        super().__init__()
        if released is None and (svd is None) == (random_init is None):
            raise ValueError("model: give exactly one of svd (a folder or hub id) and random_init (tiny, small, full)")
        if released is not None and random_init is not None:
            raise ValueError("model: released brings its own base, so random_init must be null")
        if train_base and lora:
            raise ValueError("model: train_base trains the whole UNet and needs `lora: null`")
        if svd is not None and latents != "vae":
            raise ValueError("model: latents: space_to_depth goes with random_init; a pretrained SVD has its VAE")
        if lora_rank < 1:
            raise ValueError(f"model: lora_rank is {lora_rank}, expected at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"model: dropout is {dropout}, expected a probability in [0, 1)")
        if sample_steps < 1:
            raise ValueError(f"model: sample_steps is {sample_steps}, expected at least 1")
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay), ("p_std", p_std)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"model: {name} is {value}, expected a number of at least 0")
        self.condition = condition
        self.svd_path, self.revision, self.random_init, self.init_seed = svd, revision, random_init, init_seed
        self.latents, self.train_base, self.injection_kind = latents, train_base, injection
        self.lora, self.lora_rank = lora, lora_rank
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.p_mean, self.p_std, self.dropout = p_mean, p_std, dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.sample_steps, self.guidance, self.seed = sample_steps, guidance, seed
        self.released = released
        if released is not None:
            check_bundle(self.architecture())
        self.strict_loading = False  # a checkpoint holds what was trained; on_load_checkpoint compares the names
        self.loaded = False  # whether weights of a checkpoint are in place
        self.svd: SVD | None = None
        self.validation_loss = torch.nn.ModuleList(MeanMetric() for _ in VALIDATION_SIGMAS)

    # ---- building

    def setup(self, stage: str) -> None:
        """Refuse what cannot work before any weight is read."""
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise MisconfigurationException(
                f"trainer.precision is {self.trainer.precision}, expected {self.trainer.precision.split('-')[0]}-mixed: what is "
                "trained stays float32, since a step at this learning rate is lost in half precision"
            )
        shape = getattr(self.trainer.datamodule, "shape", None)
        if shape is not None:
            self.check_size(shape.height, shape.width)
        # known this early when set on the trainer, as `python -m lightning` does; else on_load_checkpoint is the first to see it
        if self.trainer.ckpt_path:
            self.check_record(record.read(self.trainer.ckpt_path), str(self.trainer.ckpt_path))

    def check_record(self, found: dict, name: str) -> None:
        """Raise unless a checkpoint's architecture and base are the configured ones; outside of fit, take its condition."""
        if self._trainer is None or self.trainer.state.fn != "fit":
            self.take_condition(found)
        record.check_architecture(found, self.architecture(), name)
        record.check_base(found, self.base_name(), name)

    def check_size(self, height: int, width: int) -> None:
        """Raise unless frames of this size fit the condition and the UNet.

        Args:
            height: Height of a frame in pixels.
            width: Width of a frame in pixels.
        """
        # 8 by the VAE, then three halvings in the UNet whose skip connections must meet again
        if height % 64 or width % 64:
            raise MisconfigurationException(
                f"data: frames of {height} x {width}: height and width must be multiples of 64 (VAE 8 x UNet 8)"
            )
        try:
            self.condition.check(height, width)
        except ValueError as error:
            raise MisconfigurationException(f"model.condition: {error}") from error

    def configure_model(self, compute_dtype: torch.dtype | None = None) -> None:
        """Build or load the networks; after the data is known to be there, on the device context of the strategy.

        Args:
            compute_dtype: Dtype of the frozen networks; by default what the trainer's precision says, float32 without one.
        """
        if self.svd is not None:
            return
        precision = self._trainer.precision.split("-")[0] if self._trainer is not None else "32"
        by_precision = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision, torch.float32)
        self.compute_dtype = compute_dtype or by_precision
        released = None
        if self.released:
            released = read_released(self.released, self.lora_rank)
            self.svd = released_svd(released, self.released, self.svd_path, self.revision)
        elif self.random_init:
            self.svd = SVD.random(self.random_init, seed=self.init_seed, latents=self.latents)
        else:
            self.svd = SVD.load(self.svd_path, revision=self.revision)
        self.svd.freeze(self.compute_dtype, train_unet=self.train_base)
        unet = self.svd.unet
        if self.lora:
            add_lora(unet, self.lora, self.lora_rank, seed=self.init_seed)
        self.motion_encoder = MotionEncoder(unet.config.block_out_channels, seed=self.init_seed)
        self.injection = attach(unet, self.injection_kind, seed=self.init_seed)
        if released is not None:
            unet.load_state_dict(released.lora, strict=False)
            self.motion_encoder.load_state_dict(released.motion_encoder)
            self.injection.load_state_dict(released.injection)
        if self.gradient_checkpointing:
            self.svd.enable_gradient_checkpointing()
        self.denoiser = Denoiser(unet)
        # buffers are constants: synchronised in every forward pass, they would deadlock ranks with unequal numbers of validation clips
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, [k for k, _ in self.named_buffers()])

    def on_fit_start(self) -> None:
        """Refuse a latent cache of other networks than the ones that were loaded."""
        cached = getattr(self.trainer.datamodule, "latents", None) or {}
        for name, found in cached.items():
            if self.svd.hashes.get(name) != found:
                raise MisconfigurationException(
                    f"data.shards: the cached latents were made with another {name} (hash {found[:12]}) than this base's "
                    f"({self.svd.hashes.get(name, 'none')[:12]}); cache them with this base or set data.use_latents to false"
                )

    def trained(self) -> dict[str, Tensor]:
        """Name -> parameter of all that is trained: encoder, injection, LoRA, and the UNet with `train_base`."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained().values(), lr=self.learning_rate, weight_decay=self.weight_decay)

    # ---- a batch

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int) -> dict:
        # the position seeds generators on the host: left there, no step waits for the device
        position = batch["position"]
        batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch | {"position": position}

    def seeds(self, batch: dict, stream: int) -> Tensor:
        """(B,) int64 on the host: one seed per sample of the batch for one purpose."""
        return mix(self.seed, batch["position"].cpu(), stream)

    def noise(self, batch: dict, stream: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal, a function of (seed, position) alone."""
        return randn(self.seeds(batch, stream).tolist(), shape, self.device)

    def control(self, batch: dict) -> Tensor:
        """(B, L, 3, H, W) control tensor of the batch's clips."""
        flow = flow_to_pixels(batch["flow"], batch.get("flow_step"))
        return self.condition(flow, batch["visibility"], self.seeds(batch, REGION).to(flow.device))

    @torch.no_grad()
    def conditioning(self, batch: dict, sigma_aug: Tensor) -> Conditioning:
        """Conditioning of the batch's clips, nothing dropped.

        Args:
            batch: A batch as in docs/data.md.
            sigma_aug: (B,) standard deviation of the noise on the first frame, in units of [-1, 1].
        """
        flow = flow_to_pixels(batch["flow"], batch.get("flow_step"))
        magnitude = average_magnitude(flow)  # read once: it is the motion mask and, as a mean, the motion bucket
        first = as_float(batch["first_frame"])
        noised = first + sigma_aug[:, None, None, None] * self.noise(batch, AUG_NOISE, first.shape[1:])
        seed = self.seeds(batch, REGION).to(flow.device, non_blocking=True)
        return Conditioning(
            control=self.condition(flow, batch["visibility"], seed, magnitude),
            image_latent=self.svd.encode(noised)[0],
            image_embedding=batch["image_embedding"] if "image_embedding" in batch else self.svd.embed_image(first),
            ids=torch.stack([batch["fps"].float(), magnitude.mean((1, 2)), sigma_aug], dim=1),
        )

    @torch.no_grad()
    def clean_latents(self, batch: dict) -> Tensor:
        """(B, L, C, H/8, W/8) scaled latents: a sample of the VAE posterior, cached or encoded now."""
        if "latent_mean" in batch:
            mean, std = batch["latent_mean"].float(), batch["latent_std"].float()
        else:
            video = batch["video"]
            mean, std = (x.unflatten(0, video.shape[:2]) for x in self.svd.encode(as_float(video.flatten(0, 1))))
        return (mean + std * self.noise(batch, POSTERIOR, mean.shape[1:])) * self.svd.latent_scale

    # ---- steps

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        sigma_aug = sample_sigma(self.seeds(batch, AUG_SIGMA).tolist(), -3.0, 0.5, self.device)
        cond = self.conditioning(batch, sigma_aug)
        clean = self.clean_latents(batch)
        sigma = sample_sigma(self.seeds(batch, SIGMA).tolist(), self.p_mean, self.p_std, self.device)
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * self.noise(batch, NOISE, clean.shape[1:])
        keep = uniform(self.seeds(batch, DROPOUT), 5).to(self.device) >= self.dropout
        self.injection.set(self.motion_encoder(cond.control))
        denoised = self.denoiser(noisy, sigma, cond.image_latent, cond.image_embedding, cond.ids, keep)
        loss = edm_loss(denoised, clean, sigma).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(clean))
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """The loss at fixed sigmas with fixed noise and regions: the same draws at every validation."""
        clean = self.clean_latents(batch)
        cond = self.conditioning(batch, clean.new_full((len(clean),), INFERENCE_SIGMA_AUG))
        noise = self.noise(batch, NOISE, clean.shape[1:])
        self.injection.prepare(self.motion_encoder(cond.control))
        for value, metric in zip(VALIDATION_SIGMAS, self.validation_loss):
            sigma = clean.new_full((len(clean),), value)
            denoised = self.denoiser(
                clean + value * noise, sigma, cond.image_latent, cond.image_embedding, cond.ids
            )
            metric.update(edm_loss(denoised, clean, sigma))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_fixed_losses("val")

    def on_test_epoch_end(self) -> None:
        self.log_fixed_losses("test")

    def log_fixed_losses(self, stage: str) -> None:
        losses = [metric.compute() for metric in self.validation_loss]
        values = {f"{stage}/loss": torch.stack(losses).mean()}
        values |= {f"{stage}/loss_sigma_{sigma:g}": loss for sigma, loss in zip(VALIDATION_SIGMAS, losses)}
        for metric in self.validation_loss:
            metric.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(values, sync_dist=False)
        elif self.trainer.num_sanity_val_steps == float("inf") and self.logger:
            # a whole validation before the first step: the value that later ones are compared with
            self.logger.log_metrics({name: value.item() for name, value in values.items()}, step=0)

    def predict_step(self, batch: dict, batch_idx: int) -> dict[str, Any]:
        video = self.sample(batch)
        return {"key": batch["key"], "fps": batch["fps"].cpu(), "video": ((video + 1) * 127.5).round().clamp(0, 255).byte().cpu()}

    # ---- what callbacks show

    @torch.no_grad()
    def sample(self, batch: dict) -> Tensor:
        """Generate the batch's clips from their first frames and controls.

        Returns:
            (B, L, 3, H, W) in [-1, 1]; the same for the same weights and batch.
        """
        with self.autocast():
            cond = self.conditioning(batch, torch.full((len(batch["key"]),), INFERENCE_SIGMA_AUG, device=self.device))
            frames = cond.control.shape[1]
            noise = self.noise(batch, INITIAL, (frames, self.svd.latent_channels, *cond.image_latent.shape[2:]))
            return self.generate(cond, noise, self.sample_steps, self.guidance)

    @torch.no_grad()
    def generate(self, cond: Conditioning, noise: Tensor, steps: int, guidance: tuple[float, float]) -> Tensor:
        """Frames (B, L, 3, H, W) in [-1, 1] from standard normal noise (B, L, C, H/8, W/8).

        Args:
            cond: Conditioning of the clips.
            noise: What the sampler starts from.
            steps: Euler steps.
            guidance: Guidance scale of the first and the last frame.
        """
        # the motion depends on the clip alone, so its features are computed once, not per step
        self.injection.prepare(self.motion_encoder(cond.control))
        latents = euler_sample(
            self.denoiser, noise, cond.image_latent, cond.image_embedding, cond.ids, steps=steps, guidance=guidance
        )
        return self.svd.decode(latents).clamp(-1, 1)

    @torch.no_grad()
    def denoise_once(self, batch: dict, sigma: float) -> Tensor:
        """One denoising step from the true clip at noise level `sigma`, as (B, L, 3, H, W) in [-1, 1]."""
        with self.autocast():
            clean = self.clean_latents(batch)
            cond = self.conditioning(batch, clean.new_full((len(clean),), INFERENCE_SIGMA_AUG))
            noisy = clean + sigma * self.noise(batch, NOISE, clean.shape[1:])
            self.injection.prepare(self.motion_encoder(cond.control))
            level = clean.new_full((len(clean),), sigma)
            denoised = self.denoiser(noisy, level, cond.image_latent, cond.image_embedding, cond.ids)
            return self.svd.decode(denoised).clamp(-1, 1)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    # ---- checkpoints

    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the configuration, apart from the frozen base."""
        return {
            "condition": self.condition.record(),
            "injection": self.injection_kind,
            "lora": self.lora,
            "lora_rank": self.lora_rank if self.lora else None,
            "train_base": self.train_base,
            "latents": self.latents,
        }

    def base_name(self) -> dict[str, Any]:
        """The base by the names it was asked for; `svd.identity` adds the hash of its weights."""
        if self.random_init:
            return {"random_init": self.random_init, "init_seed": self.init_seed}
        if self.released:
            return {"released": self.released}
        return {"svd": self.svd_path, "revision": self.revision}

    def take_condition(self, found: dict) -> None:
        """Use the condition a checkpoint was trained with, and say so."""
        kept = found["architecture"]["condition"]
        if kept != self.condition.record():
            rank_zero_info(f"condition: the checkpoint's, {kept}, in place of the configured {self.condition}")
            self.condition = Condition.from_record(kept)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        trained = self.trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint[record.KEY] = {"architecture": self.architecture(), "base": self.svd.identity}

    def on_validation_start(self) -> None:
        """Say so when what is evaluated is not what was trained."""
        if self.trainer.state.fn != "fit" and not self.loaded and self.released is None:
            rank_zero_warn("no --ckpt_path is given: this evaluates the controller as initialised, not a trained one")

    on_test_start = on_predict_start = on_validation_start

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.loaded = True
        found = record.of(checkpoint, "the checkpoint")
        self.check_record(found, "the checkpoint")
        record.check_hash(found, self.svd.identity)
        record.check_names(checkpoint["state_dict"], self.trained())
