"""`remoco cache` for Wan and CogVideoX: the bits of training without it, no network for nothing, one line each."""

from __future__ import annotations

import functools
import json
import shutil
from unittest import mock

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, load_file, save_file

from conditions import RegionWise
from datamodules import WebVidDataModule
from datamodules.scenes.clips import sprite
from datamodules.shards import CAPTION, LATENT, MEMBERS, ClipShape, Shards, samples, write_index
from datamodules.shards.cached import read_cached
from datamodules.shards.writer import ShardWriter
from lightning_modules import MotionControlModule, checkpoint
from lightning_modules.bases import CogVideoX, RandomWan, Wan, empty_prompt, weights
from lightning_modules.bases.cogvideox import weights as cogvideox_weights
from lightning_modules.bases.wan import peers
from lightning_modules.bases.wan import weights as wan_weights
from lightning_modules.config import Control, Noise, Sampling, Start
from lightning_modules.optimizer import Plan, adamw
from remoco import cache, captions
from remoco.common.errors import BadClip, UserError
from tests.support import cogvideox, wan, wan_peers
from tests.support.commands import remoco
from tests.support.modules import trainer
from tests.support.same import same

SHAPES = {"i2v": (5, 32, 48), "a14b": (5, 32, 48), "ti2v": (5, 32, 64), "cogvideox": (9, 64, 64)}
KINDS = tuple(SHAPES)
TEXTS = ["red dog", "", "dog", "dog dog red"]
NEGATIVE = "red red"


