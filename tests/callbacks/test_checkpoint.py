"""Checkpoints: whole or absent, one line for what is wrong, stable names, and bitwise continuation after kill -9."""

import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from callbacks import EMA, AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, RunFolder, resolve_checkpoint
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import Data, Module, trainer
from tests.support.forks import FIT, Forks
from tests.support.same import same

STATE = {"weights": torch.arange(1000.0), "step": 3}


def test_roundtrip_replaces_and_leaves_nothing_else(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "deep" / "last.ckpt"
    io.save_checkpoint({"old": 1}, path)
    io.save_checkpoint(STATE, path)
    loaded = io.load_checkpoint(path)
    assert torch.equal(loaded["weights"], STATE["weights"]) and loaded["step"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()


def test_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", os.fstat(fd).st_size > 4000)), fsync(fd)))
    same_folder = lambda a, b: calls.append(("replace", Path(a).parent == Path(b).parent))  # noqa: E731
    monkeypatch.setattr(os, "replace", lambda a, b: (same_folder(a, b), replace(a, b)))
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "a.ckpt")
    assert [name for name, _ in calls] == ["fsync", "replace", "fsync"]  # file, name, folder
    assert calls[0][1] and calls[1][1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_write_keeps_the_last_good_file(tmp_path, monkeypatch, error):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"good": 1}, path)

    def stop(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", stop)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(expected):
        io.save_checkpoint(STATE, path)
    assert io.load_checkpoint(path) == {"good": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_the_disk_refuses_is_one_line_and_touches_nothing(tmp_path):
    """A real failed write: the process may not make files larger than 64 KiB."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"good": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(UserError) as caught:
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"good": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_that_is_no_disk_error_is_not_called_one(tmp_path):
    with pytest.raises(Exception) as caught:
        AtomicCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "a.ckpt")
    assert not isinstance(caught.value, UserError)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_runs_go_at_the_next_save(tmp_path):
    (tmp_path / ".last.ckpt.4711.tmp").write_bytes(b"half")
    (tmp_path / ".best.ckpt.4711.tmp").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "last.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".best.ckpt.4711.tmp", "last.ckpt"]


def damaged(kind: str, whole: bytes) -> bytes:
    if kind == "flipped":  # one bit, inside the weights
        position = whole.index(torch.arange(1000.0).numpy().tobytes()[400:440]) + 3
        return whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]
    return {"half": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "zip": b"PK\x03\x04" + bytes(99)}[kind]


@pytest.mark.parametrize("kind", ["half", "empty", "text", "zip", "flipped"])
def test_damaged_files_are_one_line(tmp_path, kind):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(UserError) as caught:
        AtomicCheckpointIO().load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return os.mkdir, (str(Payload.made),)


def test_code_in_a_file_is_not_run(tmp_path):
    Payload.made = tmp_path / "made"
    torch.save({"x": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt: not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not Payload.made.exists()


@pytest.mark.parametrize("name", ["checkpoints/../x.ckpt", "x.txt"])
def test_a_stranger_s_checkpoint_names_no_file_to_delete(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    for kept in ("x.ckpt", "x.txt"):
        (tmp_path / kept).write_text("kept")
    with pytest.raises(UserError, match="not deleted"):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / name)
    assert (tmp_path / "x.ckpt").exists() and (tmp_path / "x.txt").exists()


def test_missing_file_and_url_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.ckpt: no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nowhere.ckpt")
    with pytest.raises(UserError, match="local path"):
        AtomicCheckpointIO().save_checkpoint(STATE, "s3://bucket/last.ckpt")


def callbacks():
    return [EMA(0.9), LastCheckpoint(every_n_train_steps=4), BestCheckpoint()]


def fit(folder, max_steps, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    module = Module()
    run = trainer(folder, callbacks(), max_steps=max_steps, plugins=[AtomicCheckpointIO()], **kwargs)
    run.fit(module, datamodule=Data(), ckpt_path=resolve_checkpoint(run, ckpt_path))
    return run, module


def state(path) -> dict:
    return torch.load(path, weights_only=True)


def trained_state(path) -> dict:
    loaded = state(path)
    ema = loaded["callbacks"]["EMA"]
    return {k: loaded[k] for k in ("global_step", "state_dict", "optimizer_states")} | {"ema": ema}


@pytest.mark.parametrize("validate_every", [4, 3])
def test_names_are_stable_and_the_last_step_is_saved(tmp_path, validate_every):
    fit(tmp_path, 10, val_check_interval=validate_every)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert state(folder / "last.ckpt")["global_step"] == 10
    assert state(folder / "best.ckpt")["global_step"] % validate_every == 0
    names = {key.split("{")[0] for key in state(folder / "last.ckpt")["callbacks"]}
    assert names == {"EMA", "LastCheckpoint", "BestCheckpoint"}


def test_best_is_the_lowest(tmp_path):
    run, _ = fit(tmp_path, 12)
    best = next(c for c in run.callbacks if isinstance(c, BestCheckpoint))
    losses = {}
    for name in ("best", "last"):
        module = Module()
        other = trainer(tmp_path, callbacks(), plugins=[AtomicCheckpointIO()])
        path = resolve_checkpoint(other, name)
        losses[name] = other.validate(module, datamodule=Data(), ckpt_path=path, verbose=False)[0]["val/loss"]
    assert losses["best"] == pytest.approx(float(best.best_model_score))
    assert losses["best"] <= losses["last"]


@pytest.mark.parametrize("first", [4, 6])  # 4: a scheduled save; 6: the save at the end of training
def test_last_continues_bit_for_bit(tmp_path, first):
    fit(tmp_path / "straight", 11)
    fit(tmp_path / "resumed", first)
    fit(tmp_path / "resumed", 11, ckpt_path="last")
    straight, resumed = (trained_state(tmp_path / d / "run/checkpoints/last.ckpt") for d in ("straight", "resumed"))
    assert straight["global_step"] == 11
    assert same(straight, resumed)


def test_asking_for_what_is_not_there_is_an_error(tmp_path):
    for name in ("last", "best"):
        with pytest.raises(UserError, match=rf"ckpt_path {name}: .*run/checkpoints/{name}\.ckpt"):
            resolve_checkpoint(trainer(tmp_path, callbacks()), name)
    assert resolve_checkpoint(trainer(tmp_path, callbacks()), None) is None


def test_asynchronous_writing_stays_atomic(tmp_path):
    run = trainer(tmp_path, [LastCheckpoint(2)], plugins=[AsyncCheckpointIO(AtomicCheckpointIO())])
    assert isinstance(run.strategy.checkpoint_io.checkpoint_io, AtomicCheckpointIO)
    run.fit(Module(), datamodule=Data())
    assert state(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 4


class Slow(Callback):
    def on_train_batch_start(self, *args):
        time.sleep(0.05)


def slow_fit(folder: str, ckpt_path: str | None, steps: int) -> None:
    """In a forked process, whose number is in `pid`."""
    os.chdir(folder)
    Path("pid").write_text(str(os.getpid()))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = [RunFolder(), EMA(0.9), Slow(), LastCheckpoint(4), BestCheckpoint()]
    run = trainer(folder, parts, max_steps=steps, plugins=[AtomicCheckpointIO()])
    run.fit(Module(), datamodule=Data(), ckpt_path=resolve_checkpoint(run, ckpt_path))


def test_kill_9_between_checkpoints_then_last_gives_the_same_bits(tmp_path):
    for name in ("killed", "straight"):
        (tmp_path / name).mkdir()
    path = tmp_path / "killed/run/checkpoints/last.ckpt"
    with Forks("tests.callbacks.test_checkpoint", *FIT) as forks, ThreadPoolExecutor(1) as pool:
        code = pool.submit(forks.run, "slow_fit", str(tmp_path / "killed"), None, 1000)
        try:
            while not code.done() and not (path.exists() and state(path)["global_step"] >= 8):
                time.sleep(0.02)
            with pytest.raises(UserError, match="another fit is running in it"):  # while it lives
                trainer(tmp_path / "killed", [RunFolder()]).fit(Module(), datamodule=Data())
            assert not code.done()
        finally:
            if not code.done():
                os.kill(int((tmp_path / "killed/pid").read_text()), signal.SIGKILL)
        assert code.result() == -signal.SIGKILL
        reached = state(path)["global_step"]
        assert reached % 4 == 0
        steps = reached + 6
        assert forks.run("slow_fit", str(tmp_path / "killed"), "last", steps) == 0, forks.said
        assert "previous" not in forks.said and not list((tmp_path / "killed").glob("*previous*"))
        # as the killed run: sums depend on the number of threads
        assert forks.run("slow_fit", str(tmp_path / "straight"), None, steps) == 0, forks.said
    assert same(trained_state(path), trained_state(tmp_path / "straight/run/checkpoints/last.ckpt"))


def test_run_folder_and_checkpoints_agree_on_where(tmp_path):
    run = trainer(tmp_path, [RunFolder(), LastCheckpoint(2)], plugins=[AtomicCheckpointIO()])
    run.fit(Module(), datamodule=Data())
    assert resolve_checkpoint(run, "last") == str(tmp_path / "run/checkpoints/last.ckpt")
