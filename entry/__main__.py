"""`python -m lightning {fit,validate,test,predict}`: LightningCLI in generic mode, with errors for the reader.

Lightning 2.6 has no `__main__.py` of its own, so setup.cfg maps this file into the package by name; nothing else of
lightning is touched. The model and the data come from the YAML by `class_path`. Beyond LightningCLI: a mistake in the
configuration is one line and exit code 2, a missing checkpoint is an error (Lightning warns and starts from scratch), a
second run may use the same folder.
"""

import sys

from remoco import rooms
from remoco.flags import cause


def main(args=None):
    """Run the command line; `args` defaults to `sys.argv[1:]`."""
    import warnings

    if found := rooms.hidden():
        complain(found)

    from datamodules.errors import DISK_ERRORS, BadShards, UsageError
    from remoco import configs

    try:
        args = configs.resolved(sys.argv[1:]) if args is None else args
    except UsageError as error:
        complain(error)

    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from callbacks import LastCheckpoint, SaveRunConfig, resolve_checkpoint
    from datamodules.lightning_internals import refuse_what_does_not_restore

    class Parser(LightningArgumentParser):
        def error(self, message, ex=None):
            complain(message)

    class CLI(LightningCLI):
        def _parse_ckpt_path(self):
            """Lightning would read the whole file here for hyperparameters; ours says what it is in the record."""

        def instantiate_classes(self):
            try:
                super().instantiate_classes()
            except (ValueError, TypeError, OSError) as error:
                raise MisconfigurationException(str(error)) from error

        def _prepare_subcommand_kwargs(self, subcommand):
            kwargs = super()._prepare_subcommand_kwargs(subcommand)
            if kwargs.get("ckpt_path"):
                refuse_what_does_not_restore(self.trainer, str(kwargs["ckpt_path"]))
            if any(isinstance(callback, LastCheckpoint) for callback in self.trainer.callbacks):
                # set on the trainer, so that a module's setup can refuse the checkpoint before it loads weights
                self.trainer.ckpt_path = resolve_checkpoint(self.trainer, kwargs.get("ckpt_path"))
                kwargs["ckpt_path"] = None
            return kwargs

    for known in (
        r".*your dataloader is not resumable",  # the data modules here resume by position
        r".*module\(s\) in eval mode at the start of training",  # frozen networks are
        r".*You have overridden `transfer_batch_to_device`",  # the module's is the one that is meant
        r".*isinstance\(treespec, LeafSpec\)",  # lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=known)
    warnings.filterwarnings("error", message=r".*there is no last checkpoint available", category=UserWarning)
    try:
        CLI(
            args=args,
            parser_class=Parser,
            save_config_callback=SaveRunConfig,
            parser_kwargs={"prog": "python -m lightning"},
            save_config_kwargs={"overwrite": True},
        )
    except (MisconfigurationException, BadShards) as error:
        complain(error)
    except OSError as error:
        named = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError)
        if error.errno not in DISK_ERRORS and (error.filename is None or not isinstance(error, named)):
            raise
        complain(f"{error.filename or 'a file could not be written'}: {error.strerror}")
    except UserWarning as error:
        if "there is no last checkpoint available" not in str(error):
            raise
        complain("ckpt_path: 'last' was asked for, but the run's folder holds no checkpoint to resume from")


def complain(message):
    """One line on stderr, exit code 2."""
    print(f"python -m lightning: error: {cause(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
