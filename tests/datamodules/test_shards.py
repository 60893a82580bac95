"""Codec, shards, sprites and the batch: what is written comes back, and what is broken is noticed."""

import io
import json
import logging
import shutil
import struct
import zlib

import av
import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import conditions
from conditions import MOTION_NORMS, GaussianFiltered, RegionWise, motion_bucket
from datamodules import flow_codec, mask_codec, mp4, samples
from datamodules.errors import BadClip, BadShards
from datamodules.scene import Layer, Motion, Scene, random_scene, render, rounded_box, tracks
from datamodules.shards import MEMBERS, ClipShape, Shards, expand, sanitised, write_index
from datamodules.sprites import SpritesDataModule, sprite
from datamodules.textures import Texture
from datamodules.webvid import WebVidDataModule
from datamodules.writer import ShardWriter

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


@pytest.mark.parametrize("step", [1 / 4, 1 / 8, 1 / 32])
@pytest.mark.parametrize("frames", [2, 16, 19])
def test_flow_error_is_at_most_a_step(step, frames):
    flow = np.random.default_rng(0).normal(size=(frames, 2, 24, 40)).astype(np.float32) * 40
    flow[0] = 0
    stored = flow_codec.decode_flow(flow_codec.encode_flow(flow, step), flow.shape)
    assert stored.dtype == np.uint16 and (stored[0] == 32768).all()
    assert np.abs(flow_codec.to_pixels(stored, step) - flow).max() <= step + 1e-5


@pytest.mark.parametrize(
    "value, message", [(np.nan, "not finite"), (np.inf, "not finite"), (5000.0, "exceeds the 2048 px")]
)
def test_flow_that_cannot_be_stored_is_refused(value, message):
    flow = np.zeros((3, 2, 8, 8), dtype=np.float32)
    flow[1, 0, 2, 2] = value
    with pytest.raises(BadClip, match=message):
        flow_codec.encode_flow(flow)


def test_flow_that_moves_frame_1_is_refused():
    with pytest.raises(BadClip, match="frame 1"):
        flow_codec.encode_flow(np.full((3, 2, 8, 8), 0.05, dtype=np.float32))


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (72, 136)])
def test_filled_flow_keeps_what_is_visible(size):
    rng = np.random.default_rng(4)
    flow = np.cumsum(rng.normal(size=(4, 2, *size)), axis=-1).astype(np.float32)
    visible = cv2.blur(rng.random((*size, 4)), (5, 5)).transpose(2, 0, 1) > 0.5
    flow[0], visible[0], visible[3] = 0, True, False
    wild = np.where(visible[:, None], flow, rng.normal(size=flow.shape).astype(np.float32) * 4000)
    data = flow_codec.encode_flow(wild, visible=visible)
    found = flow_codec.to_pixels(flow_codec.decode_flow(data, flow.shape))
    assert np.abs(found - flow).max(where=visible[:, None], initial=0) <= 1 / 16 + 1e-5
    assert (found[3] == 0).all() and np.abs(found).max() <= np.abs(flow).max() + 1  # no trace of what was hidden
    assert len(data) < len(flow_codec.encode_flow(flow))


