"""Prompts of CogVideoX: diffusers' embeddings of all tokens, with either tokenizer; captions, command, one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from conditions import RegionWise
from datamodules import WebVidDataModule
from datamodules.captions import Captions
from datamodules.scenes.clips import sprite
from datamodules.shards import CAPTION, ClipShape, Shards, write_index
from datamodules.shards.writer import ShardWriter
from lightning_modules import MotionControlModule
from lightning_modules.bases import CogVideoX, RandomCogVideoX
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from tests.support import cogvideox
from tests.support.cogvideox import FRAMES, SIDE, TOKENS
from tests.support.commands import remoco

TRACKS = [[(9, 9), (30, 9)]]
TEXTS = ["red dog", "dog", "", "  red\n dog ", "dog&amp;"]
LONG = "dog " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cogvideox.write(tmp_path_factory.mktemp("cogvideox") / "tiny")


@pytest.fixture(scope="module")
def pieces(folder, tmp_path_factory):
    pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install -e '.[text]' -c constraints.txt")
    copy = tmp_path_factory.mktemp("cogvideox") / "pieces"
    shutil.copytree(folder, copy)
    return cogvideox.write_pieces(copy)


def theirs(folder, kind):
    """diffusers' pipeline in float64, with a folder's tokenizer and text encoder."""
    pipe = cogvideox.pipeline(RandomCogVideoX("tiny_i2v", 3).build(torch.float64))
    pipe.tokenizer = kind.from_pretrained(folder / "tokenizer")
    pipe.text_encoder = type(pipe.text_encoder).from_pretrained(folder / "text_encoder")
    torch.nn.Module.to(pipe.text_encoder, torch.float64)
    return pipe


@pytest.mark.parametrize("layout", ["folder", "pieces"])
def test_embeddings_are_diffusers(layout, request):
    path = request.getfixturevalue(layout)
    pipe = theirs(path, PreTrainedTokenizerFast if layout == "folder" else T5Tokenizer)
    base = CogVideoX(path).build(torch.float64)
    texts = [*TEXTS, "two dogs, été", "</s> dog", "x" * 40]
    wanted = pipe.encode_prompt(texts, "dog", True, max_sequence_length=TOKENS, device="cpu")
    for text, mine, other in zip(texts, base.embed_text(texts), wanted[0], strict=True):
        assert mine.shape == (TOKENS, 16) and not mine.requires_grad
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12, msg=text)
    torch.testing.assert_close(base.embed_text(["dog"])[0], wanted[1][0], rtol=0, atol=1e-12)
    assert (
        torch.equal(base.embed_text([""])[0], base.empty)
        and len({each.sum().item() for each in wanted[0].detach()}) >= 6
    )


def pipeline(base):
    module = MotionControlModule(
        base, RegionWise(min_mask_ratio=0.5), control=Control([], None), sampling=Sampling(2, guidance=(3.0, 3.0))
    )
    module.configure_model()
    pipe = MotionControlPipeline(module, {"num_frames": FRAMES, "height": SIDE, "width": SIDE})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture():
    return np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def test_a_clip_is_of_its_prompt_and_guidance_leads_away_from_the_negative_one(folder, tmp_path):
    pipe = pipeline(CogVideoX(folder))

    def clip(**more):
        return pipe(picture(), TRACKS, height=SIDE, width=SIDE, output_type="pt", **more).frames

    plain, red = clip(), clip(prompt="red dog")
    assert torch.equal(red, clip(prompt="red dog")) and not torch.equal(red, plain)
    assert torch.equal(plain, clip(prompt=" ", negative_prompt=""))
    one, only = ({"min_guidance_scale": n, "max_guidance_scale": n} for n in (1, 0))
    away = clip(prompt="red dog", negative_prompt="dog", **only)
    torch.testing.assert_close(away, clip(prompt="dog", **one), rtol=0, atol=1e-4)
    assert not torch.allclose(away, clip(prompt="red dog", **one), atol=1e-3)
    with pytest.raises(UserError, match=rf"^prompt: '{'dog ' * 10}'... has 61 tokens, expected at most {TOKENS}$"):
        clip(prompt=LONG)
    assert not any("T5" in type(part).__name__ for part in pipe.module.modules())

    pipe.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "image.png")
    (tmp_path / "tracks.json").write_text(json.dumps({"traj_key_points": TRACKS}))
    asked = ["generate", tmp_path / "model", tmp_path / "image.png", "--tracks", tmp_path / "tracks.json"]
    asked += ["--svd", folder, "--device", "cpu", "--steps", "1", "--out", tmp_path / "x.mp4"]
    assert remoco(*asked, "--prompt", "red dog", "--negative-prompt", "dog") == 0 and (tmp_path / "x.mp4").exists()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root, shape = tmp_path_factory.mktemp("data") / "shards", ClipShape(FRAMES, SIDE, SIDE, 8.0)
    root.mkdir()
    with ShardWriter(root / "00000.tar") as writer:
        for clip, text in enumerate(["red dog", "dog", "", LONG]):
            writer.write(f"clip-{clip}", {**sprite(shape, [clip]), CAPTION: text.encode()})
    write_index(root, shape, [writer.entry])
    return root


def test_captions_train_and_are_dropped_to_the_empty_text_by_position(folder, shards, tmp_path):
    out = tmp_path / "text.safetensors"
    asked = ["captions", shards, out, "--base", folder, "--device", "cpu", "--negative-prompt", "red"]
    assert remoco(*asked) == 0
    found, base = Shards(str(shards)), CogVideoX(folder).build(torch.bfloat16)
    captions = Captions(out, found.digest, found.counts)
    assert torch.equal(captions.of(0, 0), base.embed_text(["red dog"])[0])
    assert torch.equal(captions.of(0, 2), base.empty) and captions.of(0, 3).shape == (TOKENS, 16)
    assert torch.equal(captions.negative(), base.embed_text(["red"])[0])
    given = {}
    for size in (1, 2):
        net = MotionControlModule(
            CogVideoX(folder), RegionWise(min_mask_ratio=0.5), control=Control([], "attention", 2),
            noise=Noise(dropout=0.5),
        )  # fmt: skip
        net.configure_model()
        net.log, predict, seen = lambda *args, **more: None, net.base.transformer.forward, []
        net.base.transformer.forward = lambda x, text, *a, p=predict, s=seen, **m: s.append(text) or p(x, text, *a, **m)
        clips = WebVidDataModule(
            str(shards), text=str(out), batch_size=size, num_workers=0, frames=FRAMES, height=SIDE, width=SIDE, seed=3
        )
        for batch, _ in zip(clips.train_dataloader(), range(4 // size), strict=False):
            net.training_step(batch, 0)
            for key, text, position in zip(batch["key"], seen[-1], batch["position"].tolist(), strict=True):
                given.setdefault(position, []).append((key, text))
    kept = []
    for (key, text), (again, other) in given.values():
        assert key == again and torch.equal(text, other)
        caption = captions.of(0, int(key.split("-")[1])).float()
        kept.append(torch.equal(text, caption))
        assert kept[-1] or torch.equal(text, net.base.empty.bfloat16().float())
    assert True in kept and False in kept


def test_a_base_that_takes_no_text_has_no_captions(shards, tmp_path, capsys):
    from tests.support.nets import random_svd

    networks = random_svd("tiny", seed=1)
    for name in ("unet", "vae", "image_encoder"):
        getattr(networks, name).save_pretrained(tmp_path / name)
    assert remoco("captions", shards, tmp_path / "x.safetensors", "--base", tmp_path, "--device", "cpu") == 2
    assert capsys.readouterr().err.strip().endswith("this base takes no text, expected Wan or CogVideoX")


def test_pieces_without_the_library_or_damaged_are_one_line(pieces, tmp_path, monkeypatch):
    base = CogVideoX(pieces).build()
    copy = tmp_path / "copy"
    shutil.copytree(pieces, copy)
    (copy / "tokenizer" / "spiece.model").write_bytes(b"x" * 99)
    with pytest.raises(UserError, match=r"^prompt: cannot read \S+/spiece.model as a tokenizer: .*$") as caught:
        CogVideoX(copy).build().embed_text(["dog"])
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"spiece.model needs the library sentencepiece: pip install -e '.\[text\]'"):
        base.embed_text(["dog"])
