"""Names in a stranger's shards never lead out of the folder that is written to."""

import json
import zlib

import pytest
import torch

from callbacks import PredictionWriter
from datamodules.prepare.video import part_path
from datamodules.scenes.clips import sprite
from datamodules.shards import INDEX, Shards, sidecar, unpack, write_index
from datamodules.shards.writer import ShardWriter
from remoco.common.errors import BadClip, UserError
from remoco.common.whole_files import inside
from tests.support.broken_shards import SHAPE
from tests.support.callbacks_stand_in import Module, trainer

BAD = ["../../x", "/abs/y", "..", "", "a/b", "a\\b", "a\0b", "x" * 300, "ümlaut", 7, None]


@pytest.fixture(params=BAD, ids=repr)
def stranger(request, tmp_path):
    """A shard whose sidecar and index agree, with a key that no writer of ours gives."""
    folder = tmp_path / "set"
    folder.mkdir()
    with ShardWriter(folder / "00000-000.tar") as writer:
        writer.write("clip-0", sprite(SHAPE, [0]))
    path = sidecar(folder / "00000-000.tar")
    index = json.loads(path.read_bytes()) | {"keys": [request.param]}
    path.write_text(json.dumps(index))
    write_index(folder, SHAPE, [writer.entry | {"index_crc32": zlib.crc32(path.read_bytes())}])
    return folder


def test_keys_are_checked_where_they_are_read(stranger):
    with pytest.raises(BadClip, match="key"):
        Shards(stranger).key(0, 0)
    with pytest.raises(BadClip, match="key"):
        list(unpack(stranger / "00000-000.tar"))
    assert (stranger / INDEX).exists()


@pytest.mark.parametrize("name", ["../x", "/abs/y", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_name_stays_in_its_folder(tmp_path, name):
    with pytest.raises(UserError, match="inside the folder"):
        inside(tmp_path, name)
    assert inside(tmp_path, "clip-0.mp4") == tmp_path / "clip-0.mp4"


@pytest.mark.parametrize("key", ["../../x", "/abs/y"])
def test_predictions_and_parts_stay_in_their_folder(tmp_path, key):
    run = trainer(tmp_path / "runs")
    video = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match="is not a file name inside the folder"):
        PredictionWriter().write_on_batch_end(run, Module(), {"key": [key], "video": video, "fps": torch.ones(1)})
    with pytest.raises(UserError, match="is not a file name inside the folder"):
        part_path(tmp_path / "parts", key)
    assert not list(tmp_path.rglob("*.mp4"))
