"""Time how long `python -m lightning` takes to say its help and to read an experiment, beside a bare LightningCLI.

    python benchmarks/startup.py [--rounds 7]
    python benchmarks/startup.py --until first     # until the first picture and the first step, and what imports take

The bare one imports the same packages and calls LightningCLI, nothing else. Both sides take turns; CPU seconds, the
children's user and system time, hold on a busy machine where the clock does not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

from harness import REPO, interleaved, parser, table

BARE = """
from lightning.pytorch.cli import LightningCLI
import callbacks, conditions, datamodules, lightning_modules
LightningCLI()
"""
COMMANDS = {
    "fit --help": ["fit", "--help"],
    "an experiment read": ["fit", "--config", str(REPO / "configs/remoco_svd.yaml"), "--print_config"],
}

# what a command takes until it has done its first work, and what of that is imports of libraries
FIRST = {
    "import torch": ["-c", "import torch"],
    "import transformers": ["-c", "import transformers"],
    "import torchmetrics": ["-c", "import torchmetrics"],
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "import diffusers.UNetSpatioTemporalConditionModel, peft": [
        "-c", "from diffusers import UNetSpatioTemporalConditionModel; import peft",
    ],
    "remoco demo: a clip by the model in the package": ["-m", "remoco", "demo", "--out", "{folder}/demo"],
    "fit: the quick start's first step": [
        "-m", "lightning", "fit", "--config", str(REPO / "configs/quickstart.yaml"), "--trainer.max_steps=1",
        "--data.init_args.clips=32", "--data.init_args.num_workers=0", "--trainer.limit_val_batches=0",
        "--trainer.callbacks=[]", "--trainer.logger.init_args.save_dir={folder}", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ],
}  # fmt: skip


def spent(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a command.

    Raises:
        RuntimeError: it failed.
    """
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - start


def until_first(rounds: int) -> None:
    """Print the CPU and wall seconds of `FIRST`."""

    def fresh(words: list[str]) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            return spent([sys.executable, *(word.replace("{folder}", folder) for word in words)])

    found = interleaved({name: partial(fresh, words) for name, words in FIRST.items()}, rounds)
    rows = [[name, *(f"{statistics.median(s[i] for s in each):.2f}" for i in (0, 1))] for name, each in found.items()]
    print(table(["", "CPU s", "wall s"], rows))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, help="timed runs of each, after one")
    options.add_argument("--only", nargs="+", choices=COMMANDS)
    options.add_argument("--until", default="help", choices=["help", "first"])
    args = options.parse_args()
    if args.until == "first":
        until_first(args.rounds)
        return
    rows = []
    for name in args.only or COMMANDS:
        sides = {
            "python -m lightning": [sys.executable, "-m", "lightning", *COMMANDS[name]],
            "bare LightningCLI": [sys.executable, "-c", BARE, *COMMANDS[name]],
        }
        found = interleaved({side: partial(spent, command) for side, command in sides.items()}, args.rounds)
        cpu, wall = ({side: statistics.median(s[i] for s in each) for side, each in found.items()} for i in (0, 1))
        ours, bare = sides
        rows += [[name, side, f"{cpu[side]:.2f}", f"{wall[side]:.2f}"] for side in sides]
        rows.append([name, "times", f"{cpu[ours] / cpu[bare]:.2f}", f"{wall[ours] / wall[bare]:.2f}"])
    print(table(["", "", "CPU s", "wall s"], rows))


if __name__ == "__main__":
    main()
