"""Disks that fill up: nothing half-written has its final name, and what killed processes left goes."""

import os
import time

import numpy as np
import pytest

from callbacks.strips import write_mp4, write_png
from datamodules import SpritesDataModule
from tests.support.disk import full

NOISE = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("write", [lambda path: write_mp4(path, NOISE, 8.0), lambda path: write_png(path, NOISE[0])])
def test_samples_are_whole_or_absent(tmp_path, write):
    path = tmp_path / "a"
    with full(2048), pytest.raises(OSError):
        write(path)
    assert not list(tmp_path.iterdir())
    write(path)
    whole = path.read_bytes()
    with full(2048), pytest.raises(OSError):
        write(path)
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def sprites(root):
    return SpritesDataModule(root=str(root), clips=2, val_clips=1, frames=4, height=64, width=64, num_workers=0)


def test_the_sprites_are_whole_or_absent(tmp_path):
    with full(2048), pytest.raises(OSError):
        sprites(tmp_path).prepare_data()
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_of_the_sprites_goes(tmp_path):
    data = sprites(tmp_path)
    old, new = (data.folder.with_name(f".{data.folder.name}.{pid}.tmp") for pid in (1, 2))
    for folder in (old, new):
        (folder / "train").mkdir(parents=True)
        (folder / "train/00000.tar").write_bytes(b"half")
    for path in (old, *old.rglob("*")):
        os.utime(path, (time.time() - 7200,) * 2)
    data.prepare_data()
    assert not old.exists() and new.exists() and data.folder.exists()
