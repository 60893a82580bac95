"""Checkpoints that are whole or absent: atomic writing, safe reading, and finding `last` and `best` by name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.run_folder import run_folder
from lightning_modules.checkpoint import read_checkpoint
from remoco.common.errors import UserError
from remoco.common.whole_files import atomic_file


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its target and renames it into place; reads tensors and plain values only.

    At any moment, kill -9 and power loss included, the target is the last complete checkpoint: the new file is flushed
    to the disk before the rename (Lightning's own writer moves from `$TMPDIR`, which across file systems is a plain
    copy). A plugin: `trainer.plugins: [{class_path: callbacks.AtomicCheckpointIO}]`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`, or leave `path` as it was.

        Raises:
            UserError: the disk is full or not writable, or `path` is not a local path.
        """
        target = _local(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of runs that were killed while writing
                leftover.unlink(missing_ok=True)
            with atomic_file(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch's zip writer reports a failed write as a RuntimeError raised on top of the OSError
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise UserError(
                f"checkpoint {target}: not written ({cause.strerror or cause}); the file before it is untouched"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read `path` by our own reader on the CPU, whatever the arguments say: the file may be untrusted.

        Raises:
            UserError: no such file, damaged, or holding more than tensors and plain values.
        """
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file, if it is there. The path of an old best may come from an untrusted checkpoint."""
        target = _local(path)
        if ".." in target.parts or target.suffix != ".ckpt":
            raise UserError(f"checkpoint {target}: is not a checkpoint of this run, so it is not deleted")
        target.unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """`checkpoints/best.ckpt` of the run folder: the state at the validation with the lowest monitored value.

    Args:
        monitor: the logged value to minimise.
    """

    def __init__(self, monitor: str = "val/loss") -> None:
        super().__init__(filename="best", monitor=monitor, save_on_train_epoch_end=False, enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run folder, whatever the logger."""
        self.dirpath = self.dirpath or str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the best value so far, also where the run folder was moved or renamed."""
        old, new = state_dict.get("dirpath"), str(self.dirpath)
        if old != new and old and (Path(new) / "best.ckpt").is_file():

            def moved(value: Any) -> Any:
                return new + value[len(old) :] if isinstance(value, str) and value.startswith(old) else value

            best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = {name: moved(value) for name, value in state_dict.items()} | {"best_k_models": best}
        super().load_state_dict(state_dict)


def resolve_checkpoint(trainer: Trainer, ckpt_path: str | None, may_start: bool = False) -> str | None:
    """Turn `last` and `best` into the file in the trainer's run folder; leave anything else as it is.

    Lightning itself only warns when there is no last checkpoint, and knows `best` only in the process that made it.

    Args:
        trainer: Its loggers say where the run folder is.
        ckpt_path: As on the command line.
        may_start: Whether `last` is None where the run has no checkpoint at all. What is there under the name is
            returned, whatever it is: a damaged file is reported where it is read, never skipped.

    Raises:
        UserError: the run folder has no such checkpoint, or, with `may_start`, other ones alone.
    """
    if ckpt_path not in ("last", "best"):
        return ckpt_path
    path = run_folder(trainer) / "checkpoints" / f"{ckpt_path}.ckpt"
    if may_start and ckpt_path == "last":
        if os.path.lexists(path):
            return str(path)
        if not (others := sorted(other.name for other in path.parent.glob("*.ckpt"))):
            return None
        raise UserError(
            f"ckpt_path last: {path.parent} holds {others[0]}, but no last.ckpt; give the path of the one to continue "
            "from, or start a new run without --ckpt_path"
        )
    if not path.is_file():
        raise UserError(f"ckpt_path {ckpt_path}: there is no checkpoint {path}")
    return str(path)


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise UserError(f"checkpoint {path}: expected a local path, not a URL")
    return Path(path)
