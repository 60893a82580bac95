"""Broken data while reading: replaced, counted and logged, or one line for the whole set; no garbage, no crash."""

import json
import logging

import numpy as np
import pytest
import safetensors.numpy

from datamodules.scenes.clips import sprite
from datamodules.shards import FLOW, LATENT, META, ClipShape, Shards, samples
from datamodules.webvid import WebVidDataModule
from remoco.common.errors import BadClip, UserError
from tests.support.broken_shards import CLIPS, HASHES, KINDS, SHAPE, epoch, latents, module, rewrite, write


def contents(shards, clip):
    """A clip's members, or the reason why it has none."""
    try:
        return shards.read(0, clip, KINDS)
    except BadClip as error:
        assert "\n" not in str(error)
        return str(error)


def assert_replaced(folder, bad, reason, caplog, **arguments):
    """Of one epoch, exactly the clips `bad` are replaced, each logged once with the reason."""
    with caplog.at_level(logging.WARNING, "datamodules.base"):
        rows = epoch(module(folder, **arguments))
    logged = [record.getMessage() for record in caplog.records]
    assert len(rows) == CLIPS and sum(replaced > 0 for _, replaced in rows) == len(bad)
    assert not {f"clip-{n}" for n in bad} & {key for key, _ in rows}
    assert len(logged) == len(bad) and all(reason in line and "\n" not in line for line in logged), logged


# Bytes


def flip_everywhere(shard, clips, count):
    """Flip one byte at each of `count` places of a shard: every clip reads as it was, or is said to be bad."""
    data, found = shard.read_bytes(), 0
    for place in np.linspace(0, len(data) - 1, count).astype(int):
        with open(shard, "r+b") as file:
            file.seek(place)
            file.write(bytes([data[place] ^ 0x41]))
        read = [contents(Shards(shard.parent), clip) for clip in range(CLIPS)]
        bad = [clip for clip in range(CLIPS) if isinstance(read[clip], str)]
        assert all(read[clip] == clips[clip] for clip in range(CLIPS) if clip not in bad) and len(bad) <= 1
        assert all("has changed" in read[clip] for clip in bad)
        found += len(bad)
        with open(shard, "r+b") as file:
            file.seek(place)
            file.write(data[place : place + 1])
    return found


def test_a_flipped_byte_anywhere_in_a_shard_is_noticed_or_harmless(copy, clips):
    assert flip_everywhere(copy, clips, 300) > 30


