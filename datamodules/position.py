"""The position, the only state of the data: samples that a run's optimizer steps consumed, over all ranks."""

from __future__ import annotations

from typing import Any

from remoco.common.errors import UserError

VERSION = 1  # of the state: rises when a (seed, position) means another sample than before


class Position:
    """Counts samples from a trainer's optimizer steps; a window cut short counts nothing.

    Args:
        name: what errors call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded: int | None = None  # from a checkpoint, until a train loader is made
        self._origin = (0, 0)  # (position, global_step) at which this fit began
        self._counted: Any = None  # the trainer whose steps `_origin` counts
        self._per_step = 0  # samples of one of its steps, over all ranks

    def now(self) -> int:
        """Samples consumed so far."""
        if self._loaded is not None:
            return self._loaded
        begin, step = self._origin
        return begin if self._counted is None else begin + (self._counted.global_step - step) * self._per_step

    def rebase(self, trainer: Any, batch_size: int) -> None:
        """Count from here: the trainer's steps, batch size per rank, ranks or accumulation may be new."""
        fresh = self._loaded is None and trainer is not self._counted
        self._origin = (0 if fresh else self.now(), trainer.global_step)
        self._loaded, self._counted = None, trainer
        self._per_step = trainer.accumulate_grad_batches * batch_size * trainer.world_size

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"version": VERSION, "position": self.now()}

    def load(self, state: Any) -> None:
        """Continue from a checkpoint's state.

        Raises:
            UserError: the state is none, or of a later version, whose order may be another.
        """
        fields = state if isinstance(state, dict) else {}
        version = fields.get("version", 1)  # the first versions did not write it
        if type(version) is not int or version > VERSION:
            raise UserError(
                f"ckpt_path: the checkpoint's {self.name} has version {version!r:.80}, expected at most {VERSION}; "
                "a later version of this package reads it"
            )
        position = fields.get("position")
        if type(position) is not int or not 0 <= position < 2**62:
            raise UserError(
                f"ckpt_path: the checkpoint's {self.name} is {position!r:.80}, expected a whole number of at least 0"
            )
        self._loaded = position
