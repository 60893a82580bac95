"""What the campaign does to the program, each call in a process that has done the imports (`tests.support.forks`)."""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import callbacks  # noqa: F401
from datamodules import SpritesDataModule  # noqa: F401
from datamodules.prepare import command, pool, verify  # noqa: F401
from datamodules.shards import Shards, samples, unpack
from lightning_modules import MotionControlModule  # noqa: F401
from lightning_modules.checkpoint import read_checkpoint
from remoco import training
from remoco.cli import main as remoco
from remoco.common.errors import BadClip, UserError
from tests.campaign import readers
from tests.campaign.readers import save_sound  # noqa: F401
from tests.campaign.table import HANG
from tests.campaign.values import changed
from tests.support.scalars import points

PREPARE = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--workers", "1", "--clips-per-shard", "2"]


def begin(box: str, limit: float, memory: int = 0, kill_after: float = 0.0) -> None:
    """Stand in a box of one's own; be killed at a moment, or after `limit` seconds; take so much memory more."""
    parent, start = os.getpid(), time.monotonic()
    if os.fork() == 0:
        while os.getppid() == parent:
            passed = time.monotonic() - start
            if kill_after and passed >= kill_after:
                os.kill(parent, signal.SIGKILL)
            elif passed >= limit:
                os.kill(parent, HANG)
            time.sleep(0.01)
        os._exit(0)
    for name in ("out/cwd", "tmp"):
        os.makedirs(f"{box}/{name}", exist_ok=True)
    os.chdir(f"{box}/out/cwd")
    os.environ.update(TMPDIR=f"{box}/tmp", HOME=f"{box}/out/cwd")
    tempfile.tempdir = None
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)


def fit(box: str, arguments: list[str], **limits) -> None:
    """What `python -m lightning fit ARGUMENTS` runs."""
    begin(box, **limits)
    training.main(["fit", *arguments])


def sprites(root: str) -> None:
    """The set that all runs train on."""
    SpritesDataModule(root=root, clips=8, val_clips=2, frames=4, height=64, width=64).prepare_data()


def prepare(box: str, videos: str, out: str, **limits) -> None:
    """`remoco prepare` with its worker in this process, then a look at all it made."""
    begin(box, **limits)

    def here(function, tasks, workers):
        for task in tasks:
            yield task, function(task, 0)

    pool.run = here
    code = remoco(["prepare", videos, out, *PREPARE, "--every", "0.7", "--timeout", "20"])
    if code == 0:
        shards = Shards(out)
        wrong = [line for number in range(len(shards.counts)) for line in verify._verify_shard((out, number), 0)]
        assert not wrong, wrong
    sys.exit(code)


def read(box: str, folder: str, sound: str, signed: bool, **limits) -> None:
    """Read all of a set in every way; prints how many values differ from the sound set's, which is none when signed."""
    begin(box, **limits)
    differing = 0
    expected = {} if signed else {key: out for key, out in _clips(Shards(sound)) if out is not None}
    with refused():
        shards = Shards(folder)
        for key, out in _clips(shards):
            if out is not None and not signed:
                differing += sum(int((out[name] != expected[key][name]).sum()) for name in out)
        for number in range(len(shards.counts)):
            for line in verify._verify_shard((folder, number), 0):
                one_line(line)
            with refused():
                for _ in unpack(shards.path(number)):
                    pass
    print(json.dumps({"differing": differing}))


def _clips(shards):
    for shard, count in enumerate(shards.counts):
        for clip in range(int(count)):
            out = {name: np.zeros(*spec) for name, spec in samples.arrays(shards.shape, latents=False).items()}
            try:
                yield samples.load_into(shards, shard, clip, out)["key"], out
            except BadClip as error:
                one_line(str(error))
                yield None, None


def checkpoint(box: str, path: str, sound: str, **limits) -> None:
    """Read a damaged checkpoint; prints how many values differ from the sound one's, where it reads at all."""
    begin(box, **limits)
    differing = 0
    with refused():
        found, expected = read_checkpoint(path), read_checkpoint(sound)
        differing = bits(found, expected)
    print(json.dumps({"differing": differing}))


def change_checkpoint(box: str, sound: str, path: str, seed: str) -> None:
    """Write a checkpoint with fields missing or of any value."""
    found = torch.load(sound, weights_only=True)
    torch.save(changed(found, random.Random(seed), tensors=True), path)


def stranger(box: str, function: str, arguments: list, **limits) -> None:
    """A function of `readers`, in the folder of the files."""
    begin(box, **limits)
    os.chdir(f"{box}/in")
    getattr(readers, function)(*arguments)


def compare(box: str, whole: str, resumed: str) -> None:
    """Print how many bits of weights, optimizer, average and position differ in both checkpoints, and of the log."""
    found = 0
    for name in ("last", "best"):
        a, b = (torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True) for run in (whole, resumed))
        parts = ("global_step", "epoch", "state_dict", "optimizer_states", "SpritesDataModule")
        found += sum(bits(a[part], b[part]) for part in parts) + bits(a["callbacks"]["EMA"], b["callbacks"]["EMA"])
    a, b = points(Path(whole)), points(Path(resumed))
    found += sum(len(a.get(tag, set()) ^ b.get(tag, set())) for tag in a.keys() | b.keys())
    print(json.dumps({"differing": found}))


@contextlib.contextmanager
def refused():
    """One line is an answer."""
    try:
        yield
    except (BadClip, UserError) as error:
        one_line(str(error))


def one_line(text: str) -> None:
    assert "\n" not in text and len(text) < 2000, f"not one line: {text[:3000]}"


def bits(a, b) -> int:
    """How many bits of two nested values differ; another structure or type counts as one."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return 1
        both = [np.frombuffer(each.contiguous().numpy().tobytes(), np.uint8) for each in (a, b)]
        return int(np.unpackbits(both[0] ^ both[1]).sum())
    if isinstance(a, dict) and isinstance(b, dict):
        return sum(bits(a.get(key), b.get(key)) for key in a.keys() | b.keys())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return abs(len(a) - len(b)) + sum(map(bits, a, b))
    return int(type(a) is not type(b) or (a != b and not (a != a and b != b)))
