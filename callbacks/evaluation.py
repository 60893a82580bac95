"""One evaluation: validation clips are generated once, and all that is measured or shown reads them."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from callbacks.control_error import ControlErrors
from callbacks.generated import Generated, Reader, rows_of, sampling
from callbacks.other_control import evaluated
from callbacks.samples import Samples
from callbacks.video_metrics import VideoMetrics
from remoco.common.errors import UserError


class Evaluation(Callback):
    """Generates validation clips, each once, for the parts that are named: samples, metrics, control errors.

    Noise is a function of (seed, position), so every validation samples the same clips. Averaged weights are used where
    `EMA` is there. A validation that was killed is repeated whole. `test` does metrics and control errors. Of several
    `Evaluation`s, the last one that names a part does it in `test`: an overlay's metrics, not the run's own.

    Args:
        samples: Strips to look at.
        metrics: FVD, FID and others.
        control_errors: How far objects are from their tracks, for data that know these.
        every_n_validations: Run at every n-th validation of a fit; `validate`, `test` and `fast_dev_run` always run.
    """

    def __init__(
        self,
        samples: Samples | None = None,
        metrics: VideoMetrics | None = None,
        control_errors: ControlErrors | None = None,
        every_n_validations: int = 1,
    ) -> None:
        self.samples, self.metrics, self.control_errors = samples, metrics, control_errors
        if not self.parts():
            raise UserError("Evaluation: has nothing to do, expected samples, metrics or control_errors")
        if every_n_validations < 1:
            raise UserError(f"Evaluation.every_n_validations is {every_n_validations}, not positive")
        self.every_n_validations = every_n_validations
        self.headlines = () if control_errors is None else control_errors.headlines
        self._validations = 0
        self._loaded_at = -1
        self._left: dict[Reader, int] = {}  # how many clips of this rank each has still to read

    def parts(self) -> dict[str, Reader]:
        """What is done, by the argument's name, in the order of the reports."""
        named = {name: getattr(self, name) for name in ("samples", "metrics", "control_errors")}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def state_key(self) -> str:
        """Key that separates an overlay's from the run's own."""
        metrics = self.metrics
        more = {"metrics": [each.name for each in metrics.metrics], "mask_ratio": metrics.mask_ratio} if metrics else {}
        return self._generate_state_key(parts=list(self.parts()), **more)

    def state_dict(self) -> dict[str, Any]:
        """How many validations are over, so that a resume keeps the schedule, and the last step with its samples."""
        sampled_at = -1 if self.samples is None else self.samples.sampled_at
        return {"validations": self._validations, "sampled_at": sampled_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The samples' step is for a fit alone: `validate` samples the same step again."""
        self._validations, self._loaded_at = int(state_dict["validations"]), int(state_dict["sampled_at"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the step: `validate` does not restore it."""
        if self.samples is not None:
            self.samples.loaded_step = checkpoint["global_step"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is computed."""
        if stage in ("fit", "validate", "test"):
            for part in self.parts().values():
                part.setup(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not repeat the samples of the step a run continues from, where it has them."""
        if self.samples is not None:
            self.samples.sampled_at = self._loaded_at

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Samples on their schedule."""
        if self.samples is not None:
            self.samples.on_schedule(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step's."""
        self.on_train_batch_start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, with this rank's share of the clips."""
        alone = trainer.state.fn != "fit" or trainer.fast_dev_run  # no later validation would do it
        due = alone or (self._validations + 1) % self.every_n_validations == 0
        self._begin(trainer, pl_module, list(self.parts().values()) if due and not trainer.sanity_checking else [])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, but for samples and what an overlay does."""
        callbacks: list[Any] = trainer.callbacks
        later = [each for each in callbacks[callbacks.index(self) + 1 :] if isinstance(each, Evaluation)]
        parts = self.parts()
        parts.pop("samples", None)
        own = [part for name, part in parts.items() if not any(name in each.parts() for each in later)]
        self._begin(trainer, pl_module, own)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[Reader]) -> None:
        loader = evaluated(trainer)
        counts = {part: part.begin(trainer, pl_module, loader) for part in parts}
        # rank r has clips r, r + ranks, ...
        self._left = {
            part: max(0, -(-(min(count, len(loader.dataset)) - trainer.global_rank) // trainer.world_size))
            for part, count in counts.items()
        }

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Generate this batch's clips and give them to each part."""
        takes = {part: min(left, len(batch["key"])) for part, left in self._left.items() if left}
        if not takes:
            return
        with sampling(trainer, pl_module):
            generated = Generated(trainer, pl_module, rows_of(batch, range(max(takes.values()))))
            # whoever reads most comes first: so the batch is generated in one pass
            for part in sorted(takes, key=lambda part: -takes[part]):
                part.read(generated, range(takes[part]))
                self._left[part] -= takes[part]

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, while the averaged weights are in place."""
        for part in self._left:
            part.report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        for part in self._left:
            part.report(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count."""
        self._validations += not trainer.sanity_checking
