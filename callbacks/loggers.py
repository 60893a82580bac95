"""What every logger gets, in its own form: hyperparameters, videos, protocols; and what a resume must keep of it."""

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from remoco.common.json_files import read_json

LONGEST_TAG = 5000  # characters of a tag's value in MLflow
OF_TRAINER = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")


def is_wandb(logger: Logger) -> bool:
    """Whether this is Weights & Biases' logger, without importing it."""
    return type(logger).__name__ == "WandbLogger"


def is_mlflow(logger: Logger) -> bool:
    """Whether this is MLflow's logger, without importing it."""
    return type(logger).__name__ == "MLFlowLogger"


def same_folder(trainer: Trainer) -> None:
    """The same folder at every start of a fit: a version's number would be another one each time."""
    for logger in trainer.loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)) and logger._version is None:
            logger._version = ""


def settle(trainer: Trainer, folder: Path, marker: str) -> None:
    """Before loggers open anything, on rank 0: what is logged is kept and continued.

    Args:
        trainer: trainer of a fit that is about to start, `ckpt_path` set.
        folder: folder of the run, which is this process's.
        marker: name of the file in it that knows the loggers' identities.
    """
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            _keep_rows(logger)
    same_run(trainer, folder, marker)


def same_run(trainer: Trainer, folder: Path, marker: str) -> None:
    """Weights & Biases and MLflow resume the run of the folder whose checkpoint is used, in a test as in a fit.

    Args:
        trainer: `ckpt_path` set.
        folder: folder of the run.
        marker: name of the file in it that knows the loggers' identities.
    """
    if not trainer.ckpt_path or not Path(trainer.ckpt_path).is_relative_to(folder):
        return
    for logger in trainer.loggers:
        identity = _identities(folder / marker).get(type(logger).__name__)
        if not isinstance(identity, str):
            continue
        if is_wandb(logger) and not logger.version:
            logger._id = logger._wandb_init["id"] = identity
        if is_mlflow(logger) and logger._run_id is None:  # its `version` would begin a run
            with suppress(Exception):  # another server or database, where the run begins anew; of many types
                logger._run_id = logger._mlflow_client.get_run(identity).info.run_id


def _identities(path: Path) -> dict[str, Any]:
    try:
        identities = read_json(path)["loggers"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return identities if isinstance(identities, dict) else {}


def _keep_rows(logger: CSVLogger) -> None:
    """Open the logger without losing its file, which Lightning's deletes; at any moment one of the two names has it."""
    path = Path(logger.log_dir) / "metrics.csv"
    kept = path.with_name("metrics.csv.kept")
    if path.exists():
        os.replace(path, kept)
    if kept.exists():
        experiment = logger.experiment
        os.replace(kept, path)
        with open(path, newline="") as file:
            experiment.metrics_keys = next(csv.reader(file), [])


def log_hyperparameters(trainer: Trainer, config: dict[str, Any]) -> None:
    """Give every logger what the run was configured with; TensorBoard shows it under HParams, beside `val/loss`
    and the results that callbacks name in `headlines`.
    """
    chosen = {name: config.get(name) for name in ("model", "data", "optimizer", "lr_scheduler")}
    chosen["trainer"] = {name: config.get("trainer", {}).get(name) for name in OF_TRAINER}
    flat = _flat(chosen)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in flat.items()}
            shown = ["val/loss", *(name for each in trainer.callbacks for name in getattr(each, "headlines", ()))]
            for part in hparams(plain, dict.fromkeys(shown, 0.0)):
                logger.experiment._get_file_writer().add_summary(part)
            logger.experiment.flush()
        elif is_mlflow(logger):
            _log_parameters(logger, flat)
        else:
            logger.log_hyperparams(flat)


def _log_parameters(logger: Any, flat: dict[str, Any]) -> None:
    """A parameter of MLflow never changes, so what a resumed run has otherwise is a tag of its name."""
    there = logger.experiment.get_run(logger.run_id).data.params
    logger.log_hyperparams({name: value for name, value in flat.items() if name not in there})
    for name, value in flat.items():
        if there.get(name, str(value)[:250]) != str(value)[:250]:  # Lightning cuts them there
            logger.experiment.set_tag(logger.run_id, name, str(value)[:250])


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested configuration to dotted names, without the levels that only say that these are arguments."""
    if not isinstance(value, dict):
        return {name: value}
    if set(value) <= {"class_path", "init_args", "dict_kwargs"} and "class_path" in value:
        inner = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        return {name: value["class_path"], **_flat(inner, name)} if inner else {name: value["class_path"]}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else key)
    return flat


def log_samples(logger: Any, folder: Path, step: int) -> None:
    """The strips of a step, `clip-NN.mp4`, and `sheet.png`, to Weights & Biases as media, to MLflow as artifacts.

    Other loggers have the files in the run folder, TensorBoard GIFs of narrower strips too.
    """
    if is_wandb(logger):
        import wandb

        clips = sorted(folder.glob("clip-*.mp4"))
        strips: dict[str, Any] = {f"samples/{p.stem}": wandb.Video(str(p), format="mp4") for p in clips}
        strips["samples/sheet"] = wandb.Image(str(folder / "sheet.png"))
        logger.experiment.log({**strips, "trainer/global_step": step})
    elif is_mlflow(logger):
        for path in (*sorted(folder.glob("clip-*.mp4")), folder / "sheet.png"):
            logger.experiment.log_artifact(logger.version, str(path), f"samples/{folder.name}")


def log_protocol(trainer: Trainer, name: str, protocol: str) -> None:
    """How a number was computed: text in TensorBoard, in W&B's summary, a tag in MLflow; `metrics.json` has it too."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(f"{name}_protocol", protocol, trainer.global_step)
        elif is_wandb(logger):
            logger.experiment.summary[f"{name}_protocol"] = protocol
        elif is_mlflow(logger):
            logger.experiment.set_tag(logger.version, f"{name}_protocol", protocol[:LONGEST_TAG])
