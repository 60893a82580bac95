"""Workers end with the training process; decord gives PyAV's pixels."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from datamodules import WebVidDataModule
from tests.support.modules import data
from tests.support.sprites import SPRITES

SCRIPT = """
import sys, time
from datamodules import WebVidDataModule
if __name__ == "__main__":
    dm = WebVidDataModule(sys.argv[1], batch_size=1, num_workers=1, frames=4, height=64, width=64)
    batches = iter(dm.train_dataloader())
    next(batches)
    print("ready", flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split(") ")[1][0] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the worker's processes in /proc")
def test_workers_do_not_outlive_a_killed_run(sprites, tmp_path):
    dm = data(sprites)
    dm.prepare_data()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(script), str(dm.folder / "train")], stdout=subprocess.PIPE, start_new_session=True
    )
    run.stdout.readline()
    family = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _session(int(pid)) == run.pid]
    assert len(family) >= 3  # the run, the server of its workers, a worker
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    for _ in range(150):
        left = [pid for pid in family if alive(pid)]
        if not left:
            break
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def test_decord_gives_the_same_pixels(sprites):
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    dm = data(sprites)
    dm.prepare_data()
    size = {name: SPRITES[name] for name in ("frames", "height", "width")}
    batches = [
        next(
            iter(WebVidDataModule(str(dm.folder / "train"), num_workers=0, decoder=decoder, **size).train_dataloader())
        )
        for decoder in ("pyav", "decord")
    ]
    assert batches[0]["key"] == batches[1]["key"]
    assert torch.equal(batches[0]["video"], batches[1]["video"])
