"""The run's folder: one place for logs, checkpoints and samples, with a stable name and one run at a time in it."""

import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from tqdm import tqdm

from callbacks.loggers import is_mlflow, log_hyperparameters
from remoco.common.errors import UserError
from remoco.common.whole_files import write_atomic

LOCK = ".lock"
MARKER = ".run"  # of a folder that this program made for one run
LOGGED = (LOCK, MARKER, "events.out.tfevents.", "hparams.yaml", "metrics.csv", "wandb")  # what loggers write at once


def run_folder(trainer: Trainer) -> Path:
    """Where the run keeps its files: its loggers' folder, else `save_dir/NAME` of a logger, else `default_root_dir`.

    Like `trainer.log_dir`, but without its broadcast, so that one rank may ask alone, and never a folder that runs
    share, as Weights & Biases' `save_dir` is. With MLflow, whose runs are in a database or on a server, it is
    `runs/NAME` below `default_root_dir`.
    """
    for logger in trainer.loggers:
        if folder := getattr(logger, "log_dir", None):
            return Path(folder)
    for logger in trainer.loggers:
        if is_mlflow(logger):
            return Path(trainer.default_root_dir, "runs", logger._run_name or logger._experiment_name)
        if logger.save_dir is not None:
            name = getattr(logger, "_name", None) or logger.name  # W&B calls its project `name`
            return Path(logger.save_dir) / str(name or "run")
    return Path(trainer.default_root_dir)


