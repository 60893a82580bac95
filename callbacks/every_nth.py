"""What is dear and therefore done at every n-th validation, on the first clips of the set."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from remoco.common.errors import UserError


class EveryNthValidation(Callback):
    """Counts a fit's validations over its resumes, and shares the clips out among the ranks.

    Args:
        clips: Number of clips, from the start of the set; null means all.
        every_n_validations: Run at every n-th validation of a fit; `validate` and `test` always run.
    """

    def __init__(self, clips: int | None, every_n_validations: int) -> None:
        name = type(self).__name__
        if clips is not None and clips < 2:
            raise UserError(f"{name}.clips must be at least 2, got {clips}")
        if every_n_validations < 1:
            raise UserError(f"{name}.every_n_validations is {every_n_validations}, not positive")
        self.clips = clips
        self.every_n_validations = every_n_validations
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        """How many validations are over, so that a resume keeps the schedule."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = int(state_dict["validations"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count."""
        self._validations += not trainer.sanity_checking

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the validation that begins is one of them."""
        return trainer.state.fn != "fit" or (self._validations + 1) % self.every_n_validations == 0

    def share(self, trainer: Trainer, loader: Any) -> int:
        """How many of the first `clips` clips this rank has (rank r has clips r, r + ranks, ...)."""
        everything = len(loader.dataset)
        cap = everything if self.clips is None else min(self.clips, everything)
        return max(0, -(-(cap - trainer.global_rank) // trainer.world_size))