@pytest.mark.slow
def test_a_flipped_byte_at_every_seventh_place(copy, clips):
    assert flip_everywhere(copy, clips, copy.stat().st_size // 7) > 1000


def decode_broken(members, trials, seed):
    """Members broken before their checksum was taken: decoded to the right shapes, or BadClip with one line."""
    rng, refused = np.random.default_rng(seed), 0
    for trial in range(trials):
        kind = KINDS[trial % len(KINDS)]
        data = bytearray(members[kind])
        if trial // len(KINDS) % 3 == 0:
            data = data[: rng.integers(0, len(data) + 1)]
        for place in rng.integers(0, max(1, len(data)), rng.integers(1, 9)) if data else []:
            data[place] ^= int(rng.integers(1, 256))
        broken = {**members, kind: bytes(data)}
        for names in (samples.arrays(SHAPE, latents=False), samples.arrays(SHAPE, latents=True)):
            out = {name: np.empty(*spec) for name, spec in names.items()}
            try:
                found = samples.decode_into(broken, SHAPE, out)
            except BadClip as error:
                refused += 1
                assert "\n" not in str(error)
            else:
                assert (out["flow"][0] == 32768).all() and out["visibility"][0].all()
                assert np.isfinite(found["latent_mean"]).all() and found["flow_step"] <= 1
    return refused


def test_decoders_refuse_broken_bytes_and_raise_nothing_else(clips):
    assert decode_broken(clips[0], 240, 0) > 150


@pytest.mark.slow
def test_decoders_refuse_broken_bytes_longer(clips):
    assert sum(decode_broken(clips[n], 1200, n) for n in range(3)) > 2400


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_truncated_tar(copy, clips, share):
    with open(copy, "r+b") as file:
        file.truncate(int(copy.stat().st_size * share))
    read = [contents(Shards(copy.parent), clip) for clip in range(CLIPS)]
    bad = [clip for clip in range(CLIPS) if isinstance(read[clip], str)]
    assert bad and bad == list(range(bad[0], CLIPS)) and all("cut short" in read[clip] for clip in bad)
    assert [read[clip] for clip in range(bad[0])] == clips[: bad[0]]
    rows = epoch(module(copy.parent))
    assert len(rows) == CLIPS and {key for key, _ in rows} <= {f"clip-{n}" for n in range(bad[0])}


# Members and values


@pytest.mark.parametrize("kind", ["mp4", FLOW, "masks.tif", META])
def test_missing_member(clips, tmp_path, caplog, kind):
    broken = [{k: v for k, v in m.items() if n != 4 or k != kind} for n, m in enumerate(clips)]
    assert_replaced(write(tmp_path / "set", broken), [4], f"clip-4.{kind} is missing", caplog)


OTHER = sprite(ClipShape(4, 24, 16, 8.0), [9])


@pytest.mark.parametrize(
    "kind, reason",
    [("mp4", "mp4 has 4 frames, expected 3"), (FLOW, "flow is"), ("masks.tif", "visibility is"), (META, "json")],
)
def test_member_of_another_shape(clips, tmp_path, caplog, kind, reason):
    broken = [{**m, kind: OTHER[kind]} if n == 2 else m for n, m in enumerate(clips)]
    assert_replaced(write(tmp_path / "set", broken), [2], reason, caplog)


@pytest.mark.parametrize(
    "field, value, reason",
    [
        (("flow", "step"), float("nan"), "flow.step nan"),
        (("flow", "step"), 50.0, "flow.step 50"),
        (("flow", "step"), 0, "flow.step 0"),
        (("flow", "mean_magnitude"), 900.0, "flow is 900 px in the mean"),
        (("flow", "mean_magnitude"), float("nan"), "flow is nan px"),
        (("fps",), float("inf"), "at inf fps"),
        (("fps",), "fast", "json lacks a field"),
        (("frames",), 5, "json has 5 frames"),
        (("flow",), None, "json lacks a field"),
    ],
)
def test_values_that_cannot_be(clips, tmp_path, caplog, field, value, reason):
    meta = json.loads(clips[3][META])
    place = meta if len(field) == 1 else meta[field[0]]
    place[field[-1]] = value
    broken = [{**m, META: json.dumps(meta).encode()} if n == 3 else m for n, m in enumerate(clips)]
    assert_replaced(write(tmp_path / "set", broken), [3], reason, caplog)


# Latents


def test_latents_take_the_place_of_the_video(clips, whole, tmp_path):
    folder = write(tmp_path / "set", clips, HASHES)
    data, plain = module(folder, val_shards=str(folder)), module(folder, use_latents=False)
    assert data.latent_hashes == HASHES and plain.latent_hashes is None and module(whole).latent_hashes is None
    for batch, video in zip(data.train_dataloader(), plain.train_dataloader()):
        assert "video" not in batch and "latent_mean" not in video
        for name in ("key", "position", "replaced"):
            assert list(batch[name]) == list(video[name])
        for name in ("flow", "visibility", "first_frame", "flow_step", "fps"):
            assert (batch[name] == video[name]).all() and batch[name].dtype == video[name].dtype
        for row, key in enumerate(batch["key"]):
            stored = safetensors.numpy.load(clips[int(key[5:])][LATENT])
            assert all((batch[name][row].numpy() == stored[name]).all() for name in stored)
            assert {str(batch[name].dtype) for name in stored} == {"torch.float16"}
    assert all("video" in batch and "latent_mean" not in batch for batch in data.val_dataloader())


SIZE = (SHAPE.frames, 4, 2, 3)


@pytest.mark.parametrize(
    "broken, reason",
    [
        (None, "latent.safetensors is missing"),
        (b"", "latents do not read"),
        (latents(latent_mean=np.full(SIZE, np.nan, np.float16)), "latent_mean is float16, expected finite"),
        (latents(latent_mean=np.zeros(SIZE, np.float32)), "latent_mean is float32"),
        (latents(latent_std=np.full(SIZE, -1, np.float16)), "latent_std is negative"),
        (latents(latent_std=np.zeros((2, 4, 2, 3), np.float16)), "latents have shapes"),
        (latents(image_embedding=np.zeros(8, np.float16)), "latents have shapes"),
        (safetensors.numpy.save({"latent_mean": np.zeros(SIZE, np.float16)}), "latents do not read"),
    ],
)
def test_broken_latents(clips, tmp_path, caplog, broken, reason):
    changed = [{k: v for k, v in m.items() if n != 4 or k != LATENT} for n, m in enumerate(clips)]
    if broken is not None:
        changed[4][LATENT] = broken
    assert_replaced(write(tmp_path / "set", changed, HASHES), [4], reason, caplog)


def test_a_set_that_says_its_layout_is_mixed_with_one_of_before(clips, tmp_path):
    """Both have SVD's float16; latents of another kind are not mixed with them."""
    first, second = (write(tmp_path / name, clips, HASHES) for name in "ab")
    plain = {
        "latent_mean": ["F16", [3, 4, 2, 3]],
        "latent_std": ["F16", [3, 4, 2, 3]],
        "image_embedding": ["F16", [1, 8]],
    }
    index = json.loads((second / "index.json").read_text())
    (second / "index.json").write_text(json.dumps({**index, "cache": {"tensors": plain, "files": {}}}))
    for folders in ((first, second), (second, first)):
        mixed = Shards([str(folder) for folder in folders])
        assert mixed.latent_hashes == HASHES and mixed.layout is None
    assert Shards(str(second)).layout == {name: (dtype, tuple(shape)) for name, (dtype, shape) in plain.items()}
    other = {"latent_mean": ["F32", [1, 4, 2, 3]]}
    (second / "index.json").write_text(json.dumps({**index, "cache": {"tensors": other, "files": {}}}))
    with pytest.raises(UserError, match="b/index.json: latents are of another kind than in "):
        Shards([str(first), str(second)])


def test_latents_of_different_weights_are_not_mixed(clips, whole, tmp_path):
    first, second = write(tmp_path / "a", clips, HASHES), write(tmp_path / "b", clips, {**HASHES, "vae": "c" * 64})
    size = {"frames": 3, "height": 16, "width": 24, "num_workers": 0}
    with pytest.raises(UserError, match="b/index.json: latents were made with other weights"):
        WebVidDataModule([str(first), str(second)], **size)
    for folders in ([whole, first], [first, whole]):  # a folder without: no latents
        assert WebVidDataModule([str(folder) for folder in folders], **size).latent_hashes is None


# Sets


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_in_mid_epoch(clips, tmp_path, workers, monkeypatch):
    monkeypatch.setattr("datamodules.base.MAX_BAD", 10**6)
    monkeypatch.setattr("datamodules.shards.format.OPEN_SHARDS", 1)  # as when many shards are in use
    folder = write(tmp_path / "set", clips, per_shard=3)
    loader = iter(module(folder, num_workers=workers).train_dataloader())
    rows = [next(loader)]
    (folder / "00003-000.tar").unlink()
    rows += list(loader)
    assert [len(batch["key"]) for batch in rows] == [2, 2, 2]
    again = epoch(module(folder, num_workers=workers))
    assert {key for key, _ in again} <= {"clip-0", "clip-1", "clip-2"} and sum(r > 0 for _, r in again) == 3


@pytest.mark.parametrize(
    "change, entry, reason",
    [
        (lambda index: index["keys"].pop(), None, "no index of 6 clips"),
        (lambda index: index.pop("members"), None, "no index of 6 clips"),
        (lambda index: index["members"][FLOW].pop(), None, "no index of 6 clips"),
        (lambda index: None, {"clips": 7}, "no index of 7 clips"),
        (lambda index: index["members"].update(mp4=[[0, 2**62, 1]] * 6), None, "listed outside of the file"),
        (lambda index: index["members"].update(mp4=[[-5, 10, 1]] * 6), None, "listed outside of the file"),
        (lambda index: index["members"].update(mp4=[["x", 10, 1]] * 6), None, "no index of 6 clips"),
        (lambda index: index["members"].update(mp4=index["members"]["txt"]), None, "mp4 has a box"),
        (lambda index: None, {"index_crc32": 1}, "has changed since the set's index.json was written"),
    ],
)
def test_an_index_that_does_not_match_is_one_line(copy, change, entry, reason):
    rewrite(copy, change, entry)
    with pytest.raises(UserError, match="16 clips in a row cannot be used") as raised:
        epoch(module(copy.parent))
    assert reason in str(raised.value) and "\n" not in str(raised.value)
