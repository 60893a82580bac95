"""A run whose disk fills up, or turns read-only, in the middle: a real file system of that size."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import av
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from lightning_modules.checkpoint import read_checkpoint
from tests.support.commands import BASE, train
from tests.support.forks import FIT, Forks

NO_MOUNT = 77
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


class ReadOnly(Callback):
    """The disk turns read-only after a step, as ext4 does after an error."""

    def __init__(self, folder: str, step: int):
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            subprocess.run(["mount", "--bind", self.folder, self.folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", self.folder], check=True)


def on_a_small_disk(words: list[str], cwd: str, size: int) -> None:
    """In a forked process: `python -m lightning WORDS` with `runs` on a disk of so many KiB; `left` is a copy."""
    runs, uid, gid = Path(cwd, "runs"), os.getuid(), os.getgid()
    runs.mkdir()
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise SystemExit(NO_MOUNT)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(runs)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise SystemExit(NO_MOUNT)
    try:
        train(*words, cwd=cwd)
    finally:
        shutil.copytree(runs, Path(cwd, "left"))


@pytest.fixture(scope="module")
def forks():
    with Forks("tests.commands.test_full_disk", *FIT) as forks:
        yield forks


def fit(forks, folder: Path, size: int, callbacks: tuple = ()) -> int:
    folder.mkdir(exist_ok=True)
    config = {**BASE, "trainer": {**BASE["trainer"], "callbacks": [*callbacks, *BASE["trainer"]["callbacks"]]}}
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    code = forks.run("on_a_small_disk", ["fit", "--config", str(folder / "base.yaml")], str(folder), size)
    if code == NO_MOUNT:
        pytest.skip("this machine lets no test mount a file system")
    return code


def assert_whole(left: Path) -> None:
    """Every file under its final name can be read, and there are no others."""
    for path in filter(Path.is_file, left.rglob("*")):
        assert ".tmp" not in path.name, path
        if path.suffix == ".ckpt":
            read_checkpoint(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".mp4":
            with av.open(str(path)) as video:
                assert sum(1 for _ in video.decode(video=0)) > 0
        elif path.name == "config.yaml":
            assert "model" in yaml.safe_load(path.read_text())


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_half_written(forks, tmp_path):
    assert fit(forks, tmp_path / "whole", 4096) == 0, forks.said
    assert_whole(tmp_path / "whole/left")
    needed = sum(-(-path.stat().st_size // 4096) * 4 for path in (tmp_path / "whole/left").rglob("*") if path.is_file())
    for size in sorted({max(8, needed * eighth // 8 // 4 * 4) for eighth in range(1, 8)}):
        folder = tmp_path / f"{size}"
        code = fit(forks, folder, size)
        last = forks.said.splitlines()[-1]
        assert code == 2 and last.startswith("python -m lightning: error: "), (size, forks.said)
        assert "No space left on device" in last and "Traceback" not in forks.said, (size, forks.said)
        assert_whole(folder / "left")


def test_a_disk_that_turns_read_only_is_one_line(forks, tmp_path):
    turn = {
        "class_path": "tests.commands.test_full_disk.ReadOnly",
        "init_args": {"folder": str(tmp_path / "ro/runs"), "step": 3},
    }
    code = fit(forks, tmp_path / "ro", 4096, (turn,))
    last = forks.said.splitlines()[-1]
    assert code == 2 and last.startswith("python -m lightning: error: ") and "Traceback" not in forks.said, forks.said
    assert "Read-only file system" in last, forks.said
    assert_whole(tmp_path / "ro/left")
    assert torch.load(tmp_path / "ro/left/base/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
