"""Shared fixtures. Public fixtures in a folder `shared` beside the checkout are used when they are there."""

import os
from pathlib import Path

import pytest
import torch

from tests.support.places import REPO
from tests.support.sprites import SPRITES


def pytest_configure():
    os.environ["REMOCO_CACHE"] = ""  # nothing is kept in the user's cache, and nothing there decides what a test sees


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public parity fixtures and clips beside the checkout; the test skips without it."""
    folder = REPO.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the fixture folder `shared` is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `python -m lightning ARGS` in this process; returns (exit code, stderr's last line)."""

    def run(*args) -> tuple[int, str]:
        from lightning.__main__ import main

        monkeypatch.setattr("sys.argv", ["python -m lightning", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        err = capsys.readouterr().err.strip()
        return code, err.splitlines()[-1] if err else ""

    return run


@pytest.fixture(scope="session")
def sprites(tmp_path_factory) -> Path:
    """Root of a small embedded set, made once: 6 training and 3 validation clips of 4 frames, 64 x 64."""
    from datamodules import SpritesDataModule

    root = tmp_path_factory.mktemp("sprites")
    SpritesDataModule(root=str(root), **SPRITES).prepare_data()
    return root
