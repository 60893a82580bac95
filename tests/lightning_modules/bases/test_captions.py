"""Captions of shards as embeddings: made once, read with their clips, trained on, refused where they do not belong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conditions import RegionWise
from datamodules import WebVidDataModule
from datamodules.captions import Captions
from datamodules.scenes.clips import sprite
from datamodules.shards import CAPTION, ClipShape, Shards, write_index
from datamodules.shards.writer import ShardWriter
from lightning_modules import MotionControlModule, record
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.process import FlowMatching
from remoco.common.errors import BadClip, UserError
from tests.support import wan
from tests.support.commands import remoco
from tests.support.modules import trainer
from tests.support.nets import motion_control
from tests.support.same import same

SHAPE = ClipShape(5, 32, 48, 8.0)
TEXTS = [["red dog", "", "dog"], ["red dog", "dog dog &amp; red", "dog " * 600]]
NEGATIVE = "red red"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan.write(tmp_path_factory.mktemp("wan") / "tiny")


def write(folder, texts):
    folder.mkdir()
    entries = []
    for number, shard in enumerate(texts):
        with ShardWriter(folder / f"{number:05d}.tar") as writer:
            for clip, text in enumerate(shard):
                members = sprite(SHAPE, [number, clip])
                writer.write(f"clip-{number}-{clip}", {**members, CAPTION: text.encode()})
        entries.append(writer.entry)
    write_index(folder, SHAPE, entries)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "shards", TEXTS)


@pytest.fixture(scope="module")
def made(folder, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "text.safetensors"
    asked = ["captions", shards, out, "--base", folder, "--device", "cpu"]
    assert remoco(*asked, "--negative-prompt", NEGATIVE) == 0
    return out


def opened(path, shards):
    found = Shards(str(shards))
    return Captions(path, found.digest, found.counts)


def data(shards, text, **more):
    options = {"batch_size": 2, "num_workers": 0, "frames": 5, "height": 32, "width": 48, "seed": 3}
    return WebVidDataModule(str(shards), text=None if text is None else str(text), **{**options, **more})


def test_they_are_the_bases_own_embeddings_each_text_once(folder, shards, made, capsys):
    base, captions = Wan(folder).build(torch.bfloat16), opened(made, shards)
    for number, shard in enumerate(TEXTS):
        for clip, text in enumerate(shard):
            short = "dog " * 255 + "dog" if len(text) > 1000 else text  # 511 tokens, and the end
            wanted = base.embed_text([short])[0]
            assert torch.equal(captions.of(number, clip), wanted) and wanted.dtype == torch.bfloat16, text
    assert torch.equal(captions.negative(), base.embed_text([NEGATIVE])[0]) and captions.negative_prompt == NEGATIVE
    stored = load_file(made)
    assert len(stored["starts"]) == 5 + 1 and stored["clips"].tolist() == [1, 0, 2, 1, 3, 4]
    assert stored["embeddings"].shape == (1 + 4 + 2 + len(captions.of(1, 1)) + 512, 16)
    assert captions.hashes == {"text_encoder": base.hashes["text_encoder"], **base.text_hashes()}
    again = made.with_name("again.safetensors")
    assert remoco("captions", shards, again, "--base", folder, "--device", "cpu") == 0
    assert "6 clips with 5 different texts in " in capsys.readouterr().out
    assert opened(again, shards).negative() is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_them_with_its_clips(shards, made, workers):
    captions = opened(made, shards)
    batch = next(iter(data(shards, made, batch_size=6, num_workers=workers, val_shards=None).train_dataloader()))
    assert batch["text"].dtype == torch.bfloat16 and batch["text"].shape == (6, 512, 16)
    for key, text, length in zip(batch["key"], batch["text"], batch["text_length"].tolist(), strict=True):
        wanted = captions.of(*map(int, key.split("-")[1:]))
        assert torch.equal(text[:length], wanted) and not text[length:].any()
    assert torch.equal(batch["negative_text"], captions.negative().repeat(6, 1, 1))
    assert "text" not in next(iter(data(shards, None).train_dataloader()))


def module(base, inputs=None, **noise):
    made = MotionControlModule(
        base, RegionWise(min_mask_ratio=0.5), control=Control([], "attention", 2),
        noise=Noise(FlowMatching(5.0), **noise), sampling=Sampling(2, guidance=(3.0, 3.0), inputs=inputs or {}),
    )  # fmt: skip
    made.plan = Plan(adamw(lr=1e-3))
    return made


def test_a_training_takes_them_and_resumes_with_the_same_bits(folder, shards, made, tmp_path):
    states = []
    for name, text, parts in (("whole", made, [4]), ("parts", made, [2, 4]), ("without", None, [4])):
        again = None
        for steps in parts:
            (tmp_path / name).mkdir(exist_ok=True)
            run = trainer(tmp_path / name, steps)
            net = module(Wan(folder), {"negative_prompt": NEGATIVE}, dropout=0.5)
            run.fit(net, data(shards, text), ckpt_path=again, weights_only=None if again is None else True)
            again = str(tmp_path / name / "last.ckpt")
        states.append(torch.load(again, weights_only=True)["state_dict"])
    whole, parts, without = states
    assert same(whole, parts) and not same(whole, without)


def test_what_the_network_is_given_is_the_caption_or_the_empty_text_by_position(folder, shards, made, monkeypatch):
    """Dropping is a function of (seed, position): the same in batches of one and of two."""
    given = {}
    for size in (1, 2):
        net = module(Wan(folder), dropout=0.5)
        net.configure_model()
        net.log = lambda *args, **more: None
        predict, seen = net.base.predict, []
        monkeypatch.setattr(net.base, "predict", lambda x, t, cond, p=predict, s=seen: s.append(cond) or p(x, t, cond))
        for batch, _ in zip(data(shards, made, batch_size=size).train_dataloader(), range(4 // size), strict=False):
            net.training_step(batch, 0)
            for row, position in enumerate(batch["position"].tolist()):
                text = seen[-1].parts["text"][row] if seen[-1].keep["text"][row] else None
                given.setdefault(position, []).append((batch["key"][row], text))
    assert len(given) == 4 and {text is None for (_, text), _ in given.values()} == {True, False}
    for (key, text), (again, other) in given.values():
        assert key == again and ((text is None and other is None) or torch.equal(text, other))


# One line for each mistake


def changed(made, path, tensors=None, about=None):
    with safe_open(made, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(made), **(tensors or {})}, path, {**metadata, **(about or {})})
    return path


def test_a_file_of_another_set_or_a_damaged_one_is_one_line(shards, made, tmp_path):
    other = write(tmp_path / "other", TEXTS[::-1])
    with pytest.raises(UserError, match=r"^data.text: \S+ was made of other shards; make it again"):
        data(other, made)
    with pytest.raises(UserError, match="^data.text: cannot read .*: No such file or directory"):
        data(shards, tmp_path / "none.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="^data.text: cannot read "):
        data(shards, tmp_path / "empty.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="^data.text: cannot read .*: it has no text_encoder"):
        data(shards, tmp_path / "x.safetensors")
    stored = load_file(made)
    for spoilt in (
        {"clips": stored["clips"] + 1}, {"clips": stored["clips"] - 1}, {"starts": stored["starts"] + 1},
        {"starts": stored["starts"].flip(0)}, {"embeddings": stored["embeddings"].float()},
        {"embeddings": stored["embeddings"][:-1]}, {"negative": stored["negative"][:, :-1].contiguous()},
    ):  # fmt: skip
        with pytest.raises(UserError, match="^data.text: .* do not belong together; make it again$"):
            data(shards, changed(made, tmp_path / "spoilt.safetensors", spoilt))
    with pytest.raises(UserError, match="was made of other shards"):
        data(shards, changed(made, tmp_path / "short.safetensors", {"clips": stored["clips"][:-1]}))
    nan = changed(made, tmp_path / "nan.safetensors", {"embeddings": stored["embeddings"] * float("nan")})
    with pytest.raises(BadClip, match="embeddings holds NaN"):
        opened(nan, shards).of(0, 0)
    with pytest.raises(UserError, match="^data.val_text: expected data.val_shards beside it$"):
        data(shards, made, val_text=str(made))


def fit(net, shards, text, folder):
    trainer(folder, 1).fit(net, data(shards, text))


def test_a_file_of_another_encoder_tokenizer_or_negative_prompt_is_one_line(folder, shards, made, tmp_path):
    again = r"; make it again with `remoco captions`"
    for name in ("text_encoder", "tokenizer"):
        other = changed(made, tmp_path / f"{name}.safetensors", about={name: "0" * 64})
        with pytest.raises(
            UserError, match=rf"^data.text: \S+ was made with another {name} \(hash 0{{12}}\) .*{again}$"
        ):
            fit(module(Wan(folder)), shards, other, tmp_path)
    with pytest.raises(UserError, match=r"has another negative prompt than sampling.inputs.negative_prompt"):
        fit(module(Wan(folder), {"negative_prompt": "dog"}), shards, made, tmp_path)
    with pytest.raises(UserError, match="was made with another text_encoder"):
        fit(module(RandomWan(init_seed=3)), shards, made, tmp_path)
    svd = motion_control(size="tiny", latents="space_to_depth", steps=2)
    with pytest.raises(UserError, match=r"^data.text: \S+: this base takes no text, expected none$"):
        record.check_text([opened(made, shards)], svd.base, {}, None)


def test_the_commands_mistakes_are_one_line(folder, shards, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("text_encoder"))
    broken = tmp_path / "tokens"
    shutil.copytree(folder, broken)
    file = broken / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    out = tmp_path / "x.safetensors"
    for arguments, message in (
        ((shards, out), "--base is missing, expected a folder of Wan or CogVideoX in diffusers' layout, or its hub id"),
        ((shards, tmp_path / "x.bin", "--base", folder), "expected the name of a .safetensors file"),
        ((tmp_path, out, "--base", folder), "index.json"),
        ((shards, out, "--base", tmp_path / "none"), "config.json not found"),
        ((shards, out, "--base", bare), "has no text_encoder/, expected it as diffusers writes it, or no prompt"),
        ((shards, out, "--base", broken), "tokenizer.json is of another text encoder"),
    ):
        assert remoco("captions", *arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("remoco captions: error: ") and message in said
    assert not out.exists()


def test_a_clip_that_does_not_read_has_no_caption(folder, tmp_path, capsys):
    shards = write(tmp_path / "shards", [["dog", "red"]])
    tar = shards / "00000.tar"
    content = bytearray(tar.read_bytes())
    place = json.loads((shards / "00000.index.json").read_text())["members"][CAPTION][1][0]
    content[place] ^= 255
    tar.write_bytes(content)
    out = tmp_path / "text.safetensors"
    assert remoco("captions", shards, out, "--base", folder, "--device", "cpu") == 0
    assert "no caption: " in capsys.readouterr().out
    assert np.array_equal(load_file(out)["clips"], [1, 0])
