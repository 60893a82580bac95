"""The recipe as a user runs it, over random weights: a folder in SVD's layout, shards, cached latents, fit and resume.

    python benchmarks/real_run.py WORK [--precision bf16-mixed 16-mixed] [--steps 20 30]
    python benchmarks/real_run.py WORK --small

Every part is the command of the documentation, in a process of its own: `remoco cache`, then
`python -m lightning fit --config configs/remoco_svd.yaml` up to the first step count, then `--ckpt_path last` up to the
second. `bf16-true` has to be refused with a reason. The folder and the latents in WORK are kept and used again; at full
size they take 5 GB. On a CPU Lightning runs `16-mixed` as `bf16-mixed`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import harness
import torch
from full_size import CONFIG, materialise
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import SpritesDataModule
from lightning_modules.bases import Sprites
from lightning_modules.checkpoint import read_checkpoint

CLIPS, VAL_CLIPS = 16, 4
SMALL = {"size": "tiny", "frames": 2, "height": 64, "width": 64, "batch": 2, "sample_steps": 2, "workers": 0}
REFUSED = "bf16-true"


class Done(NamedTuple):
    """A process that has ended: its exit code, all it said, seconds, and the most host memory it held in GiB."""

    code: int
    said: str
    seconds: float
    peak: float


def run(command: list[str], log: Path) -> Done:
    """A command of this checkout, what it says in a file too."""
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, *command], cwd=harness.REPO, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    kib = used.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Done(process.returncode, log.read_text(errors="replace"), time.perf_counter() - start, kib / 2**20)


def need(done: Done, what: str) -> Done:
    """The same where it succeeded; else the script ends with what was said last."""
    if done.code:
        sys.exit(f"{what} failed with code {done.code}:\n{done.said[-3000:]}")
    return done


def write_base(folder: Path, size: str) -> None:
    """A folder in diffusers' layout with random float16 weights, unless it is there; one network at a time."""
    if (folder / "complete").exists():
        return
    with torch.device("meta"):
        svd = Sprites(size, latents="vae").build()
    for name, network in list(svd.named_children()):
        torch.nn.Module.half(network)
        materialise(network, "cpu")
        network.save_pretrained(folder / name, variant="fp16")
        delattr(svd, name)
        del network
    (folder / "complete").touch()


def write_shards(work: Path, args: argparse.Namespace) -> Path:
    """Training and validation shards with cached latents, unless they are there."""
    shape = {"frames": args.frames, "height": args.height, "width": args.width}
    source = SpritesDataModule(str(work / "sprites"), clips=CLIPS, val_clips=VAL_CLIPS, **shape)
    source.prepare_data()
    out = work / f"latents-{source.folder.name}-{args.size}"
    for split in ("train", "val"):
        log = work / f"latents-{split}.log"
        svd = str(work / args.size)
        command = ["-m", "remoco", "cache", str(source.folder / split), str(out / split), "--base", svd]
        need(run(command, log), f"caching the latents ({log})")
    return out


def fit(work: Path, shards: Path, precision: str, steps: int, args: argparse.Namespace, *more: str) -> Done:
    """`fit` of the recipe up to this many steps."""
    data = {"shards": shards / "train", "val_shards": shards / "val", "batch_size": args.batch, "frames": args.frames,
            "height": args.height, "width": args.width, "num_workers": args.workers}  # fmt: skip
    trainer = {"max_steps": steps, "precision": precision, "devices": 1, "log_every_n_steps": 1,
               "logger.init_args.save_dir": work / "runs", "logger.init_args.name": precision}  # fmt: skip
    # a validation with samples after the first part; none where no samples are wanted
    trainer |= {"val_check_interval": args.steps[0], "num_sanity_val_steps": 0, "limit_val_batches": 1}
    if not args.sample_steps:
        trainer["limit_val_batches"] = 0
    options = [f"--data.init_args.{name}={value}" for name, value in data.items()]
    options += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    options += [
        f"--model.init_args.base.init_args.path={work / args.size}",
        f"--model.init_args.sampling.steps={args.sample_steps or 1}",
    ]
    log = work / f"fit-{precision}-{steps}.log"
    return run(["-m", "lightning", "fit", "--config", str(CONFIG), *options, *more], log)


def logged(folder: Path, tag: str) -> dict[int, float]:
    """Step -> value of what a run has logged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars(tag)} if tag in events.Tags()["scalars"] else {}


def check(work: Path, precision: str, steps: int, batch: int) -> tuple[list[float], float]:
    """The losses of a run that has ended after so many steps, and its most clips per second.

    Raises:
        SystemExit: a step is missing or not finite, or the checkpoint is of another position.
    """
    folder = work / "runs" / precision
    losses = [value for _, value in sorted(logged(folder, "train/loss").items())]
    if len(losses) != steps or not all(map(math.isfinite, losses)):
        sys.exit(f"{precision}: expected {steps} finite losses, got {losses}")
    saved = read_checkpoint(folder / "checkpoints/last.ckpt")
    found = saved["global_step"], saved["WebVidDataModule"]["position"]
    if found != (steps, steps * batch):
        sys.exit(f"{precision}: last.ckpt is at step and position {found}, expected {(steps, steps * batch)}")
    return losses, max(logged(folder, "usage/clips_per_s").values())


def main() -> None:
    """Run and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("work", type=Path, help="folder for weights, shards and runs")
    parser.add_argument("--small", action="store_true", help="tiny networks and clips: seconds on a CPU")
    parser.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    parser.add_argument("--precision", nargs="+", default=["bf16-mixed", "16-mixed"])
    parser.add_argument("--steps", type=int, nargs=2, default=[20, 30], help="of the first part, and in all")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--sample-steps", type=int, default=25, help="of the samples after the first part; 0: none")
    args = parser.parse_args()
    if args.small:
        vars(args).update(SMALL)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_base(work / args.size, args.size)
    shards = write_shards(work, args)
    rows = []
    for precision in args.precision:
        shutil.rmtree(work / "runs" / precision, ignore_errors=True)
        for part, steps in enumerate(args.steps):
            more = ("--ckpt_path", "last") if part else ()
            done = need(fit(work, shards, precision, steps, args, *more), f"{precision} to step {steps}")
            losses, speed = check(work, precision, steps, args.batch)
            held = max(logged(work / "runs" / precision, "usage/peak_gib").values())
            rows.append([precision, steps, f"{losses[0]:.3f}", f"{losses[-1]:.3f}", f"{speed:.2f}", f"{held:.1f}",
                         f"{done.peak:.1f}", f"{done.seconds:.0f}"])  # fmt: skip
            print(f"{precision}: {steps} steps", flush=True)
    refused = fit(work, shards, REFUSED, args.steps[0], args)
    if refused.code != 2 or REFUSED not in refused.said:
        sys.exit(f"{REFUSED} was not refused (code {refused.code}): {refused.said[-1000:]}")
    heads = ["precision", "steps", "first loss", "last loss", "clips/s", "device peak GiB", "host peak GiB", "s"]
    print(harness.table(heads, rows))
    print(f"{REFUSED}: {refused.said.strip().splitlines()[-1]}")


if __name__ == "__main__":
    main()
