"""FVD and FID of generated against reference clips, at validation."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torchmetrics.image.fid import FrechetInceptionDistance

from callbacks.control_error import write_metrics
from callbacks.loggers import log_protocol
from callbacks.run_folder import rank_zero_print, run_folder
from callbacks.sample_logger import sampling
from lightning_modules.conditioning import to_uint8
from metrics import FrechetVideoDistance, I3DFeatures, InceptionFeatures, RandomFrameFeatures, RandomVideoFeatures
from metrics.frechet import warn_if_few


class VideoMetrics(Callback):
    """Generates every validation clip once, over all ranks, and logs FVD (clips) and FID (all their frames).

    The names say which features: `val/fvd_i3d_styleganv` and `val/fid_inception` with the networks of the literature,
    `val/fvd_random_features` and `val/fid_random_features` with seeded random ones, which compare runs of one project
    only. The protocol (network, resize, frames, n, reference) is printed and logged as text beside each number. The
    networks live here and not on the module, whose checkpoints they would fill.

    Args:
        fvd_network: path of `i3d_torchscript.pt`; none = seeded random features.
        fid_network: path of a TorchScript Inception V3; none = seeded random features.
        clips: use only the first clips of the validation set, since sampling is dear; none = all.
        every_n_validations: sample at every n-th validation of a fit.
    """

    fvd: FrechetVideoDistance  # both from `setup` on
    fid: FrechetInceptionDistance

    def __init__(
        self,
        fvd_network: str | None = None,
        fid_network: str | None = None,
        clips: int | None = None,
        every_n_validations: int = 1,
    ) -> None:
        for name, path in (("fvd_network", fvd_network), ("fid_network", fid_network)):
            if path is not None and not Path(path).is_file():
                raise MisconfigurationException(f"VideoMetrics.{name} {path}: no such file (TorchScript)")
        if clips is not None and clips < 2:
            raise MisconfigurationException(f"VideoMetrics.clips must be at least 2, got {clips}")
        if every_n_validations < 1:
            raise MisconfigurationException(f"VideoMetrics.every_n_validations is {every_n_validations}, not positive")
        self.fvd_network = fvd_network
        self.fid_network = fid_network
        self.clips = clips
        self.every_n_validations = every_n_validations
        self._left = 0
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        """How many validations are over, so that a resume keeps the schedule."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As saved."""
        self._validations = int(state_dict["validations"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the feature networks, so that a wrong file is found before training."""
        if stage not in ("fit", "validate") or hasattr(self, "fvd"):
            return
        try:
            video = RandomVideoFeatures() if self.fvd_network is None else I3DFeatures(self.fvd_network)
            frame = RandomFrameFeatures() if self.fid_network is None else InceptionFeatures(self.fid_network)
        except ValueError as error:
            raise MisconfigurationException(f"VideoMetrics: {error}") from error
        self.fvd = FrechetVideoDistance(video)
        self.fid = FrechetInceptionDistance(feature=frame, antialias=False)
        self.fid.orig_dtype = torch.float32  # set by its update; a rank without a clip computes too

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, with this rank's share of the first `clips` clips (rank r has clips r, r + ranks, ...)."""
        self.fvd.to(pl_module.device).reset()
        self.fid.to(pl_module.device).reset()
        self._left = 0
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate" or (self._validations + 1) % self.every_n_validations == 0:
            everything = len(trainer.val_dataloaders.dataset)
            cap = everything if self.clips is None else min(self.clips, everything)
            self._left = max(0, -(-(cap - trainer.global_rank) // trainer.world_size))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Generate this batch's clips and add both sides."""
        if self._left == 0 or trainer.sanity_checking:
            return
        if "video" not in batch:
            raise MisconfigurationException("VideoMetrics needs validation clips with frames, not latents only")
        batch = _first(batch, self._left)
        self._left -= len(batch["key"])
        with sampling(trainer, pl_module):
            generated = to_uint8(pl_module.sample(batch))
        for videos, real in ((to_uint8(batch["video"]), True), (generated, False)):
            self.fvd.update(videos, real=real)
            for frames in videos:  # clip by clip: frames of a whole batch may not fit beside the model
                self.fid.update(frames, real=real)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count."""
        self._validations += not trainer.sanity_checking

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the distances, from the sums of all ranks."""
        if trainer.sanity_checking:
            return
        own = torch.tensor(int(self.fvd.fake_n), device=pl_module.device)
        count = int(trainer.strategy.reduce(own, reduce_op="sum"))
        if count == 0:
            return
        if count < 2:
            rank_zero_warn(
                f"VideoMetrics: no distance of distributions with {count} validation clip, at least 2 are needed"
            )
            return
        numbers = {
            f"val/fvd_{self.fvd.feature.name}": self.fvd.compute().float(),
            f"val/fid_{self.fid.inception.name}": self.fid.compute(),
        }
        inception: Any = self.fid.inception
        warn_if_few(count * (self.fvd.frames or 0), inception.num_features, "frames")
        fid_protocol = f"{inception.protocol}; all frames of the same {count} clips; reference: raw; float64"
        for (name, value), protocol in zip(numbers.items(), (self.fvd.protocol, fid_protocol), strict=True):
            pl_module.log(name, value, sync_dist=True)  # equal on all ranks already; this keeps Lightning quiet
            rank_zero_print(f"{name} = {value:.4f}   [{protocol}]")
            if trainer.is_global_zero:
                log_protocol(trainer, name, protocol)
                kept = {"value": float(value), "protocol": protocol, "n": count}
                write_metrics(run_folder(trainer) / "metrics.json", {name.removeprefix("val/"): kept})


def _first(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The first `count` clips of a batch."""
    return {key: value[:count] for key, value in batch.items()}
