"""The codecs of a clip's members: flow within its bound, masks bit for bit, mp4 of the same bytes."""

import io
import json
import struct
import tracemalloc
import zlib

import av
import cv2
import numpy as np
import pytest
import torch

import conditions
from conditions import MOTION_NORMS, GaussianFiltered, RegionWise, motion_bucket
from datamodules.scenes.clips import sprite
from datamodules.scenes.scene import random_scene, render, tracks
from datamodules.shards import MEMBERS, ClipShape, flow_codec, mask_codec, samples
from remoco.common.errors import BadClip
from remoco.common.videos import mp4

SHAPE = ClipShape(frames=3, height=16, width=24, fps=8.0)


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


def test_a_long_clip_is_encoded_part_by_part_to_the_same_bytes(monkeypatch):
    """In float64 all of a clip of 121 x 704 x 1280 at once would take 6 GB beside its flow of 0.9."""
    rng, shape = np.random.default_rng(0), (25, 64, 96)
    flow = rng.normal(0, 3, (shape[0], 2, *shape[1:])).astype(np.float32).cumsum(0) / 4
    flow[0] = 0
    visible = rng.random(shape) > 0.2
    visible[0] = True
    found, peaks = [], []
    for frames in (1, 7, 100):
        monkeypatch.setattr(flow_codec, "PART", frames)
        tracemalloc.start()
        found.append(flow_codec.encode_flow(flow, visible=visible))
        peaks.append(tracemalloc.get_traced_memory()[1] / flow.nbytes)
        tracemalloc.stop()
    assert found[0] == found[1] == found[2] and max(peaks[:2]) < 4 < peaks[2]


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
