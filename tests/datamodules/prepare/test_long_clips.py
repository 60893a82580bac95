"""Clips of Wan's lengths: prepared with their captions, and decoded no further than a step needs."""

from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import WebVidDataModule
from datamodules.shards import samples
from remoco.common.videos import mp4
from tests.support.commands import prepare
from tests.support.videos import number_of, numbered, write_pictures


class Counting:
    """A decoder that notes each coded picture it is given."""

    def __init__(self, decoder, given):
        vars(self).update(decoder=decoder, given=given)

    def __setattr__(self, name, value):
        setattr(self.decoder, name, value)

    def decode(self, packet):
        self.given.extend([] if packet is None else [packet.size])
        return self.decoder.decode(packet)


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by one for each coded picture of our mp4 that is decoded."""
    given, create = [], mp4.CodecContext.create
    made = SimpleNamespace(create=lambda *args: Counting(create(*args), given))
    monkeypatch.setattr(mp4, "CodecContext", made)
    return given


@pytest.mark.parametrize(("frames", "fps"), [(81, 16), pytest.param(121, 24, marks=pytest.mark.slow)])
def test_a_long_clip_has_its_caption_and_only_what_a_step_needs_is_decoded(tmp_path, decoded, frames, fps):
    videos, shards = tmp_path / "videos", tmp_path / "shards"
    videos.mkdir()
    write_pictures(videos / "a.mp4", [numbered(number) for number in range(frames + 10)], rate=fps)
    (videos / "a.txt").write_text("bars that count")
    size = ("--frames", frames, "--fps", fps, "--height", 48, "--width", 80)
    assert prepare(videos, shards, *size, "--workers", 1) == 0
    data = WebVidDataModule(str(shards), None, 1, num_workers=0, frames=frames, height=48, width=80, fps=fps)
    (batch,) = data.train_dataloader()
    assert len(decoded) == frames  # latents are not cached: the step encodes all of it
    assert batch["video"].shape == (1, frames, 3, 48, 80) and batch["flow"].shape == (1, frames, 2, 48, 80)
    assert [number_of(image.permute(1, 2, 0).numpy()) for image in batch["video"][0]] == list(range(5, frames + 5))
    opened = data.train_set.shards
    members = opened.read(0, 0, ["mp4", "txt", *samples.kinds_of(latents=False)])
    assert members["txt"] == b"bars that count"
    decoded.clear()
    out = {name: np.empty(*spec) for name, spec in samples.arrays(opened.shape, latents=True).items()}
    samples.decode_into(members, opened.shape, out)
    assert len(decoded) == 1  # with cached latents a step sees the first frame alone
    assert (out["first_frame"] == batch["first_frame"][0].numpy()).all()
