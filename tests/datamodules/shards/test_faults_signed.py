"""Shards whose checksums agree and whose content cannot be: replaced or one line, no traceback, little memory."""

import json
import os
import re
import resource

import numpy as np
import pytest

from datamodules.shards import FLOW, INDEX, LATENT, META, Shards, samples, unpack
from remoco.common.errors import BadClip, UserError
from tests.support.broken_shards import HASHES, SHAPE, epoch, latents, module, rewrite, write
from tests.support.commands import prepare as run


def retagged(data, tag, value):
    """A TIFF with one number of its first directory replaced."""
    begin = int.from_bytes(data[4:8], "little")
    for place in range(begin + 2, begin + 2 + 12 * int.from_bytes(data[begin : begin + 2], "little"), 12):
        if int.from_bytes(data[place : place + 2], "little") == tag:
            size = {3: 2, 4: 4}[int.from_bytes(data[place + 2 : place + 4], "little")]
            return data[: place + 8] + value.to_bytes(size, "little") + data[place + 8 + size :]
    raise AssertionError(tag)


def grown(data, box, place, value):
    """An mp4 with one 32-bit number of a box replaced."""
    at = data.index(box) + 4 + place
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    "kind, make, reason",
    [
        ("masks.tif", lambda data: retagged(retagged(data, 256, 60_000), 257, 60_000), "visibility"),
        (
            "masks.tif",
            lambda data: retagged(data, 257, 32),
            "visibility is 1 of size (24, 32)",
        ),
        ("masks.tif", lambda data: retagged(data, 258, 16), "visibility"),
        ("masks.tif", lambda data: data[:8], "visibility does not decode"),
        ("mp4", lambda data: grown(data, b"stsz", 8, 2**32 - 1), "expected 3"),
        ("mp4", lambda data: grown(grown(data, b"stsz", 4, 1), b"stsz", 8, 2**32 - 1), "expected 3"),
        ("mp4", lambda data: grown(data, b"stsc", 4, 2**31), "mp4 has a table"),
        ("mp4", lambda data: data + bytes([0, 0, 0, 8]) * 2 * 5000, "mp4 has"),
        (META, lambda data: b"[" * 100_000, "nested too deeply"),
        (META, lambda data: b'{"flow": ' + b'{"a":' * 100_000, "nested too deeply"),
        (META, lambda data: data.replace(b'"frames":3', b'"frames":' + b"9" * 5000), "json lacks a field"),
        (META, lambda data: data.replace(b'"fps":8.0', b'"fps":1e999'), "at inf fps"),
        (FLOW, lambda data: data[:12] + b"\xff" * 16 + data[28:], "flow does not decode"),
        (LATENT, lambda data: latents(latent_mean=np.zeros((3, 4, 0, 3), np.float16)), "latents have shapes"),
        (LATENT, lambda data: b"\xff" * 7 + b"\x7f" + b"{", "latents do not read"),
        ("txt", lambda data: bytes(1 << 22), None),
    ],
)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_members_signed_but_broken(clips, tmp_path, kind, make, reason, decoder):
    """They are replaced, in less than 200 MB more than a sound clip takes."""
    if decoder == "decord" and kind != "mp4":
        pytest.skip("the decoder sees mp4 alone")
    broken = {**clips[2], kind: make(clips[2][kind])}
    folder = write(tmp_path / "set", [clips[0], broken], HASHES)
    shards = Shards(folder)
    members = samples.arrays(SHAPE, latents=kind == LATENT)
    out = {name: np.empty(*spec) for name, spec in members.items()}
    samples.load_into(shards, 0, 0, out, decoder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reason is None:
        samples.load_into(shards, 0, 1, out, decoder)
        with pytest.raises(BadClip, match="too many for 3 frames"):
            shards.read(0, 1, [kind])
    else:
        with pytest.raises(BadClip) as raised:
            samples.load_into(shards, 0, 1, out, decoder)
        assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3  # KiB


@pytest.mark.parametrize("name", ["00000-000.tar", "00000-000.index.json", INDEX])
def test_a_fifo_in_place_of_a_file_is_one_line(copy, name):
    path = copy.parent / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{name}.*not (a )?re(gular|ad)") as raised:
        epoch(module(copy.parent))
    assert "\n" not in str(raised.value)
    assert run("verify", copy.parent, "--workers", 1) in (1, 2)


@pytest.mark.parametrize(
    "field, value",
    [
        ("clips", -1), ("clips", 2**62), ("clips", 2**70), ("clips", True), ("clips", 1.5), ("bytes", 2**62),
        ("bytes", -5), ("index_crc32", -1), ("index_crc32", None), ("sha256", 5), ("name", "../x.tar"), ("name", 5),
        ("name", "x" * 300 + ".tar"),
    ],
)  # fmt: skip
def test_numbers_of_the_index_that_cannot_be(copy, field, value):
    rewrite(copy, lambda index: None, {field: value})
    with pytest.raises(UserError, match="index.json") as raised:
        module(copy.parent)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "field, value",
    [
        ("frames", 2**62), ("height", -16), ("width", 1e9), ("fps", float("inf")), ("fps", 0), ("fps", "8"),
        ("frames", None), ("shards", 5), ("shards", [5]), ("shards", None), ("latents", [1]), ("latents", {"vae": 5}),
        ("format", "2"), ("cache", []), ("cache", {"tensors": None, "files": {}}),
        ("cache", {"tensors": {"latent_mean": 5}, "files": {}}),
        ("cache", {"tensors": {"latent_mean": [["F32"], [4, 4]]}, "files": {}}),
        ("cache", {"tensors": {"latent_mean": ["F32", [4, 16]]}, "files": {}}),
        ("cache", {"tensors": {"text": ["BF16", [4, 16, 3, 3]]}, "files": {}}), ("cache", {"tensors": {}, "files": 5}),
    ],
)  # fmt: skip
def test_fields_of_the_index_that_cannot_be(copy, field, value):
    path = copy.parent / INDEX
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    with pytest.raises(UserError, match="index.json") as raised:
        module(copy.parent)
    assert "\n" not in str(raised.value)
    assert field != "cache" or not re.search("NoneType|iterable|indices", str(raised.value))


def test_a_sidecar_whose_shard_is_said_to_be_large(copy):
    """`bytes: 2**62` in the sidecar makes a member of 2**60 bytes look sound."""
    rewrite(copy, lambda index: index.update(bytes=2**62, members=index["members"] | {"mp4": [[0, 2**60, 1]] * 6}))
    with pytest.raises(UserError, match="has 1152921504606846976 bytes, too many for"):
        epoch(module(copy.parent))
    with pytest.raises(BadClip, match="listed outside of the file"):
        list(unpack(copy))
