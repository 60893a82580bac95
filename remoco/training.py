"""`python -m lightning {fit,validate,test,predict}`: LightningCLI in generic mode, with errors for the reader.

Beyond LightningCLI: a mistake in the configuration is one line and exit code 2, a missing checkpoint is an error
(Lightning warns and starts from scratch), a second run may use the same folder, a run's name says what differs from its
base configuration, `optimizer` and `lr_scheduler` are built over what the module trains.
"""

import os
import re
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import datamodules
from callbacks import LastCheckpoint, ModelTable, RunFolder, SaveRunConfig, resolve_checkpoint
from callbacks.loggers import same_folder, same_run, settle
from callbacks.progress import StepProgress, table
from callbacks.run_folder import MARKER, rank_zero_print, run_folder
from callbacks.stopping import EndAtOnce
from datamodules.lightning_internals import log_without_epoch, refuse_what_does_not_restore
from lightning_modules.optimizer import Plan
from lightning_modules.record import check_size
from lightning_modules.video_module import VideoModule
from remoco import configs
from remoco.common.errors import DISK_ERRORS, UserError, one_line
from remoco.flags import Raising, Unparsed, cause
from remoco.moved import moved
from remoco.run_name import base_name, run_name
from remoco.slurm import slurm_without_srun
from remoco.terminal import one_line_warnings, quiet_log
from remoco.torchrun import restart_without_own_store

HANDLED = (
    r".*your dataloader is not resumable",  # the data modules here resume by position
    r".*module\(s\) in eval mode at the start of training",  # frozen networks are
    r".*You have overridden `(transfer_batch_to_device|on_before_batch_transfer)`",  # the module's is meant
    r".*isinstance\(treespec, LeafSpec\)",  # lightning's own use of torch
    r"Checkpoint directory .* exists and is not empty",  # a resumed run's is
    r"Experiment logs directory .* exists and is not empty",  # its rows are kept
    r".*No positive samples|.*the `compute` method of metric .* was called before the `update` method",
    r"Metric `.*` will save all",
    r".*LightningCLI's args parameter is intended to run from within Python",  # ours are the command line's, resolved
    r".*does not have many workers which may be a bottleneck",  # num_workers is the user's choice
)


DATA_MODULES = [f"datamodules.{name}" for name in datamodules.__all__ if name.endswith("DataModule")]
MOST = 2**53  # beyond it a float is no whole number any more
NUMBERS = {
    "max_steps": (-1, MOST), "min_steps": (0, MOST), "max_epochs": (-1, MOST), "min_epochs": (0, MOST),
    "log_every_n_steps": (0, MOST), "accumulate_grad_batches": (1, MOST), "check_val_every_n_epoch": (1, MOST),
    "val_check_interval": (1e-9, MOST), "num_sanity_val_steps": (-1, MOST), "gradient_clip_val": (0, 1e30),
    "limit_train_batches": (0, MOST), "limit_val_batches": (0, MOST), "limit_test_batches": (0, MOST),
    "limit_predict_batches": (0, MOST), "overfit_batches": (0, MOST), "fast_dev_run": (0, MOST),
    "reload_dataloaders_every_n_epochs": (0, MOST), "num_nodes": (1, MOST), "devices": (-1, 1024),
}  # fmt: skip
"""Argument of the Trainer -> least and most that it may be: a period of 0 is a division by 0 in the middle of a run."""

MLFLOW = "sqlite:///mlflow.db"  # MLflow's own default; Lightning's is a folder, which MLflow 3 refuses
WRONG = (
    ValueError, TypeError, OSError, ImportError, ArithmeticError, AttributeError, LookupError, AssertionError,
    RuntimeError, NotImplementedError,
)  # fmt: skip
"""What classes that a configuration names raise where an argument is not theirs."""


