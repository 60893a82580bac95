"""A small set of shards, and a copy of it to break."""

import shutil

import pytest

from datamodules.scenes.clips import sprite
from datamodules.shards import LATENT
from tests.support.broken_shards import CLIPS, SHAPE, latents, write


@pytest.fixture(scope="module")
def clips():
    return [{**sprite(SHAPE, [n]), LATENT: latents(n)} for n in range(CLIPS)]


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    return write(tmp_path_factory.mktemp("faults") / "set", clips)


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    shard = tmp_path / "set/00000-000.tar"
    shard.chmod(0o644)
    return shard
