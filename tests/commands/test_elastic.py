"""torchrun's elastic restart: a rank or a node dies and is started again; the run ends with a whole one's bits."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from remoco.torchrun import restart_without_own_store
from tests.support.commands import quick
from tests.support.places import REPO
from tests.support.same import same
from tests.support.scalars import points

HOST, OTHER = "127.0.0.2", "127.0.0.3"  # two nodes, as far as torchrun and Lightning can see
STEPS = 4


class Fall(Callback):
    """One rank dies before the third step, once.

    Args:
        flag: A file that is there once it died, so that the restarted one is left alone.
        node: Whether its launcher, torchrun, dies with it.
    """

    def __init__(self, flag: str, node: bool):
        self.flag, self.node = Path(flag), node

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2 and not self.flag.exists():
            self.flag.touch()
            if self.node:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class Reduced(Callback):
    """Writes what DDP reduces in a step, and the size of what is trained, in bytes."""

    def __init__(self, file: str):
        self.file = Path(file)

    def on_train_end(self, trainer, pl_module):
        told = trainer.strategy.model._get_ddp_logging_data()
        trained = sum(p.nbytes for p in pl_module.optimized().values())
        if trainer.global_rank == 0:
            self.file.write_text(json.dumps([told["total_parameter_size_bytes"], trained]))


CALLBACKS = [
    {"class_path": "callbacks.RunFolder"},
    {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 1}},
]
# torchrun's own store keeps the addresses of processes that died: https://github.com/pytorch/pytorch/issues/135712
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LAUNCH = ("--max-restarts", "2", "--monitor-interval", "0.2")


def callback(kind: type[Callback], **arguments) -> dict:
    return {"class_path": f"{__name__}.{kind.__name__}", "init_args": arguments}


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return one.getsockname()[1]


def launched(root, run: Path, launch: tuple, *more_callbacks: dict, nodes: int = 1) -> subprocess.Popen:
    """torchrun with a fit of two ranks, which resumes where its run folder has a checkpoint."""
    more = {
        "trainer.devices": 2 // nodes, "trainer.num_nodes": nodes, "trainer.strategy": "ddp",
        "trainer.max_steps": STEPS, "trainer.limit_val_batches": 0, "trainer.log_every_n_steps": 1,
        "data.init_args.batch_size": 2,
    }  # fmt: skip
    words = [*quick(root, run, **more), f"--trainer.callbacks={json.dumps([*CALLBACKS, *more_callbacks])}"]
    program = ["-m", "lightning", "fit", *words, "--ckpt_path=last"]
    log = run.parent / f"{run.name}.{time.monotonic_ns()}.log"
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *LAUNCH, *launch, *program],
            cwd=REPO, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, **OWN_STORE, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip


def ended(process: subprocess.Popen, run: Path) -> int:
    try:
        return process.wait(600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            print(*(log.read_text()[-3000:] for log in run.parent.glob(f"{run.name}.*.log")), sep="\n---\n")


def check_same(whole: Path, run: Path) -> None:
    a, b = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, run))
    assert a["global_step"] == b["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states"):
        assert same(a[part], b[part]), part
    assert points(whole)["train/loss"] == points(run)["train/loss"]


@pytest.mark.parametrize(
    ("restarts", "shared", "refused"), [("3", "True", True), ("0", "True", False), ("3", "False", False)]
)
def test_restarts_that_would_look_for_the_dead_are_refused(monkeypatch, restarts, shared, refused):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    said = restart_without_own_store()
    assert said is None or "--max-restarts 3 without TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in said
    assert (said is not None) is refused


@pytest.mark.slow
def test_torchrun_is_told_so(sprites, tmp_path, monkeypatch):
    monkeypatch.delitem(OWN_STORE, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
    run = tmp_path / "runs/refused"
    run.parent.mkdir()
    assert ended(launched(sprites, run, ("--standalone", "--nproc-per-node", "1", "--max-restarts", "1")), run) == 1
    (log,) = run.parent.glob("refused.*.log")
    assert "put TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun" in log.read_text()


@pytest.fixture(scope="module")
def whole(sprites, tmp_path_factory):
    """A run in which nobody dies."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    reduced = callback(Reduced, file=str(run.parent / "reduced.json"))
    assert ended(launched(sprites, run, ("--standalone", "--nproc-per-node", "2"), reduced), run) == 0
    return run


@pytest.mark.slow
def test_a_step_reduces_what_is_trained_and_nothing_else(whole):
    reduced, trained = json.loads((whole.parent / "reduced.json").read_text())
    assert reduced == trained > 0


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again(whole, sprites, tmp_path):
    run, flag = tmp_path / "runs/rank", tmp_path / "fallen"
    run.parent.mkdir()
    launch = ("--standalone", "--nproc-per-node", "2")
    assert ended(launched(sprites, run, launch, callback(Fall, flag=str(flag), node=False)), run) == 0
    assert flag.exists()
    check_same(whole, run)


@pytest.mark.slow
def test_a_node_that_dies_is_joined_by_a_new_one(whole, sprites, tmp_path):
    """Its launcher dies with its rank, and is started again from outside, as a scheduler does."""
    run, flag = tmp_path / "runs/node", tmp_path / "fallen"
    run.parent.mkdir()
    endpoint = f"{HOST}:{free_port()}"

    def node(address: str) -> subprocess.Popen:
        launch = (
            "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint,
            "--rdzv-id", "run", "--local-addr", address, "--rdzv-conf", f"is_host={int(address == HOST)}",
        )  # fmt: skip
        return launched(sprites, run, launch, callback(Fall, flag=str(flag), node=True), nodes=2)

    first, second = node(HOST), node(OTHER)
    assert ended(second, run) == -signal.SIGKILL and flag.exists()
    again = node(OTHER)
    assert (ended(first, run), ended(again, run)) == (0, 0)
    check_same(whole, run)