def write_shards(folder, name):
    folder.mkdir()
    entries = []
    for number in range(2):
        with ShardWriter(folder / f"{number:05d}.tar") as writer:
            for clip in range(2):
                members = sprite(ClipShape(*SHAPES[name], 8.0), [number, clip])
                writer.write(f"clip-{number}-{clip}", {**members, CAPTION: TEXTS[2 * number + clip].encode()})
        entries.append(writer.entry)
    write_index(folder, ClipShape(*SHAPES[name], 8.0), entries)
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Name -> its class with arguments, its folder, shards, and the shards with a cache; each made where it is used."""

    @functools.cache
    def made(name):
        root = tmp_path_factory.mktemp(name)
        if name == "cogvideox":
            kind, base = CogVideoX, cogvideox.write(root / "base")
        else:
            kind, base = Wan, wan.write(root / "base", f"tiny_{name}")
        kind = functools.partial(Wan, expert="low") if name == "a14b" else kind
        shards, out = write_shards(root / "shards", name), root / "cache"
        asked = ["cache", shards, out, "--base", base, "--device", "cpu", "--negative-prompt", NEGATIVE]
        assert remoco(*asked) == 0
        return name, kind, base, shards, out

    return made


@pytest.fixture
def case(request, cases):
    return cases(request.param)


def of(*names):
    return pytest.mark.parametrize("case", names, indirect=True)


def data(name, shards, **more):
    frames, height, width = SHAPES[name]
    options = {"batch_size": 2, "num_workers": 0, "frames": frames, "height": height, "width": width, "seed": 3}
    return WebVidDataModule(str(shards), **{**options, **more})


def module(base):
    made = MotionControlModule(
        base, RegionWise(min_mask_ratio=0.5), control=Control(["modulation"], "attention", 2),
        noise=Noise(dropout=0.3), sampling=Sampling(1, guidance=(3.0, 3.0), inputs={"negative_prompt": NEGATIVE}),
    )  # fmt: skip
    made.plan = Plan(adamw(lr=1e-3))
    return made


@pytest.fixture
def readings(monkeypatch):
    """Names of the networks that are read whole: all but the transformer."""
    read, names = weights.read_whole, []

    def counted(base, name, *args):
        names.append(name)
        return read(base, name, *args)

    for place in (weights, empty_prompt):
        monkeypatch.setattr(place, "read_whole", counted)
    return names


@of(*KINDS)
def test_a_clip_has_what_the_base_makes_of_it(case):
    name, kind, folder, before, after = case
    plain, cached, base = Shards(str(before)), Shards(str(after)), kind(folder).build()
    half = kind(folder).build(torch.bfloat16)
    frames, height, width = SHAPES[name]
    texts = cached.texts()
    assert torch.equal(texts.empty, half.empty) and torch.equal(texts.negative, half.embed_text([NEGATIVE])[0])
    assert cached.latent_hashes == {each: base.hashes[each] for each in base.beside_names()}
    assert texts.hashes == {"text_encoder": base.hashes["text_encoder"], **base.text_hashes()}
    for number in range(2):
        for clip in range(2):
            assert cached.read(number, clip, MEMBERS) == plain.read(number, clip, MEMBERS)
            found = load(cached.read(number, clip, [LATENT])[LATENT])
            video = samples.decode(plain.read(number, clip, MEMBERS), plain.shape)["video"]
            for part, tensor in base.precomputed(torch.from_numpy(video)[None] / 127.5 - 1).items():
                assert torch.equal(found.pop(part), tensor[0]), part
            assert torch.equal(found.pop("text"), half.embed_text([TEXTS[2 * number + clip]])[0]) and not found
    size = (base.grid.latents(frames), base.channels, *base.grid.size(height, width))
    assert cached.layout["latent_mean"] == ("F32", size)
    if name == "ti2v":
        assert remoco("verify", after, "--workers", 1) == 0


@of(*KINDS)
def test_a_training_has_the_same_bits_and_loads_only_what_it_needs(case, tmp_path, readings):
    name, kind, folder, before, after = case
    text = tmp_path / "text.safetensors"
    captions.captions(str(before), str(text), str(folder), negative_prompt=NEGATIVE, device="cpu")
    states = []
    for run, clips, more in (("plain", before, {"text": str(text)}), ("cached", after, {})):
        readings.clear()
        (tmp_path / run).mkdir()
        fit = trainer(tmp_path / run, 3, precision="bf16-mixed")
        net = module(kind(folder))
        fit.fit(net, data(name, clips, **more))
        states.append(torch.load(tmp_path / run / "last.ckpt", weights_only=True))
        if run == "cached":
            assert readings == (["vae"] if name == "cogvideox" else [])  # which noises the first frame in each step
            assert net.base.spared == (set() if name == "cogvideox" else {*net.base.beside_names()})
        else:
            assert set(readings) == {*net.base.beside_names(), "text_encoder"}
    plain, cached = states
    assert same(plain["state_dict"], cached["state_dict"])
    assert checkpoint.of(plain, "a")["base"] == checkpoint.of(cached, "b")["base"]


@of("i2v")
def test_a_validation_loads_what_it_needs_and_finds_the_same(case, tmp_path, readings):
    name, kind, folder, before, after = case
    losses = []
    for run, clips in (("plain", before), ("cached", after)):
        text = tmp_path / "text.safetensors"
        if run == "plain":
            captions.captions(str(before), str(text), str(folder), negative_prompt=NEGATIVE, device="cpu")
        readings.clear()
        (tmp_path / run).mkdir()
        fit = trainer(tmp_path / run, 1, precision="bf16-mixed", limit_val_batches=1, val_check_interval=1)
        more = {"text": str(text), "val_text": str(text)} if run == "plain" else {}
        net = module(kind(folder))
        fit.fit(net, data(name, clips, val_shards=str(clips), **more))
        losses.append(fit.callback_metrics["val/loss"])
        if run == "cached":
            assert sorted(readings) == sorted(net.base.beside_names()) and not net.base.spared
            assert {*net.base.networks} <= {part for part, _ in net.base.named_children()}
    assert torch.equal(*losses)


# One line for each mistake


def changed(folder, target, network=None, tokenizer=False):
    shutil.copytree(folder, target)
    if network == "vae":
        path = target / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({key: value * 1.5 for key, value in load_file(path).items()}, path)
    if network == "text_encoder":
        kind = cogvideox if "CogVideoX" in (folder / "model_index.json").read_text() else wan
        kind.text_encoder(seed=9).save_pretrained(target / "text_encoder")
    if tokenizer:
        file = target / "tokenizer" / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    return target


@of("i2v", "cogvideox")
@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_a_cache_of_another_part_is_one_line_before_the_transformer_is_read(case, tmp_path, part):
    name, kind, folder, _, after = case
    other = changed(folder, tmp_path / "other", part, part == "tokenizer")
    where = wan_weights if name == "i2v" else cogvideox_weights
    with mock.patch.object(where, "read_streamed", side_effect=AssertionError):
        with pytest.raises(
            UserError, match=rf"^data.shards: \S+ was made with another {part} \(hash \w{{12}}\) .*`remoco cache`"
        ):
            trainer(tmp_path, 1).fit(module(kind(other)), data(name, after))


def over_a_peer(base, file):
    """Wan-Move's weights in the place of the base's transformer."""
    net = module(base)
    return MotionControlModule(
        net.base, net.condition, Control(["latent"], "attention", 2), net.noise, net.sampling,
        start=Start("wan_move", str(file)),
    )  # fmt: skip


@of("i2v")
def test_a_cache_of_another_part_is_one_line_before_another_authors_transformer_is_read(case, tmp_path):
    name, kind, folder, _, after = case
    file = wan_peers.write(tmp_path / "peer.safetensors", RandomWan("tiny_i2v", 7).build().transformer)
    other = changed(folder, tmp_path / "other", "vae")
    with mock.patch.object(peers, "fill", side_effect=AssertionError):
        with pytest.raises(UserError, match=r"^data.shards: \S+ was made with another vae"):
            trainer(tmp_path, 1).fit(over_a_peer(kind(other), file), data(name, after))


@of("i2v")
def test_over_another_authors_transformer_a_cache_of_a_hub_id_leaves_nothing_to_read(
    case, tmp_path, monkeypatch, readings
):
    name, kind, folder, before, _ = case
    commit = "0" * 40
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = ["cache", before, tmp_path / "cache", "--base", "owner/name", "--device", "cpu"]
    assert remoco(*asked, "--negative-prompt", NEGATIVE) == 0
    file = wan_peers.write(tmp_path / "peer.safetensors", RandomWan("tiny_i2v", 7).build().transformer)
    shutil.rmtree(repository / "snapshots" / commit / "text_encoder")
    readings.clear()
    net = over_a_peer(kind("owner/name"), file)
    trainer(tmp_path, 1).fit(net, data(name, tmp_path / "cache"))
    assert not readings and net.base.spared == {*net.base.beside_names()}


@of("ti2v")
def test_a_cache_of_other_sizes_or_another_negative_prompt_is_one_line(case, tmp_path):
    name, kind, folder, _, after = case
    copy = tmp_path / "copy"
    shutil.copytree(after, copy)
    index = json.loads((copy / "index.json").read_text())
    frames, channels, height, width = index["cache"]["tensors"]["latent_mean"][1]
    index["cache"]["tensors"]["latent_mean"][1] = [frames, channels, height // 2, width // 2]
    (copy / "index.json").write_text(json.dumps(index))
    wanted = rf"has cached latents of {frames} x {height // 2} x {width // 2}, this base's have {frames} x {height} x "
    with pytest.raises(UserError, match=wanted):
        trainer(tmp_path, 1).fit(module(kind(folder)), data(name, copy))
    with pytest.raises(UserError, match=r"16 clips in a row cannot be used; .*latent_mean is F32 .*, expected F32"):
        next(iter(data(name, copy).train_dataloader()))
    net = module(kind(folder))
    net.sampling = Sampling(1, guidance=(3.0, 3.0), inputs={"negative_prompt": "dog"})
    with pytest.raises(UserError, match="another negative prompt than .*; make it again with `remoco cache"):
        trainer(tmp_path, 1).fit(net, data(name, after))


@of("ti2v")
def test_the_commands_mistakes_are_one_line(case, tmp_path, capsys):
    name, _, folder, before, after = case
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    with ShardWriter(wrong / "00000.tar") as writer:
        writer.write("clip-0-0", sprite(ClipShape(4, 64, 64, 8.0), [0]))
    write_index(wrong, ClipShape(4, 64, 64, 8.0), [writer.entry])
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("text_encoder"))
    other, asked = changed(folder, tmp_path / "vae", "vae"), ["--negative-prompt", NEGATIVE]
    for arguments, message in (
        ((wrong, tmp_path / "x", "--base", folder), "frames is 4, expected "),
        ((before, tmp_path / "x", "--base", bare), "it has no text_encoder/, expected it as diffusers writes it"),
        ((before, after, "--base", folder), "begun otherwise: negative_prompt is another; give another folder"),
        ((before, after, "--base", other, *asked), "begun otherwise: vae is another"),
    ):
        assert remoco("cache", *arguments, "--device", "cpu") == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1], message
    assert not (tmp_path / "x").exists()


@of("i2v")
def test_an_index_without_the_hash_of_a_network_spares_none(case, tmp_path):
    name, kind, folder, _, after = case
    shutil.copytree(after, tmp_path / "copy")
    index = json.loads((after / "index.json").read_bytes())
    del index["latents"]["vae"]
    (tmp_path / "copy" / "index.json").unlink()
    (tmp_path / "copy" / "index.json").write_text(json.dumps(index))
    base, clips = kind(folder), data(name, tmp_path / "copy")
    clips.setup("fit")
    base.cached = clips.cached
    assert {"vae", "image_encoder"} <= set(base.cached.files) and set(base.spare()) == {"image_encoder"}


@of("ti2v")
def test_damaged_texts_of_the_set_are_one_line(case, tmp_path, capsys):
    name, _, _, _, after = case
    copy = tmp_path / "copy"
    shutil.copytree(after, copy)
    for content in (b"", b"x" * 99, (after / "text.safetensors").read_bytes()[:-4]):
        (copy / "text.safetensors").unlink()
        (copy / "text.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"text.safetensors does not read as `remoco cache` writes it: ") as caught:
            data(name, copy)
        assert "\n" not in str(caught.value)
        assert remoco("verify", copy, "--workers", 1) == 1
        assert capsys.readouterr().out.strip() == str(caught.value)
    (copy / "text.safetensors").unlink()
    with pytest.raises(UserError, match=r"text.safetensors does not read: No such file"):
        data(name, copy)


@of("ti2v")
def test_an_interrupted_cache_resumes_without_the_text_encoder_and_changes_no_byte(case, tmp_path, monkeypatch):
    _, _, folder, before, after = case
    real, calls = cache.Encoder.__call__, []

    def dies_at_the_third(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(cache.Encoder, "__call__", dies_at_the_third)
    asked = ["cache", before, tmp_path / "o", "--base", folder, "--device", "cpu", "--negative-prompt", NEGATIVE]
    assert remoco(*asked) == 130 and not (tmp_path / "o" / "index.json").exists()
    monkeypatch.setattr(cache, "embed", mock.Mock(side_effect=AssertionError))
    assert remoco(*asked) == 0 and len(calls) == 3 + 2
    made, whole = ({p.name: p.read_bytes() for p in each.iterdir() if p.is_file()} for each in (tmp_path / "o", after))
    assert made == whole and "text.safetensors" in made


@of("i2v")
def test_a_clip_of_another_layout_is_replaced(case):
    _, _, _, _, after = case
    shards = Shards(str(after))
    content = shards.read(0, 0, [LATENT])[LATENT]
    read_cached(content, shards.layout)
    for name, (dtype, shape) in shards.layout.items():
        rest = {key: value for key, value in shards.layout.items() if key != name}
        with pytest.raises(BadClip, match="^cached tensors are "):
            read_cached(content, rest)
        with pytest.raises(BadClip, match=f"^{name} is "):
            read_cached(content, {**rest, name: (dtype, (*shape[:-1], shape[-1] + 1))})
