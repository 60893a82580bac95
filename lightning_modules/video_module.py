"""VideoModule: the step, the samples and the checkpoints of every module that trains over a base.

Every random draw of a step is a function of (seed, position of the sample), none touches the global generators: batch
split, number of ranks and accumulation see the same samples with the same noise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conditions import Condition, flow_to_pixels, mix, motion_of, uniform
from lightning_modules import checkpoint, record, resumed
from lightning_modules.bases.said import NEGATIVE, check_inputs
from lightning_modules.clips import control_of, fit_latents, stored_motion
from lightning_modules.conditioning import Conditioning, to_float, to_uint8
from lightning_modules.config import Noise, Sampling, Speed, Start
from lightning_modules.host import CopyStream, EarlierValue
from lightning_modules.optimizer import Plan, check_plan
from lightning_modules.pipeline_prompts import said_texts, with_texts
from lightning_modules.process.base import Denoiser, randn, sample_sigma, spread_sigma
from lightning_modules.process.bounds import bounds_of
from lightning_modules.restorable import check_resume, check_tensors, drop_idle
from lightning_modules.validation import FixedSigmaLoss, log_losses
from remoco.common.errors import UserError
from remoco.common.ranges import within
from remoco.common.tensor_files import odd_weight

if TYPE_CHECKING:  # the contract between the rooms; and what `--help` has no need of
    from datamodules.batch import Batch
    from lightning_modules.bases.base import VideoBase

# one random stream per purpose, so that adding a draw never shifts another
REGION, POSTERIOR, SIGMA, NOISE, AUG_SIGMA, AUG_NOISE, DROPOUT, INITIAL = range(8)


class VideoModule(LightningModule):
    """What trains over a base: a controller, or the base itself.

    A subclass builds its networks in `build` and returns in `architecture` what a checkpoint must share. In `steer` it
    may change the conditioning.

    Args:
        base: The image-to-video model.
        condition: How a clip's flow and visibility become the control tensor.
        noise: Training noise: its distribution, and how often conditionings are dropped.
        sampling: Steps, guidance and inputs of the sampler.
        speed: Options that change time and memory, not what is computed.
        start: Weights to start from.
        seed: Seed of everything random in a step, and of the first weights of the networks around the base.
    """

    def __init__(
        self,
        base: VideoBase,
        condition: Condition,
        noise: Noise,
        sampling: Sampling,
        speed: Speed,
        start: Start | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.base, self.condition, self.seed, self.start = base, condition, seed, start
        self.process = noise.process or base.process()
        self.noise, self.sampling, self.speed = noise.over(self.process), sampling.over(self.process), speed
        self.denoiser = Denoiser(base, self.process)
        self.copies, self.shown_loss = CopyStream(), EarlierValue()
        self.strict_loading = False  # on_load_checkpoint compares the names
        self.plan = Plan()  # `python -m lightning` sets it from `optimizer` and `lr_scheduler`
        self.whole = False  # whether the file that was loaded brought the frozen base
        self.loaded = False  # whether weights of a checkpoint are in place
        self.differs: dict[str, str] | None = None  # settings in which a resumed run's record differs, where it has any
        self.built = False
        self.idle: dict[str, nn.Parameter] = {}  # what would train but has no effect
        within("seed", seed, -(2**63), 2**63 - 1, whole=True)
        check_inputs(base.inputs(), self.sampling.inputs, "sampling.inputs.")

    # What a subclass says

    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the configuration, apart from the base."""
        return {"condition": self.condition.record(), "train_base": self.base.trained}

    def build(self) -> None:
        """Build or load the networks; `self.compute_dtype` is that of the frozen ones."""
        self.base.build(self.compute_dtype)

    def steer(self, cond: Conditioning) -> Conditioning:
        """Prepare what depends on the clips alone, for the passes that follow; returns the conditioning to use."""
        return cond

    def release(self) -> None:
        """Let go of what `steer` keeps."""

    @property
    def released(self) -> str | None:
        """The released file that it starts from, which also brings the base."""
        return self.start.file if self.start is not None and self.start.kind == "motionpro" else None

    # Building

    def setup(self, stage: str) -> None:
        """Refuse what cannot work before any weight is read."""
        record.check_trainer(self.trainer)
        record.check_data(self.trainer.datamodule, self.base, self.condition, self.sampling.inputs.get(NEGATIVE))
        # known this early when `python -m lightning` sets it on the trainer; else on_load_checkpoint sees it first
        if self.trainer.ckpt_path:
            self.check_record(checkpoint.read_record(self.trainer.ckpt_path), str(self.trainer.ckpt_path))

    def configure_model(self, compute_dtype: torch.dtype | None = None) -> None:
        """Build or load the networks; after the data is known to be there, on the device context of the strategy.

        Args:
            compute_dtype: Dtype of the frozen networks; by default the trainer's, float32 without one.
        """
        if self.built:
            return
        with torch.device("cpu"):  # its sums are numbers also where the networks have none, on the meta device
            self.validation_loss = FixedSigmaLoss(self.process, record.check_stages(self))
        self.compute_dtype = compute_dtype or record.dtype_of(self._trainer)
        data = getattr(self._trainer, "datamodule", None)
        if data is not None and self.trainer.state.fn == "fit":
            self.base.cached = getattr(data, "cached", None)
        self.build()
        self.base.decode_chunk = self.speed.decode_chunk
        self.idle = self.base.freeze_idle()
        if self.speed.compile:
            self.base.compile()
        self.built = True
        captions = getattr(data, "captions", [])
        record.check_text(captions, self.base, self.base.hashes, self.sampling.inputs.get(NEGATIVE))
        if data is not None and not captions:
            self.base.embed_text([*said_texts(self.sampling.inputs).values()])  # before the first step
        # constants; synchronised in every forward pass they would deadlock ranks with unequal validation clips
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, [k for k, _ in self.named_buffers()])

    def on_fit_start(self) -> None:
        """Refuse a latent cache of other networks than the ones that were loaded; fit what is fitted."""
        fit_latents(self.base, self.trainer)
        record.check_latent_cache(getattr(self.trainer.datamodule, "latent_hashes", None) or {}, self.base.hashes)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained, or what the configuration's `optimizer` and `lr_scheduler` say."""
        return self.plan.build(self.optimized().values(), self.trainer)

    # Draws

    def seeds(self, batch: Batch, stream: int) -> Tensor:
        """(B,) int64 on the host: one seed per sample of the batch for one purpose."""
        return mix(self.seed, batch["position"].cpu(), stream)

    def draw_noise(self, batch: Batch, stream: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal, a function of (seed, position) alone."""
        return randn(self.seeds(batch, stream).tolist(), shape, self.device)

    def draw_control(self, batch: Batch, condition: Condition | None = None) -> Tensor:
        """(B, L, 3, H, W) control tensor of the batch's clips, by the module's condition or this one."""
        return control_of(condition or self.condition, batch, self.seeds(batch, REGION))

    def draw_sigma(self, batch: Batch) -> Tensor:
        """(B,) noise levels of training."""
        spread = partial(spread_sigma, batch["position"].cpu(), mix(self.seed, SIGMA))
        draw = spread if self.noise.spread else partial(sample_sigma, self.seeds(batch, SIGMA).tolist())
        levels = self.base.trained_levels()
        return draw(self.noise.mean, self.noise.std, self.device, within=bounds_of(self.process, levels))

    # Steps

    @torch.no_grad()
    def conditioning(self, batch: Batch, strength: Tensor | None, control: Tensor | None) -> Conditioning:
        """Conditioning of the batch's clips, nothing dropped.

        Args:
            batch: The clips.
            strength: (B,) standard deviation of the noise on the first frame, in units of [-1, 1]; None for none.
            control: (B, L, 3, H, W) control tensor, for example `draw_control`'s; None for none.
        """
        motion = stored_motion(batch) or motion_of(flow_to_pixels(batch["flow"], batch.get("flow_step")))
        inputs, noise = self.base.given(batch, motion.bucket), None
        if strength is not None:
            noise = self.draw_noise(batch, AUG_NOISE, batch["first_frame"].shape[1:])
            inputs = {**inputs, "noise_aug_strength": strength}
        known = {**batch, "frames": batch["flow"].shape[1]}
        return replace(self.base.condition(known, inputs, noise), control=control)

    def inference_conditioning(
        self, batch: Batch, control: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Conditioning:
        """As `conditioning`, with the inference's noise on the first frame, a number of this dtype."""
        if self.base.frame_noise is None:
            return self.conditioning(batch, None, control)
        value = self.sampling.inputs.get("noise_aug_strength", self.base.inputs()["noise_aug_strength"].default)
        strength = torch.full((len(batch["position"]),), float(value), dtype=dtype, device=self.device)
        return self.conditioning(batch, strength, control)

    @torch.no_grad()
    def clean_latents(self, batch: Batch) -> Tensor:
        """(B, F, C, h, w) latents of the batch's clips: a sample of the posterior, cached or encoded now."""
        if "latent_mean" in batch:
            mean = batch["latent_mean"].float()
            if "latent_std" not in batch:  # nothing is drawn
                return self.base.normalise(mean)
            std = batch["latent_std"].float()
        else:
            mean, std = self.base.encode(to_float(batch["video"]))
        return self.base.normalise(mean + std * self.draw_noise(batch, POSTERIOR, mean.shape[1:]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The process's loss of a batch (eq. 9), all draws from the samples' positions."""
        strength, names = None, self.base.conditionings
        if self.base.frame_noise is not None:
            strength = sample_sigma(self.seeds(batch, AUG_SIGMA).tolist(), *self.base.frame_noise, self.device)
        cond = self.conditioning(batch, strength, self.draw_control(batch))
        clean = self.clean_latents(batch)
        sigma = self.draw_sigma(batch)
        noisy = self.process.mix(clean, self.draw_noise(batch, NOISE, clean.shape[1:]), sigma)
        keep = uniform(self.seeds(batch, DROPOUT), len(names)).to(self.device, non_blocking=True) >= self.noise.dropout
        cond = self.steer(cond).dropping(keep, names)
        losses = self.base.loss(self.process, self.denoiser(noisy, sigma, cond), clean, sigma, cond)
        loss = losses[:, cond.given :].mean()
        self.log("train/loss", loss.detach(), batch_size=len(clean))
        self.log("loss", self.shown_loss.push(loss), prog_bar=True, logger=False, batch_size=len(clean))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss at fixed sigmas with fixed noise and regions: the same draws at every validation."""
        clean, cond = self.evaluated(batch)
        noise = self.draw_noise(batch, NOISE, clean[0].shape)
        self.validation_loss.update(self.base, self.denoiser, clean, cond, noise)

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
        video = to_uint8(self.sample(batch, self.draw_control(batch))).cpu()
        return {"key": batch["key"], "fps": batch["fps"].cpu(), "video": video}

    def evaluated(self, batch: Batch) -> tuple[Tensor, Conditioning]:
        """Clean latents and conditioning at the inference's noise on the first frame; the motion is set."""
        clean = self.clean_latents(batch)
        return clean, self.steer(self.inference_conditioning(batch, self.draw_control(batch), clean.dtype))

    @torch.no_grad()
    def denoised(self, cond: Any, noise: Tensor, sampling: Sampling, on_step: Any = None) -> Tensor:
        """Latents (B, F, C, h, w) of new clips.

        Args:
            cond: Their conditioning as `steer` returned it, or their windows; without a control the base runs bare.
            noise: (B, F, C, h, w) standard normal.
            sampling: Steps, guidance and first noise level.
            on_step: Called after each step; see `sampler.euler`.
        """
        from lightning_modules.networks import sample

        return sample(self.denoiser, self.base, cond, noise, sampling, on_step, self.speed.sample_graph)

    @torch.no_grad()
    def sample(self, batch: Batch, control: Tensor | None) -> Tensor:
        """(B, L, 3, H, W) in [-1, 1]: clips generated from the batch's first frames, with its noise and motion bucket.

        Args:
            batch: The clips.
            control: (B, L, 3, H, W) control tensor, their own (`draw_control`) or another; None runs the base bare.
        """
        with self.autocast():
            cond = self.inference_conditioning(with_texts(self.base, self.sampling.inputs, batch), control)
            grid, size = self.base.grid, batch["first_frame"].shape[-2:]
            shape = (grid.latents(batch["flow"].shape[1]), self.base.channels, *grid.size(*size))
            cond = self.steer(cond)
            latents = self.denoised(cond, self.draw_noise(batch, INITIAL, shape), self.sampling)
            return self.base.finished(self.base.decode(latents), cond).clamp(-1, 1)

    @torch.no_grad()
    def denoise_once(self, batch: Batch, sigma: float) -> Tensor:
        """(B, L, 3, H, W) in [-1, 1]: true clip at noise level `sigma`, or the trained network's nearest, denoised."""
        sigma = sorted((sigma, *self.base.trained_levels()))[1]  # clamped to them
        with self.autocast():
            clean, cond = self.evaluated(batch)
            noisy = self.process.mix(clean, self.draw_noise(batch, NOISE, clean.shape[1:]), sigma)
            denoised = self.denoiser(noisy, clean.new_full((len(clean),), sigma), cond)
            return self.base.finished(self.base.decode(denoised), cond).clamp(-1, 1)

    def autocast(self) -> torch.autocast:
        """The compute dtype of the frozen networks, for calls outside of a trainer's loop."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype.itemsize < 4)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Everything but the position goes to the device."""
        position = batch["position"]  # it seeds generators on the host: left there, no step waits for the device
        with self.copies.on(device):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.copies.used(batch, device) | {"position": position}

    # Checkpoints

    def trained(self) -> dict[str, Tensor]:
        """Name -> parameter of all that is trained, with those of them that have no effect.

        The latter are in files but not in `optimized`.
        """
        idle = {id(p) for p in self.idle.values()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad or id(p) in idle}

    def optimized(self) -> dict[str, Tensor]:
        """Name -> parameter of what has a gradient."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def stored(self, whole: bool = False) -> dict[str, Tensor]:
        """Name -> tensor of all that a checkpoint holds: what is trained and fitted, or the frozen base too."""
        return record.stored(self, self.trained(), whole)

    def own_record(self) -> dict[str, Any]:
        """What the trained tensors belong to, as plain values."""
        return record.own(self) | ({} if self._trainer is None else {resumed.KEY: resumed.settings(self)})

    def base_name(self) -> dict[str, Any]:
        """The base by the names it was asked for; `base.identity` adds the hash of its weights."""
        return self.base.record()

    def check_record(self, saved: dict, name: str) -> None:
        """Raise unless a checkpoint's architecture and base are the configured; outside of fit take its condition."""
        kept = saved["architecture"]["condition"]
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if not fitting and kept != self.condition.record():
            rank_zero_info(f"condition: the checkpoint's, {kept}, instead of the configured {self.condition}")
            try:
                self.condition = Condition.from_record(kept)
            except (ValueError, TypeError) as error:
                raise UserError(f"ckpt_path: {name}: condition: {error}") from error
        record.check_architecture(saved, self.architecture(), name)
        if not saved.get("whole"):  # else it brings its own
            record.check_base(saved, self.base, self.base_name(), name)
        if fitting:
            check_plan(saved.get("optimization") or {}, self.plan, name)
            if self.differs is None and (was := resumed.read(saved, name)):
                self.differs = resumed.changed(was, resumed.settings(self), self.plan, name)
                resumed.tell(self.differs, name)

    def on_train_start(self) -> None:
        """Use the configured learning rate, over which a resume has restored the checkpoint's."""
        if self.trainer.global_step:
            resumed.use_rates(self)
        self.differs = None

    def on_save_checkpoint(self, saved: dict) -> None:
        """Keep what was trained and fitted, and add the record."""
        stored = self.stored()
        saved["state_dict"] = {k: v for k, v in saved["state_dict"].items() if k in stored}
        saved[checkpoint.KEY] = self.own_record()

    def on_load_checkpoint(self, saved: dict) -> None:
        """Refuse a checkpoint of another architecture, base or set of tensors."""
        self.loaded = True
        saved_record = checkpoint.of(saved, "the checkpoint")
        check_tensors(saved.get("state_dict"))
        self.check_record(saved_record, "the checkpoint")
        if self._trainer is not None and self.trainer.state.fn == "fit":
            if "optimizer_states" not in saved:
                raise UserError("ckpt_path: holds a model, not a run that a fit can resume")
            data = self.trainer.datamodule
            drop_idle(saved, list(self.trained()), self.optimized().keys())
            positioned = type(data).__qualname__ if hasattr(data, "position") else None
            check_resume(saved, self.optimized(), positioned, adam=self.plan.adam)
        whole = saved_record.get("whole", False)
        record.check_names(saved["state_dict"], self.stored(whole))
        if odd := odd_weight(saved["state_dict"]):
            raise UserError(f"ckpt_path: state_dict: {odd}")
        self.whole = whole
        if whole:  # it brings the base, in half precision
            self.base.identity = saved_record["base"]
        else:
            record.check_hash(saved_record, self.base.identity)

    def on_validation_start(self) -> None:
        """Say so when what is evaluated is not what was trained."""
        fit_latents(self.base, self.trainer)
        if self.trainer.state.fn != "fit" and not self.loaded and not (self.start is not None and self.start.whole):
            rank_zero_warn("--ckpt_path is missing: this evaluates an untrained controller")

    on_test_start = on_predict_start = on_validation_start