class Parser(Raising, LightningArgumentParser):
    """LightningCLI's parser, with our errors, for configs of a command line as `configs.stacked` gives it."""

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", *args: Any, **options: Any) -> Namespace:
        """The config below a file has been read already."""
        return super().parse_string(configs.alone(content) if path else content, path, *args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """With what to give, and where a key of before went."""
        try:
            super().error(_with_config(message), ex)
        except Unparsed as error:
            unknown = r'key "data": (Expected the path|Import path|Problem with given class_path(?!.*did you mean))'
            if re.search(unknown, str(error)):
                error.args = (f"{error}; this package has {', '.join(DATA_MODULES)}",)
            if now := moved(message):  # what a name looks like is no help then
                error.args = (re.sub(r"; did you mean [^;?]*\?", "", str(error)) + now,)
            raise


class CLI(LightningCLI):
    """LightningCLI with our names, optimizers and checkpoints."""

    def __init__(self, args: list[str]) -> None:
        self.words = list(args)
        self.verbose = True
        for name in DATA_MODULES:  # imported, `--data` knows it by its name alone, and `--help` lists it
            getattr(datamodules, name.removeprefix("datamodules."))
        try:
            super().__init__(
                args=configs.stacked(args),
                parser_class=Parser,
                save_config_callback=SaveRunConfig,
                parser_kwargs={"prog": "python -m lightning"},
                save_config_kwargs={"overwrite": True},
            )
        except (Unparsed, MisconfigurationException) as error:  # jsonargparse's and Lightning's
            raise UserError(str(error)) from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        """The one that is asked for, where one is: the parser of each takes a tenth of a second."""
        every = LightningCLI.subcommands()
        asked = self.words[0] if self.words else None
        return {asked: every[asked]} if asked in every else every

    def _parse_ckpt_path(self) -> None:
        """Lightning would read the whole file here for hyperparameters; ours says what it is in the record."""

    def before_instantiate_classes(self) -> None:
        """Name the run, once the configuration is known to be of the right types."""
        set_parsing_settings(unset_sentinel=True)  # else a null below a class_path passes for a value not given
        try:
            self.parser.validate(self.config)
        except (TypeError, KeyError) as error:
            self.parser.error(str(error))
        finally:
            set_parsing_settings(unset_sentinel=False)
        trainer = self.config[self.subcommand].trainer
        if not isinstance(trainer, Namespace):
            raise UserError(f"trainer: expected a mapping of its options, got {str(trainer)[:40]}")
        for name, (least, most) in NUMBERS.items():
            value = trainer.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not least <= value <= most:
                raise UserError(f"trainer.{name} is {value}, expected {least:g} to {most:g}")
        if problem := slurm_without_srun(trainer.plugins) or restart_without_own_store():
            raise UserError(problem)
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        for arguments in (getattr(logger, "init_args", Namespace()) for logger in loggers):
            if "name" in arguments:
                arguments.name = run_name(self.words, arguments.name, self.subcommand == "fit")
            elif "tracking_uri" in arguments:  # MLflow's
                called = arguments.run_name or base_name(self.words)
                arguments.run_name = run_name(self.words, called, self.subcommand == "fit")
                arguments.tracking_uri = arguments.tracking_uri or MLFLOW
        if trainer.logger is False and trainer.default_root_dir is None:
            named = run_name(self.words, base_name(self.words)) if self.subcommand == "fit" else base_name(self.words)
            trainer.default_root_dir = str(Path("runs", named or "run"))

    def instantiate_classes(self) -> None:
        """Wrong values are the user's mistakes."""
        try:
            super().instantiate_classes()
        except WRONG as error:
            raise UserError(str(error) or one_line(error)) from error

    def instantiate_trainer(self, **options: Any) -> Any:
        """With our table of what trains and our bar in the place of Lightning's; evaluations end at a signal."""
        config = self._get(self.config_init, "trainer", default={})
        callbacks = [*([] if self.subcommand == "fit" else [EndAtOnce()]), *(config.get("callbacks") or [])]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks = [*callbacks, StepProgress()]
        if self.subcommand == "fit" and config.get("enable_model_summary") is not False:
            callbacks = [*callbacks, ModelTable()]
            options["enable_model_summary"] = False
        config["callbacks"] = callbacks
        return super().instantiate_trainer(**options)

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Lightning's would train the frozen parameters too, before there are any; the module's own does it later."""
        plan = Plan.of(self._get(self.config, "optimizer"), self._get(self.config, "lr_scheduler"))
        if isinstance(self.model, VideoModule):
            if subcommand == "fit":
                plan.check(self._get(self.config, "trainer").get("max_steps") or -1)
            self.model.plan = plan
        elif plan.lr_scheduler is not None and not self._get(self.config, "optimizer"):
            raise UserError("lr_scheduler: has no effect without optimizer, for this model")
        else:
            super()._add_configure_optimizers_method_to_model(subcommand)

    def after_validate(self) -> None:
        """Print every number of the run."""
        if self.verbose and self.trainer.is_global_zero and (text := table(self.trainer.callback_metrics)):
            print(f"\n{text}", flush=True)

    after_test = after_validate

    def _settle(self, callback: RunFolder) -> None:
        """Before loggers open anything."""
        if self.subcommand != "fit":
            same_run(self.trainer, run_folder(self.trainer), MARKER)
            return
        same_folder(self.trainer)
        if not getattr(rank_zero_only, "rank", 0):
            callback.hold(self.trainer)
            settle(self.trainer, run_folder(self.trainer), MARKER)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        trainer = self.trainer
        log_without_epoch(trainer)
        if "verbose" in kwargs:  # Lightning's table breaks names over lines; ours is printed after the run
            self.verbose, kwargs["verbose"] = kwargs["verbose"], False
        asked = kwargs.get("ckpt_path")
        if asked:
            refuse_what_does_not_restore(trainer, str(asked))
        if any(isinstance(callback, LastCheckpoint) for callback in trainer.callbacks):
            # set on the trainer, so that a module's setup can refuse the checkpoint before it loads weights
            trainer.ckpt_path = resolve_checkpoint(trainer, asked, may_start=subcommand == "fit")
            kwargs["ckpt_path"] = None
            if asked and trainer.ckpt_path is None:
                rank_zero_print(f"No checkpoint in {run_folder(trainer)} yet: the run starts from scratch")
        for callback in trainer.callbacks:
            if isinstance(callback, RunFolder):
                self._settle(callback)
        return kwargs


class Unstarted(CLI):
    """Builds module and data of a fit, and nothing that would touch a disk or a device."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_trainer(self, **options: Any) -> Any:
        """None: this machine need not have the devices that the run has."""
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        """Not here."""


def refused(args: list[str]) -> str | None:
    """Why `python -m lightning ARGS` would not start, in one line, as far as the configuration shows; None if it would.

    Args:
        args: subcommand and options.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run shows them
            built = Unstarted(configs.resolved(args))
        shape = getattr(built.datamodule, "shape", None)
        if shape is not None and isinstance(built.model, VideoModule):
            check_size(built.model.base.grid, built.model.condition, shape.height, shape.width, shape.frames)
    except (UserError, OSError) as error:
        return cause(error)
    return None


def main(args: list[str] | None = None) -> None:
    """Run the command line; `args` defaults to `sys.argv[1:]`."""
    for known in HANDLED:
        warnings.filterwarnings("ignore", message=known)
    warnings.filterwarnings("error", message=r".*there is no last checkpoint available", category=UserWarning)
    one_line_warnings("python -m lightning")
    quiet_log()
    threading.excepthook = _hook
    args = sys.argv[1:] if args is None else args
    try:
        args = configs.resolved(args)
        CLI(args)
    except UserError as error:
        keys = re.findall(r'Parser key "([^"]*)":', str(error))
        file = configs.holding(args, keys) if keys else None
        complain(f"{file}: {error}" if file else error)
    except OSError as error:
        named = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError)
        if error.errno not in DISK_ERRORS and (error.filename is None or not isinstance(error, named)):
            raise
        where = os.fsdecode(error.filename) if error.filename else "a file of the run could not be written"
        complain(f"{where}: {error.strerror}")
    except UserWarning as error:
        if "there is no last checkpoint available" not in str(error):
            raise
        complain("ckpt_path: 'last' was asked for, but the run's folder holds no checkpoint to resume from")
    except KeyboardInterrupt:
        sys.exit(130)
    except SIGTERMException:
        sys.exit(143)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns one into code 1
            sys.exit(130)
        raise


def _with_config(message: str) -> str:
    """What to give where there is no model, which nobody writes out as flags."""
    if not re.search(r"arguments are required: .*\bmodel\b", message):
        return message
    return f"{message}; give a configuration, for example --config configs/quickstart.yaml"


def _hook(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer hands what its thread met to the next write, which reports it."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in DISK_ERRORS):
        threading.__excepthook__(args)


def complain(message: Any) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"python -m lightning: error: {cause(message)}", file=sys.stderr)
    sys.exit(2)