def test_flow_decodes_as_the_data_page_says():
    """Read here from docs/data.md alone: what is on disk must not change unnoticed."""
    rng = np.random.default_rng(0)
    flow = np.cumsum(rng.normal(size=(3, 2, 16, 24)) * 2, axis=-1).astype(np.float32)
    flow[1, :, 4:9, 5:11] += 700
    flow[0] = 0
    data = flow_codec.encode_flow(flow)
    magic, frames, components, height, width, *sizes = struct.unpack_from("<4s4H4I", data)
    coarse, fine, third, fourth = (
        np.frombuffer(zlib.decompress(data[end - size : end]), np.uint8)
        for end, size in zip(28 + np.cumsum(sizes), sizes)
    )
    wide = third.view(np.int8).astype(int)
    assert magic == b"FLW2" and (wide == -128).sum() == fourth.size // 2 > 4
    wide[wide == -128] = fourth.view("<i2")
    wide = iter(wide.tolist())

    def symbols(packed, bits):
        for byte in packed.tolist():
            for shift in range(0, 8, bits):
                k = byte >> shift & (2**bits - 1)
                k -= 2**bits * (k >= 2 ** (bits - 1))
                yield next(wide) if k == -(2 ** (bits - 1)) else k

    def take(source, shape):
        return np.array([next(source) for _ in range(int(np.prod(shape)))], dtype=int).reshape(shape)

    n = frames * components
    source = symbols(coarse, 4)
    pictures = 2 * take(source, (n, -(-height // 32), -(-width // 32)))
    for step in (16, 8, 4, 2, 1):
        if step == 2:  # from here on picture by picture
            source = symbols(fine, 2)
            break
        pictures = doubled(pictures, source, -(-height // step), -(-width // step), take)
    done = []
    for picture in pictures:
        one = picture[None]
        for step in (2, 1):
            one = doubled(one, source, -(-height // step), -(-width // step), take)
        done.append(one[0])
    found = np.reshape(done, (frames, components, height, width)) / 16
    assert next(wide, None) is None and np.abs(found - flow[1:]).max() <= 1 / 16 + 1e-5
    assert (found * 16 + 32768 == flow_codec.decode_flow(data, flow.shape)[1:]).all()


def doubled(known, source, height, width, take):
    """The next level of pictures (N, h, w), as docs/data.md says: rows, then columns."""
    for axis, size in ((1, height), (2, width)):
        count = known.shape[axis]
        shape = [*known.shape]
        shape[axis] = size - count
        near = np.clip(np.arange(-1, size - count + 2), 0, count - 1)
        before, left, right, after = (np.take(known, near[i : i + size - count], axis) for i in range(4))
        total = left + right
        odd = (total + (total - before - after >> 3) + 1 >> 1) + 2 * take(source, shape)
        known = np.insert(known, np.arange(1, size - count + 1), odd, axis)
    return known


@pytest.mark.parametrize("frames", [2, 16, 40])
def test_masks_come_back(frames):
    rng = np.random.default_rng(1)
    visibility, moving = rng.random((frames, 10, 12)) > 0.3, rng.random((2, 10, 12)) > 0.5
    visibility[0] = True
    data = mask_codec.encode_masks(visibility, moving)
    found = np.zeros_like(visibility), np.zeros_like(moving)
    mask_codec.decode_masks(data, *found)
    assert (found[0] == visibility).all() and (found[1] == moving).all()
    with pytest.raises(BadClip, match="expected 1 of size"):
        mask_codec.decode_masks(data, found[0][:-1], found[1])


@pytest.mark.parametrize(
    "condition", [RegionWise(), RegionWise(motion_norm="squared"), GaussianFiltered(kernel_size=9)]
)
def test_filled_sets_train_on_the_trackers_own_numbers(condition):
    """Mask and bucket are those of the tracker's flow to the bit, filled or not; displacements are off by 1/16 px."""
    scene = random_scene([3, 1], 3, 16, 24)
    flow, visibility = tracks(scene)
    flow, visibility = flow * np.float32(1.37), visibility.copy()
    visibility[1:, 4:12, 6:18] = False
    clip = torch.from_numpy(flow)[None]
    seed = torch.tensor([5])
    expected = condition(clip, torch.from_numpy(visibility)[None], seed)
    for fill in ("smooth", "none"):
        members = samples.encode(render(scene), flow, visibility, 8.0, {}, {}, fill=fill)
        found = samples.decode(members, SHAPE)
        motion = conditions.Motion(None, dict(zip(MOTION_NORMS, torch.from_numpy(found["moving"])[:, None])))
        pixels = torch.from_numpy(flow_codec.to_pixels(found["flow"], found["flow_step"]))[None]
        control = condition(pixels, torch.from_numpy(found["visibility"])[None], seed, motion)
        assert found["motion_bucket"] == motion_bucket(clip).numpy()[0]
        assert torch.equal(control[:, :, 2], expected[:, :, 2]) and (control[:, :, 2] == 1).any()
        assert (control - expected).abs().max() <= (1 / 16 if isinstance(condition, RegionWise) else 0.5) + 1e-5
        assert json.loads(members["json"])["flow"]["fill"] == fill


def test_broken_bytes_raise_bad_clip_and_nothing_else():
    rng = np.random.default_rng(2)
    members = sprite(SHAPE, [1])
    for trial in range(40):
        broken = dict(members)
        kind = MEMBERS[trial % 3]
        data = bytearray(broken[kind][: rng.integers(0, len(broken[kind]))] if trial % 2 else broken[kind])
        for place in rng.integers(0, max(1, len(data)), 20) if data else []:
            data[place] ^= int(rng.integers(1, 256))
        broken[kind] = bytes(data)
        try:
            decoded = samples.decode(broken, SHAPE)
        except BadClip as error:
            assert "\n" not in str(error)
        else:
            assert decoded["flow"].shape == (3, 2, 16, 24)


def test_another_shape_is_refused():
    members = sprite(SHAPE, [1])
    for other in (ClipShape(4, 16, 24, 8.0), ClipShape(2, 16, 24, 8.0), ClipShape(3, 24, 16, 8.0)):
        with pytest.raises(BadClip, match="expected"):
            samples.decode(members, other)


def test_mp4_is_the_same_bytes_twice_and_close_to_the_frames():
    frames = render(random_scene([3], 8, 64, 64))
    data = mp4.encode_mp4(frames, 8)
    assert data == mp4.encode_mp4(frames, 8) and data.find(b"moov") < data.find(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        theirs = np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])
    ours = mp4.decode_mp4(data, frames.shape)
    assert (ours == theirs.transpose(0, 3, 1, 2)).all() and np.abs(ours.astype(int) - frames).mean() < 4
    assert (mp4.decode_first_frame(data, frames.shape[1:]) == ours[0]).all()


# Sprites


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
    with pytest.raises(BadShards, match="nothing matches '.*none-{0..3}.tar'"):
        expand(str(tmp_path / "none-{0..3}.tar"))


def test_ten_thousand_shards_open_fast(tmp_path):
    import time

    entry = {"clips": 1000, "bytes": 10**9, "sha256": "0" * 64, "index_crc32": 0}
    write_index(tmp_path, SHAPE, ({"name": f"{n:05d}-000.tar", **entry} for n in range(10_000)))
    begin = time.process_time()
    assert len(Shards(tmp_path)) == 10_000_000 and time.process_time() - begin < 3


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
    with pytest.raises(MisconfigurationException, match=message) as raised:
        webvid(sprites / "train", **arguments)
    assert "\n" not in str(raised.value)


def test_missing_shards_and_missing_index(tmp_path):
    with pytest.raises(MisconfigurationException, match="nothing matches '.*nowhere'"):
        webvid(tmp_path / "nowhere")
    with pytest.raises(MisconfigurationException, match="index.json is missing"):
        webvid(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 3, "frames": 3, "height": 16}')
    with pytest.raises(MisconfigurationException, match="index.json: field 'width'"):
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
    with pytest.raises(MisconfigurationException, match=r"11 of the last \d+ clips could not be used") as raised:
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
    with pytest.raises(
        MisconfigurationException, match="16 clips in a row cannot be used; the last: .*No such file"
    ) as raised:
        next(iter(module.train_dataloader()))
    assert "\n" not in str(raised.value)
