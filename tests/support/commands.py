"""The commands as tests call them: in this process or another one, with arguments of any type."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from remoco.cli import main
from tests.support.places import REPO

CONFIGS = REPO / "configs"


def remoco(*arguments) -> int:
    """`remoco ARGUMENTS`; the exit code, also of a parser's error."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def prepare(*arguments) -> int:
    """`remoco prepare ARGUMENTS`, and `verify` and `latents` by their first word."""
    return remoco(*arguments) if arguments[0] in ("verify", "cache", "latents") else remoco("prepare", *arguments)


def quick(root: Path | None, run: Path, **more) -> list[str]:
    """Arguments that shrink the quick start to seconds: the small sprites, written in `root` or made as they are
    needed, and a run folder of our own.
    """
    options = {
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.logger.init_args.save_dir": run.parent,
        "trainer.logger.init_args.name": run.name,
        "data.init_args.root": root,
        "data.init_args.clips": 6,
        "data.init_args.val_clips": 3,
        "data.init_args.frames": 4,
        "data.init_args.height": 64,
        "data.init_args.width": 64,
        "data.init_args.num_workers": 0,
        "model.init_args.sampling.steps": 2,
    }
    options |= more
    if root is None:
        del options["data.init_args.root"]
    return ["--config", str(CONFIGS / "quickstart.yaml"), *(f"--{k}={v}" for k, v in options.items())]


def command(*args, cwd=None, check=True, **env) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "lightning", *map(str, args)],
        cwd=cwd or CONFIGS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=3600,  # against a hang, not a limit: the quick start takes 12 minutes of one thread
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def train(*words, cwd=None) -> None:
    """In a forked process: `python -m lightning WORDS`."""
    from lightning.__main__ import main

    torch.set_num_threads(1)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = ["python -m lightning", *words]
    main()


def under_slurm(environment, *words, cwd=None) -> None:
    """In a forked process: `train` on SLURM's machine."""
    os.environ.update(environment)
    train(*words, cwd=cwd)


# a config of its own, shaped like the quick start: that one may change
BASE = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu", "devices": 1, "max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0, "log_every_n_steps": 1, "enable_progress_bar": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "base", "version": ""},
        },
        "plugins": [{"class_path": "callbacks.AtomicCheckpointIO"}],
        "callbacks": [
            {"class_path": "callbacks.RunFolder"},
            {"class_path": "callbacks.Evaluation", "init_args": {"samples": {"clips": 1}}},
            {"class_path": "callbacks.BestCheckpoint"},
            {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}},
        ],
    },
    "model": {"class_path": "tests.support.callbacks_stand_in.Module", "init_args": {"learning_rate": 0.05}},
    "data": {"class_path": "tests.support.callbacks_stand_in.Data"},
}  # fmt: skip
