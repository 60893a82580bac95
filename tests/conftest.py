"""Shared fixtures. Public fixtures in a folder `shared` beside the checkout are used when they are there."""

from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]


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
