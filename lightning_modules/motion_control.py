"""MotionControlModule: what `python -m lightning fit` trains. It wires the rooms together, without arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from conditions import Condition, mix, uniform
from lightning_modules import conditioning, record
from lightning_modules.conditioning import INFERENCE_SIGMA_AUG, Conditioning
from lightning_modules.diffusion import edm_loss, randn, sample_sigma, spread_sigma
from lightning_modules.optimizer import Schedule
from lightning_modules.validation import FixedSigmaLoss, log_losses

if TYPE_CHECKING:  # the contract between the rooms; nothing of the other is imported
    from datamodules.batch import Batch

# one random stream per purpose, so that adding a draw never shifts another
REGION, POSTERIOR, SIGMA, NOISE, AUG_SIGMA, AUG_NOISE, DROPOUT, INITIAL = range(8)


class MotionControlModule(record.RecordedModule):
    """Region-wise motion control of a frozen Stable Video Diffusion.

    Every random draw of a step is a function of (seed, position of the sample), none touches the global generators:
    batch split, number of ranks and accumulation see the same samples with the same noise.

    Args:
        condition: How a clip's flow and visibility become the control tensor.
        svd: Local folder or hub id of Stable Video Diffusion in diffusers' layout, or `embedded` for the small base of
            plain sprites in the package; this or `random_init`.
        revision: Revision of the hub id.
        random_init: Build the base with random weights of this size instead of loading one.
        init_seed: Seed of every random initial weight: a random base, motion encoder, LoRA.
        latents: With `random_init`: `vae` builds a random VAE, `space_to_depth` rearranges the pixels invertibly, so
            that samples are pictures, `pca` keeps their first components, fitted once to the training set.
        pca_channels: How many components.
        train_base: Train the UNet too; for configurations without a pretrained base.
        injection: How motion features enter the UNet: `modulation` (eq. 8), `concat` or `add` (the ablation of fig. 9),
            or the class path of your own.
        lora: LoRA on all `attention` projections (paper), on every `linear` layer (released weights), or null.
        lora_rank: Rank of LoRA; its alpha is the same, so its scale is 1.
        flow_scale: Factor on the motion encoder's first weights of dx and dy; below 1 pixels do not drown the mask.
        learning_rate: Learning rate of AdamW, the default optimizer.
        weight_decay: Weight decay of AdamW, the default optimizer.
        schedule: AdamW's moments, warm-up and decay.
        p_mean: Mean of log sigma in training.
        p_std: Standard deviation of log sigma in training.
        spread_sigmas: Spread sigma evenly over neighbouring samples, in place of independent draws.
        dropout: Probability with which each of the five conditionings is dropped, independently.
        gradient_checkpointing: Recompute activations in the backward pass: `none`, of the `top` level, which holds most
            of them, or of `all` levels; false and true are the first and the last.
        vae_precision: Of the VAE on a GPU: `tf32` has 10 bits of mantissa in its products, `bfloat16` 7.
        compile_unet: Compile the UNet at the first step, which takes minutes.
        decode_chunk: Frames that the VAE decodes at once, all by default; parts take less memory and differ at borders.
        sample_graph: Record a sampler's step as a CUDA graph, and replay it for the others.
        sample_steps: Euler steps of a sample.
        sample_sigma_max: Noise level that a sample starts from.
        guidance: Guidance scale of the first and the last frame; linear in between.
        motion_bucket_id: Mean displacement in pixels that a drawing's sample is told, or `drawing` for its own.
        seed: Seed of everything random in a step.
        adapter: An `adapter.safetensors` or a checkpoint to start from; with `train_base` its UNet is the start too.
        released: A released MotionPro file: base and start; with `svd` the VAE and image encoder come from there.
    """

    def __init__(
        self,
        condition: Condition,
        svd: str | None = None,
        revision: str | None = None,
        random_init: Literal["micro", "tiny", "small", "full"] | None = None,
        init_seed: int = 0,
        latents: Literal["vae", "space_to_depth", "pca"] = "vae",
        pca_channels: int = 8,
        train_base: bool = False,
        injection: str = "modulation",
        lora: Literal["attention", "linear"] | None = "attention",
        lora_rank: int = 32,
        flow_scale: float = 1.0,
        learning_rate: float = 1e-5,
        weight_decay: float = 0.01,
        schedule: Schedule | None = None,
        p_mean: float = 0.7,
        p_std: float = 1.6,
        spread_sigmas: bool = False,
        dropout: float = 0.1,
        gradient_checkpointing: bool | Literal["none", "top", "all"] = False,
        vae_precision: Literal["float32", "tf32", "bfloat16"] = "tf32",
        compile_unet: bool = False,
        decode_chunk: int | None = None,
        sample_graph: bool = False,
        sample_steps: int = 25,
        sample_sigma_max: float = 700.0,
        guidance: tuple[float, float] = (1.0, 2.5),
        motion_bucket_id: float | Literal["drawing"] = 17.0,
        seed: int = 0,
        released: str | None = None,
        adapter: str | None = None,
    ):
        super().__init__()
        self.condition = condition
        self.svd_path, self.revision, self.random_init, self.init_seed = svd, revision, random_init, init_seed
        self.latents, self.pca_channels, self.train_base = latents, pca_channels, train_base
        self.injection_kind, self.lora, self.lora_rank = injection, lora, lora_rank
        self.released, self.adapter, self.flow_scale = released, adapter, flow_scale
        self.learning_rate, self.weight_decay, self.schedule = learning_rate, weight_decay, schedule or Schedule()
        self.p_mean, self.p_std, self.spread_sigmas, self.dropout = p_mean, p_std, spread_sigmas, dropout
        self.gradient_checkpointing, self.seed = gradient_checkpointing, seed
        self.vae_precision, self.compile_unet = vae_precision, compile_unet
        self.decode_chunk, self.sample_graph = decode_chunk, sample_graph
        self.sample_steps, self.sample_sigma_max, self.guidance = sample_steps, sample_sigma_max, guidance
        self.motion_bucket_id = motion_bucket_id
        self.check_arguments()
        self.validation_loss = FixedSigmaLoss()

    def setup(self, stage: str) -> None:
        """Refuse what cannot work before any weight is read."""
        record.check_precision(self.trainer.precision)
        if shape := getattr(self.trainer.datamodule, "shape", None):
            record.check_size(self.condition, shape.height, shape.width)
        record.check_fill(self.condition, getattr(self.trainer.datamodule, "filled", None))
        # known this early when `python -m lightning` sets it on the trainer; else on_load_checkpoint sees it first
        if self.trainer.ckpt_path:
            self.check_record(record.read(self.trainer.ckpt_path), str(self.trainer.ckpt_path))

    def configure_model(self, compute_dtype: torch.dtype | None = None) -> None:
        """Build or load the networks; after the data is known to be there, on the device context of the strategy.

        Args:
            compute_dtype: Dtype of the frozen networks; by default the trainer's, float32 without one.
        """
        if hasattr(self, "networks"):
            return
        self.compute_dtype = compute_dtype or record.dtype_of(self._trainer)
        from lightning_modules.networks import build_networks  # diffusers takes seconds, and `--help` has no need of it

        self.networks = build_networks(
            self.compute_dtype, self.svd_path, self.revision, self.random_init, self.init_seed, self.latents,
            self.released, self.adapter, self.train_base, self.injection_kind, self.lora, self.lora_rank,
            self.gradient_checkpointing, self.vae_precision, self.compile_unet, self.pca_channels, self.flow_scale,
            self.decode_chunk, self.sample_graph,
        )  # fmt: skip
        self.svd, self.motion_encoder, self.injection = self.networks[:3]  # registered: they have the weights
        self.denoiser = self.networks.denoiser
        # constants; synchronised in every forward pass they would deadlock ranks with unequal validation clips
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, [k for k, _ in self.named_buffers()])

    def on_fit_start(self) -> None:
        """Refuse a latent cache of other networks than the ones that were loaded; fit what is fitted."""
        conditioning.fit_latents(self.svd, self.trainer)
        record.check_latent_cache(getattr(self.trainer.datamodule, "latent_hashes", None) or {}, self.svd.hashes)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained, or what the configuration's `optimizer` and `lr_scheduler` say."""
        rates = (self.schedule, self.learning_rate, self.weight_decay)
        return self.plan.build(self.optimized().values(), *rates, self.trainer)

    def seeds(self, batch: Batch, stream: int) -> Tensor:
        """(B,) int64 on the host: one seed per sample of the batch for one purpose."""
        return mix(self.seed, batch["position"].cpu(), stream)

    def noise(self, batch: Batch, stream: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal, a function of (seed, position) alone."""
        return randn(self.seeds(batch, stream).tolist(), shape, self.device)

    def control(self, batch: Batch) -> Tensor:
        """(B, L, 3, H, W) control tensor of the batch's clips."""
        return conditioning.control_of(self.condition, batch, self.seeds(batch, REGION))

    def conditioning(self, batch: Batch, sigma_aug: Tensor) -> Conditioning:
        """Conditioning of the batch's clips; `sigma_aug` (B,) is the noise on the first frame, in units of [-1, 1]."""
        noise = self.noise(batch, AUG_NOISE, batch["first_frame"].shape[1:])
        seeds = self.seeds(batch, REGION)
        return conditioning.conditioning_of(self.svd, self.condition, batch, seeds, sigma_aug, noise)

    def steer(self, cond: Conditioning) -> None:
        """Give the UNet the motion of the clips, for the passes that follow."""
        self.injection.set(self.motion_encoder(cond.control))

    def clean_latents(self, batch: Batch) -> Tensor:
        """(B, L, C, H/8, W/8) scaled latents of the batch's clips."""
        return conditioning.clean_latents_of(self.svd, batch, partial(self.noise, batch, POSTERIOR))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The EDM loss of a batch (eq. 9), all draws from the samples' positions."""
        sigma_aug = sample_sigma(self.seeds(batch, AUG_SIGMA).tolist(), -3.0, 0.5, self.device)
        cond = self.conditioning(batch, sigma_aug)
        clean = self.clean_latents(batch)
        spread = partial(spread_sigma, batch["position"].cpu(), mix(self.seed, SIGMA))
        draw = spread if self.spread_sigmas else partial(sample_sigma, self.seeds(batch, SIGMA).tolist())
        sigma = draw(self.p_mean, self.p_std, self.device)
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * self.noise(batch, NOISE, clean.shape[1:])
        keep = uniform(self.seeds(batch, DROPOUT), 5).to(self.device, non_blocking=True) >= self.dropout
        self.steer(cond)
        loss = edm_loss(self.denoiser(noisy, sigma, cond.dropping(keep)), clean, sigma).mean()
        self.log("train/loss", loss.detach(), batch_size=len(clean))
        self.log("loss", self.shown_loss.push(loss), prog_bar=True, logger=False, batch_size=len(clean))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss at fixed sigmas with fixed noise and regions: the same draws at every validation."""
        clean, cond = self.evaluated(batch)
        self.validation_loss.update(self.denoiser, clean, cond, self.noise(batch, NOISE, clean.shape[1:]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`; a benchmark's pairs have no clip to denoise, `callbacks.Benchmark` samples them."""
        if "pair" not in batch:
            self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and its parts."""
        log_losses(self, "val", self.validation_loss)

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and its parts, where the data have clips."""
        if getattr(self.trainer.datamodule, "has_clips", True):
            log_losses(self, "test", self.validation_loss)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Generate the batch's clips, uint8 on the host."""
        video = conditioning.to_uint8(self.sample(batch)).cpu()
        return {"key": batch["key"], "fps": batch["fps"].cpu(), "video": video}

    def evaluated(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        """Clean latents and conditioning at the inference's noise on the first frame; the motion is set."""
        clean = self.clean_latents(batch)
        cond = self.conditioning(batch, clean.new_full((len(clean),), INFERENCE_SIGMA_AUG))
        self.steer(cond)
        return clean, cond

    @torch.no_grad()
    def sample(self, batch: Batch, controlled: bool = True) -> Tensor:
        """(B, L, 3, H, W) in [-1, 1]: clips generated from the batch's first frames and, if `controlled`, controls."""
        with self.autocast():
            cond = self.conditioning(batch, torch.full((len(batch["key"]),), INFERENCE_SIGMA_AUG, device=self.device))
            shape = (batch["flow"].shape[1], self.svd.latent_channels, *cond.image_latent.shape[2:])
            cond = cond if controlled else replace(cond, control=None)
            noise, sigma = self.noise(batch, INITIAL, shape), self.sample_sigma_max
            latents = self.networks.sample(cond, noise, self.sample_steps, self.guidance, sigma_max=sigma)
            return self.svd.decode(latents).clamp(-1, 1)

    @torch.no_grad()
    def denoise_once(self, batch: Batch, sigma: float) -> Tensor:
        """One denoising step from the true clip at noise level `sigma`, as (B, L, 3, H, W) in [-1, 1]."""
        with self.autocast():
            clean, cond = self.evaluated(batch)
            noisy = clean + sigma * self.noise(batch, NOISE, clean.shape[1:])
            return self.svd.decode(self.denoiser(noisy, clean.new_full((len(clean),), sigma), cond)).clamp(-1, 1)