class RunFolder(Callback):
    """Keeps runs apart in a folder with a stable name.

    A fit that does not continue the run in the folder moves that run aside to `<folder>.previous-N`, so a second run
    neither dies nor overwrites. What was killed before it logged, sampled or saved anything is no run, and its folder
    is used again. Two fits at once in one folder are an error; at the end of a fit it says where everything is. Only a
    folder that this program made for a run, with its marker inside, is ever moved. Works with any
    logger, several or none (then `default_root_dir` is the run's folder). Put it first among the callbacks.
    """

    def __init__(self) -> None:
        self._lock: IO[str] | None = None
        self._begun = False  # whether the marker says that the run has something to keep
        self._problem: str | None = None  # of `hold`, for ranks that nobody here can stop

    def hold(self, trainer: Trainer) -> None:
        """Lock the folder before loggers open files in it, so that a fit that is refused leaves nothing there.

        Called on rank 0, where `python -m lightning` knows the trainer; otherwise `setup` does it, after the loggers.
        """
        if not keeps_files(trainer) or isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            return  # the latter's processes are still to come, and a lock belongs to one process
        try:
            self._acquire(run_folder(trainer))
        except UserError as error:
            environment = getattr(trainer.strategy, "cluster_environment", None)
            if trainer.world_size == 1 or environment is None or not environment.creates_processes_externally:
                raise
            self._problem, trainer.loggers = str(error), []  # `setup` reports it to the other ranks, which wait there

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the folder, before weights load."""
        if stage == "fit" and (self._problem or keeps_files(trainer)):
            self._on_rank_zero(trainer, self._acquire)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move another run aside; only now does the trainer say which checkpoint it continues from."""
        if keeps_files(trainer):
            self._on_rank_zero(trainer, lambda folder: self._claim(trainer, folder))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Note the first step that is logged."""
        if trainer.log_every_n_steps and trainer.global_step >= trainer.log_every_n_steps:
            self._begin(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the first validation."""
        if not trainer.sanity_checking:
            self._begin(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the results are."""
        if not keeps_files(trainer):
            return
        folder = run_folder(trainer)
        lines = [f"Run folder:   {folder}", f"Checkpoints:  {folder / 'checkpoints'}"]
        if (folder / "samples").is_dir():
            lines.append(f"Samples:      {folder / 'samples'}")
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            lines.append(f"TensorBoard:  tensorboard --logdir {folder}")
        rank_zero_print("\n".join(lines))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the folder back."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the folder back."""
        self._release()

    def _on_rank_zero(self, trainer: Trainer, action: Callable[[Path], None]) -> None:
        """Run `action` on rank 0; where it fails, every rank raises, instead of waiting for the first."""
        problem = self._problem
        if trainer.is_global_zero and problem is None:
            try:
                action(run_folder(trainer))
            except UserError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise UserError(problem)

    def _claim(self, trainer: Trainer, folder: Path) -> None:
        """Make the folder this run's."""
        continues = _continues(trainer.ckpt_path, folder)
        if not continues and _holds_a_run(folder):
            self._move_aside(trainer, folder)
        elif not continues and (folder / MARKER).exists():
            _clear_attempt(folder)
        if (folder / MARKER).exists() or all(path.name.startswith(LOGGED) for path in folder.iterdir()):
            self._begun = continues
            _mark(trainer, folder, continues)

    def _begin(self, trainer: Trainer) -> None:
        if self._begun or trainer.state.fn != "fit" or not trainer.is_global_zero or not keeps_files(trainer):
            return
        self._begun = True
        if (run_folder(trainer) / MARKER).exists():
            _mark(trainer, run_folder(trainer), True)

    def _move_aside(self, trainer: Trainer, folder: Path) -> None:
        if not (folder / MARKER).exists():
            raise UserError(
                f"run folder {folder}: holds checkpoints or a config.yaml but no {MARKER}, so it is not a run that "
                "this program made; give the logger another `name`, or move the folder"
            )
        if inner := [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{MARKER}")]:
            raise UserError(f"run folder {folder}: holds other runs ({inner[0]}); give another `name`")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.close()  # opened before any hook; reopens in the new folder at its next write
            if isinstance(logger, CSVLogger):
                logger.experiment.metrics_keys = []  # the header is the moved file's
        aside = _free_name(folder)
        os.rename(folder.resolve(), aside)
        (aside / LOCK).unlink(missing_ok=True)
        self._release()
        self._acquire(folder)
        rank_zero_print(f"A new run in {folder}: the run that was there is now {aside}")

    def _acquire(self, folder: Path) -> None:
        """A POSIX record lock: it dies with this process, and forked workers that outlive a kill do not hold it."""
        if self._lock is not None:  # closing a second descriptor would give it back
            return
        if Path.cwd().is_relative_to(folder.resolve()):
            raise UserError(
                f"run folder {folder.resolve()}: contains the working directory; set the logger's `name`, "
                "or trainer.default_root_dir where there is no logger"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.close()
            raise UserError(
                f"run folder {folder}: another fit is running in it; wait for it or give the logger another `name`"
            ) from None
        except OSError as error:
            rank_zero_warn(f"run folder {folder}: its file system has no locks ({error}); start only one fit in it")
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class SaveRunConfig(SaveConfigCallback):
    """Saves the resolved configuration in the run folder: `config.yaml` of a fit, `config_validate.yaml` and so on.

    Args as LightningCLI gives them; use with `save_config_kwargs={"overwrite": True}`, as a resumed run finds its own.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save; a fit waits until `RunFolder` has moved an older run aside.

        Without the checkpoint: the file says what a run is, not where one of its parts began.
        """
        command = trainer.state.fn.value
        self.config = self.config.clone()
        if command in self.config:
            self.config[command].ckpt_path = None
        else:
            self.config.ckpt_path = None
        if stage != "fit":
            self._save(trainer, f"config_{command}.yaml")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration of a fit, and give it to the loggers."""
        self._save(trainer, self.config_filename)
        if trainer.is_global_zero:
            log_hyperparameters(trainer, json.loads(self.parser.dump(self.config, format="json", skip_none=False)))

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.is_global_zero:
            folder = run_folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, self.parser.dump(self.config, skip_none=False).encode())


@rank_zero_only
def rank_zero_print(text: str) -> None:
    """Print on rank 0: what a person started the command for, so not a log message that can be filtered out."""
    tqdm.write(text)  # above a progress bar, not in it
    sys.stdout.flush()


def keeps_files(trainer: Trainer) -> bool:
    """Whether the run has a folder of its own to write into."""
    bare = not trainer.loggers and Path.cwd().is_relative_to(Path(trainer.default_root_dir).resolve())
    return not (trainer.fast_dev_run or bare)  # without a folder of its own there is nothing to keep apart


def _continues(ckpt_path: str | Path | None, folder: Path) -> bool:
    """Whether the run in `folder` resumes, from a checkpoint in it or from the one that a requeued SLURM job left."""
    if ckpt_path is None:
        return False
    return Path(ckpt_path).name.startswith("hpc_ckpt_") or Path(ckpt_path).resolve().is_relative_to(folder.resolve())


def _mark(trainer: Trainer, folder: Path, begun: bool) -> None:
    ids = {type(logger).__name__: logger.version for logger in trainer.loggers if logger.version}
    write_atomic(folder / MARKER, json.dumps({"loggers": ids, "begun": begun}).encode())


def _holds_a_run(folder: Path) -> bool:
    """Whether there is something to keep: a checkpoint, samples, or a configuration whose run logged something."""
    if any((folder / "checkpoints").glob("*.ckpt")) or (folder / "samples").exists():
        return True
    return (folder / "config.yaml").exists() and _begun(folder)


def _begun(folder: Path) -> bool:
    """What the marker says; the markers of earlier versions do not say."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return True
    return marker.get("begun") is not False if isinstance(marker, dict) else True


def _clear_attempt(folder: Path) -> None:
    """Delete the events of a fit that was killed before it began: TensorBoard would show its hyperparameters."""
    for path in folder.glob("events.out.tfevents.*"):
        if path.name.split(".")[-2] != str(os.getpid()):  # TIME.HOST.PID.NUMBER; this process has opened its own
            path.unlink(missing_ok=True)


def _free_name(folder: Path) -> Path:
    folder = folder.resolve()
    number = 1
    while (aside := folder.with_name(f"{folder.name}.previous-{number}")).exists():
        number += 1
    return aside
