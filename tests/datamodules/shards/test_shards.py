"""Shards, sprites and the batch: what is written comes back, and what is broken is noticed."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch

from datamodules.scenes.scene import Layer, Motion, Scene, random_scene, render, rounded_box, tracks
from datamodules.scenes.textures import Texture
from datamodules.shards import MEMBERS, ClipShape, Shards, expand, sanitised, write_index
from datamodules.shards.writer import ShardWriter
from datamodules.sprites import SpritesDataModule
from datamodules.webvid import WebVidDataModule
from remoco.common.errors import UserError

SHAPE = ClipShape(frames=3, height=16, width=24, fps=8.0)


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    module = SpritesDataModule(
        str(tmp_path_factory.mktemp("s")), clips=6, val_clips=5, frames=3, height=16, width=24, num_workers=0
    )
    module.prepare_data()
    return module.folder


def webvid(shards, val_shards=None, **arguments):
    options = {"batch_size": 2, "num_workers": 0, "frames": 3, "height": 16, "width": 24, **arguments}
    return WebVidDataModule(str(shards), None if val_shards is None else str(val_shards), **options)


# Codec


def test_surface_points_keep_their_colour_along_their_track():
    scene = random_scene([5], 6, 96, 128)
    video, (flow, visibility) = render(scene).astype(np.float32), tracks(scene)
    y, x = np.mgrid[:96, :128]
    for t in (1, 5):
        to_x, to_y = x + flow[t, 0], y + flow[t, 1]
        # away from edges, where a pixel mixes two surfaces
        inner = visibility[t] & _inner(scene, 0, x, y) & _inner(scene, t, to_x, to_y)
        inner &= (to_x > 1) & (to_x < 126) & (to_y > 1) & (to_y < 94)
        assert inner.mean() > 0.3
        found = [_bilinear(plane, to_x[inner], to_y[inner]) for plane in video[t]]
        error = np.abs(np.stack(found) - video[0][:, inner])
        moved = np.abs(video[t][:, inner] - video[0][:, inner])
        assert error.mean() < 6 and error.mean() < 0.3 * moved.mean()


def _inner(scene, t, x, y):
    return np.all([np.abs(layer.outline(*layer.motion.to_layer(t, x, y))) > 2.5 for layer in scene.layers[1:]], axis=0)


def _bilinear(plane, x, y):
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    a, b = x - left, y - top
    row = plane[top, left] * (1 - a) + plane[top, left + 1] * a
    return row * (1 - b) + (plane[top + 1, left] * (1 - a) + plane[top + 1, left + 1] * a) * b


def test_flow_and_occlusion_of_a_box_that_slides_over_a_still_background():
    def moving(x):
        centre = np.stack([np.asarray(x, float), np.full(3, 9.5)], -1)
        return Motion(centre, np.zeros(3), np.ones(3))

    grey = Texture(np.full((8, 8, 3), 90, np.float32))
    # 8 wide and 6 high, centred on x = 7.5, 12.5, 29.5: covers columns 4..11, then 9..16, then leaves at column 31
    box = Layer(moving([7.5, 12.5, 29.5]), grey, rounded_box(4.0, 3.0, 0.0), "box")
    scene = Scene((Layer(moving([0, 0, 0]), grey), box), frames=3, height=20, width=32)
    flow, visibility = tracks(scene)
    expected = np.zeros((3, 20, 32))
    expected[1, 7:13, 4:12], expected[2, 7:13, 4:12] = 5, 22
    assert np.abs(flow[:, 0] - expected).max() < 1e-4 and np.abs(flow[:, 1]).max() < 1e-4
    hidden = np.zeros((3, 20, 32), bool)
    hidden[1, 7:13, 12:17] = True  # background that the box slid onto
    hidden[2, 7:13, 26:32] = True
    hidden[2, 7:13, 10:12] = True  # the box's own last columns, now beyond the frame
    assert (visibility == ~hidden).all()


def test_objects_cover_each_other_in_the_set():
    scenes = [random_scene([0, 0, n], 4, 64, 96) for n in range(8)]
    shares = [1 - tracks(scene)[1].mean() for scene in scenes]
    assert 0.02 < np.mean(shares) < 0.4


def test_sprites_are_the_same_bytes_from_the_same_seed(sprites, tmp_path):
    again = SpritesDataModule(str(tmp_path), clips=6, val_clips=5, frames=3, height=16, width=24)
    again.prepare_data()
    assert again.folder.name == sprites.name
    for name in ("train/00000.tar", "train/00000.index.json", "train/index.json", "val/00000.tar", "config.json"):
        assert (again.folder / name).read_bytes() == (sprites / name).read_bytes()
    assert (sprites / "train/00000.tar").read_bytes() != (sprites / "val/00000.tar").read_bytes()
    stamp = (again.folder / "config.json").stat().st_mtime_ns
    again.prepare_data()
    assert (again.folder / "config.json").stat().st_mtime_ns == stamp
    other = SpritesDataModule(str(tmp_path), clips=6, val_clips=5, frames=3, height=16, width=24, data_seed=1)
    assert other.folder != again.folder


# Shards


def test_any_webdataset_reader_opens_a_shard(sprites):
    import webdataset

    rows = list(webdataset.WebDataset(str(sprites / "train/00000.tar"), shardshuffle=False))
    assert [row["__key__"] for row in rows] == [f"sprite-{n:06d}" for n in range(6)]
    assert all(set(MEMBERS) <= set(row) for row in rows)
    meta = json.loads(rows[0]["json"])
    assert meta["flow"]["bound"] == 1 / 16 and meta["tracker"]["name"] == "exact" and b"over a" not in rows[0]["txt"]


@pytest.mark.parametrize("name", ["my.video.v2.mp4", "a/b/c.mp4", "../x.mp4", "ünïcode 視.mkv", "", "." * 300])
def test_keys_are_readable_and_unique(name):
    import re

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", sanitised(name)) and sanitised(name) != sanitised(name + "x")


def test_a_killed_or_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="already"):
        with ShardWriter(tmp_path / "a.tar") as writer:
            writer.write("k", {"json": b"{}"})
            writer.write("k", {"json": b"{}"})
    assert list(tmp_path.iterdir()) == []


def test_patterns(sprites, tmp_path):
    for pattern in (sprites / "train", f"{sprites}/train/*.tar", f"{sprites}/train/0000{{0..0}}.tar", f"{sprites}/tr*"):
        assert len(Shards(str(pattern))) == 6
    assert len(Shards([str(sprites / "train"), str(sprites / "val")])) == 11
    with pytest.raises(UserError, match="nothing matches '.*none-{0..3}.tar'"):
        expand(str(tmp_path / "none-{0..3}.tar"))


def test_ten_thousand_shards_open_from_the_folders_index_alone(tmp_path):
    entry = {"clips": 1000, "bytes": 10**9, "sha256": "0" * 64, "index_crc32": 0}
    write_index(tmp_path, SHAPE, ({"name": f"{n:05d}-000.tar", **entry} for n in range(10_000)))
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]  # no shard and no sidecar is there to be read
    assert len(Shards(tmp_path)) == 10_000_000


# Batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_contract(sprites, workers):
    module = webvid(sprites / "train", sprites / "val", num_workers=workers)
    batch = next(iter(module.train_dataloader()))
    expected = {
        "video": ((2, 3, 3, 16, 24), torch.uint8),
        "flow": ((2, 3, 2, 16, 24), torch.uint16),
        "flow_step": ((2,), torch.float32),
        "visibility": ((2, 3, 16, 24), torch.bool),
        "moving": ((2, 2, 16, 24), torch.bool),
        "motion_bucket": ((2,), torch.float32),
        "first_frame": ((2, 3, 16, 24), torch.uint8),
        "fps": ((2,), torch.float32),
        "position": ((2,), torch.int64),
        "replaced": ((2,), torch.int64),
    }
    assert {name: (tuple(v.shape), v.dtype) for name, v in batch.items() if name != "key"} == expected
    assert len(batch["key"]) == 2 and batch["position"].tolist() == [0, 1] and batch["replaced"].tolist() == [0, 0]
    assert (batch["flow"][:, 0] == 32768).all() and batch["visibility"][:, 0].all()
    assert (batch["video"][:, 0] == batch["first_frame"]).all() and batch["flow_step"].tolist() == [0.0625, 0.0625]
    seen = [key for batch in module.val_dataloader() for key in batch["key"]]
    assert seen == [f"sprite-{n:06d}" for n in range(5)]


def test_loading_moves_no_global_generator(sprites):
    import random

    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    dataset = webvid(sprites / "train").train_set
    dataset[3]
    assert torch.equal(states[0], torch.get_rng_state()) and states[2] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"frames": 1}, r"data.frames=1: expected at least 2"),
        ({"height": 20}, r"data.height=20: expected a positive multiple of 8"),
        ({"width": 0}, r"data.width=0"),
        ({"batch_size": 0}, r"data.batch_size=0"),
        ({"num_workers": -1}, r"data.num_workers=-1"),
        ({"frames": 16}, r"index.json: frames is 3, but frames=16 was asked"),
        ({"width": 32}, r"index.json: width is 24, but width=32 was asked; the shards hold 3 frames of 16x24 at 8 fps"),
        ({"fps": 7.0}, r"index.json: fps is 8, but fps=7 was asked"),
    ],
)
def test_bad_arguments_are_one_line(sprites, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        webvid(sprites / "train", **arguments)
    assert "\n" not in str(raised.value)


def test_missing_shards_and_missing_index(tmp_path):
    with pytest.raises(UserError, match="nothing matches '.*nowhere'"):
        webvid(tmp_path / "nowhere")
    with pytest.raises(UserError, match="index.json is missing"):
        webvid(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 3, "frames": 3, "height": 16}')
    with pytest.raises(UserError, match="index.json: field 'width'"):
        webvid(tmp_path)


# Faults


@pytest.fixture
def broken(sprites, tmp_path):
    """The training set with the mp4 of clip 2 changed and the flow of clip 4 cut out of the file's bytes."""
    folder = tmp_path / "broken"
    shutil.copytree(sprites / "train", folder)
    shard = folder / "00000.tar"
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    index = json.loads((folder / "00000.index.json").read_bytes())
    for kind, clip in (("mp4", 2), ("flow.z", 4)):
        offset, size, _ = index["members"][kind][clip]
        data[offset + size // 2] ^= 0xFF
    shard.write_bytes(data)
    return folder


def test_a_broken_clip_is_replaced_the_same_with_any_number_of_workers(broken, caplog):
    rows = {}
    for workers in (0, 2):
        with caplog.at_level(logging.WARNING, "datamodules.base"):
            batches = list(webvid(broken, num_workers=workers, seed=4).train_dataloader())
        rows[workers] = [row for b in batches for row in zip(b["key"], b["replaced"].tolist(), b["position"].tolist())]
        logged = [record.getMessage() for record in caplog.records]
        assert (
            sum("sprite-000002" in line for line in logged) == 1
            and sum("sprite-000004" in line for line in logged) == 1
        )
        assert all("CRC-32" in line for line in logged)
        caplog.clear()
    assert rows[0] == rows[2] and len(rows[0]) == 6 and sum(replaced > 0 for _, replaced, _ in rows[0]) == 2
    assert not {"sprite-000002", "sprite-000004"} & {key for key, _, _ in rows[0]}


def test_more_than_one_percent_bad_stops_the_run(broken):
    module, seen = webvid(broken), 0
    with pytest.raises(UserError, match=r"11 of the last \d+ clips could not be used") as raised:
        for _ in range(100):
            for batch in module.train_dataloader():
                seen += len(batch["key"])
            module.load_state_dict({"position": seen})
    assert "\n" not in str(raised.value) and seen < 60


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_is_one_line(sprites, tmp_path, workers):
    shutil.copytree(sprites / "train", tmp_path / "set")
    module = webvid(tmp_path / "set", num_workers=workers)
    (tmp_path / "set/00000.tar").unlink()
    with pytest.raises(UserError, match="16 clips in a row cannot be used; the last: .*No such file") as raised:
        next(iter(module.train_dataloader()))
    assert "\n" not in str(raised.value)
