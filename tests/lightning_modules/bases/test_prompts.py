"""Prompts of a base that takes text: their embeddings, clips that depend on them, command, page, and bad ones."""

from __future__ import annotations

import json
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v
from lightning.pytorch import Trainer
from PIL import Image

from callbacks import Benchmark
from conditions import RegionWise
from datamodules import BenchmarkDataModule
from datamodules.drawings import Drawing, read_drawing, write_drawing
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.bases import text_reader as source
from lightning_modules.bases.text import cleaned
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process import FlowMatching
from metrics import FrameConsistency
from remoco.common.errors import UserError
from remoco.common.videos.files import read_video
from remoco.page.form import read, sampling_of, settings
from tests.support import wan
from tests.support.commands import remoco

TRACKS = [[(9, 9), (30, 9)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan.write(tmp_path_factory.mktemp("wan") / "tiny")


def pipeline(base, dtype=torch.float32, **inputs):
    module = MotionControlModule(
        base, RegionWise(min_mask_ratio=0.5), control=Control([], None), noise=Noise(FlowMatching(5.0)),
        sampling=Sampling(2, guidance=(3.0, 3.0), inputs=inputs),
    )  # fmt: skip
    module.configure_model(dtype)
    pipe = MotionControlPipeline(module, {"num_frames": 5, "height": 32, "width": 48})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline(Wan(folder))


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (32, 48, 3), np.uint8)


def clip(pipe, image=None, tracks=TRACKS, **more):
    image = picture() if image is None else image
    return pipe(image, tracks, height=32, width=48, output_type="pt", **more).frames


@pytest.fixture
def readings(monkeypatch):
    """A list that has an entry for each reading of the text encoder."""
    read, made = source.read_encoder, []
    monkeypatch.setattr(source, "read_encoder", lambda *args: made.append("text_encoder") or read(*args))
    return made


def test_embeddings_are_diffusers(folder):
    theirs = WanImageToVideoPipeline.from_pretrained(folder)
    torch.nn.Module.to(theirs.text_encoder, torch.float64)
    base = Wan(folder).build(torch.float64)
    texts = ["red dog", "dog", "  red\n dog &amp;amp; dog ", "x" * 40]
    with mock.patch.object(
        pipeline_wan_i2v, "ftfy", mock.Mock(fix_text=lambda text: text), create=True
    ):  # of ASCII it changes none
        assert [cleaned(text) for text in texts] == [pipeline_wan_i2v.prompt_clean(text) for text in texts]
        wanted = theirs.encode_prompt(texts, None, False, max_sequence_length=512, device="cpu")[0].detach()
    for mine, other in zip(base.embed_text(texts), wanted, strict=True):
        torch.testing.assert_close(mine, other[: len(mine)], rtol=0, atol=1e-12)
        assert not other[len(mine) :].any() and not mine.requires_grad
    assert torch.equal(base.embed_text([" "])[0], base.empty) and len(base.embed_text(["red dog"])[0]) == 4
    half = Wan(folder).build(torch.bfloat16)
    assert half.embed_text(["dog"])[0].dtype == torch.bfloat16


def test_other_letters_are_cleaned_as_diffusers_cleans_them(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert cleaned(" a  b&lt;c\t") == "a b<c"
    with pytest.raises(
        UserError, match=r"^prompt: letters beyond ASCII need the library ftfy: pip install -e '.\[text\]'"
    ):
        cleaned("画面，静止")
    monkeypatch.undo()
    pytest.importorskip("ftfy", reason="needs ftfy: pip install -e '.[text]' -c constraints.txt")
    for text in ("画面，静止", "“red” dog", "l&apos;été", "schÃ¶n"):
        assert cleaned(text) == pipeline_wan_i2v.prompt_clean(text) != text or text == "l&apos;été"


def test_the_same_prompt_has_the_same_bits_and_another_does_not(pipe, readings):
    plain, red, dog = clip(pipe), clip(pipe, prompt="red dog"), clip(pipe, prompt="dog")
    assert torch.equal(red, clip(pipe, prompt="red dog")) and len(readings) == 2
    assert not torch.equal(red, dog) and not torch.equal(red, plain)
    assert torch.equal(plain, clip(pipe, prompt="", negative_prompt=" "))
    away = clip(pipe, prompt="red dog", negative_prompt="red")
    assert not torch.equal(away, red)
    assert "text_encoder" not in pipe.components and not any(
        "T5" in type(part).__name__ for part in pipe.module.modules()
    )


def test_guidance_leads_away_from_the_negative_prompt(pipe):
    """At a scale of 0 the clip is that of the negative prompt alone, at 1 that of the prompt."""
    only = {"min_guidance_scale": 0, "max_guidance_scale": 0}
    away = clip(pipe, prompt="red dog", negative_prompt="dog", **only)
    one = {"min_guidance_scale": 1, "max_guidance_scale": 1}
    torch.testing.assert_close(away, clip(pipe, prompt="dog", **one), rtol=0, atol=1e-4)
    assert not torch.allclose(away, clip(pipe, prompt="red dog", **one), atol=1e-3)


def test_lists_are_for_images_and_a_clip_does_not_depend_on_its_batch(pipe, readings):
    images, texts = [picture(0), picture(1)], ["red", "red red dog"]
    both = clip(pipe, images, [TRACKS, TRACKS], prompt=texts, negative_prompt="dog dog", seed=[1, 2])
    assert len(readings) == 1
    for index, seed in enumerate((1, 2)):
        alone = clip(pipe, images[index], prompt=texts[index], negative_prompt="dog dog", seed=seed)
        torch.testing.assert_close(both[index : index + 1], alone, rtol=0, atol=1e-4)
    swapped = clip(pipe, images, [TRACKS, TRACKS], prompt=texts[::-1], negative_prompt="dog dog", seed=[1, 2])
    assert not torch.allclose(both, swapped, atol=1e-3)


def test_the_calls_prompt_then_the_drawings_then_the_configurations(folder, pipe):
    drawing = Drawing(picture(), TRACKS, prompt="dog")
    usual = pipeline(Wan(folder), prompt="red", negative_prompt="red red")
    away = {"negative_prompt": "red red"}
    assert torch.equal(clip(usual), clip(pipe, prompt="red", **away))
    assert torch.equal(clip(usual, drawing, ()), clip(pipe, prompt="dog", **away))
    assert torch.equal(clip(usual, drawing, (), prompt="red dog"), clip(pipe, prompt="red dog", **away))
    assert torch.equal(clip(usual, prompt="", negative_prompt=""), clip(pipe))
    assert torch.equal(clip(pipe, prompt="drawing"), clip(pipe, prompt="drawing"))  # a word of other inputs
    assert "prompt red, negative_prompt red red" in repr(usual) and "prompt" not in repr(pipe)
    assert usual.module.own_record()["sampling"]["inputs"] == {"prompt": "red", "negative_prompt": "red red"}


def test_a_half_precision_pipeline_embeds_in_its_dtype(folder):
    pipe = pipeline(Wan(folder), torch.bfloat16)
    assert clip(pipe, prompt="dog").isfinite().all()
    assert pipe.module.base.embed_text(["dog"])[0].dtype == torch.bfloat16
    pipe.to(torch.float32)
    assert pipe.module.base.embed_text(["dog"])[0].dtype == torch.float32


# Files: a drawing's prompt, the command


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


def test_a_drawing_keeps_its_prompt(tmp_path):
    made = Drawing(picture(), TRACKS, np.full((32, 48), 255, np.uint8), prompt="ein roter Hund, “红”")
    write_drawing(tmp_path, made)
    again = read_drawing(tmp_path)
    assert again.prompt == made.prompt and again.fingerprint() == made.fingerprint()
    other, none = (Drawing(made.image, made.tracks, made.brush, prompt=prompt) for prompt in ("dog", None))
    assert len({each.fingerprint() for each in (made, other, none)}) == 3 and "prompt" not in none.json()
    for wrong in (5, ["dog"], "x" * 10_001):
        (tmp_path / "meta_data.json").write_text(json.dumps({**made.json(), "prompt": wrong}))
        with pytest.raises(UserError, match="meta_data.json: prompt: expected a text of at most 10000 characters"):
            read_drawing(tmp_path)


def test_the_command_takes_prompts(folder, saved, tmp_path, readings, monkeypatch):
    written = {}
    monkeypatch.setattr("remoco.generation.write_mp4", lambda path, video, fps: (
        written.update({path.stem: np.array(video)}), path.write_bytes(b"x")
    ))  # fmt: skip
    for name, prompt in (("a", "dog"), ("b", "red"), ("c", None)):
        write_drawing(tmp_path / "in" / name, Drawing(picture(), TRACKS, np.ones((32, 48), np.uint8), prompt=prompt))
    size = ["--svd", folder, "--device", "cpu", "--height", "64", "--width", "64"]
    asked = ["generate", saved, tmp_path / "in", *size]

    assert remoco(*asked, "--out", tmp_path / "own") == 0
    own = dict(written)
    assert readings == ["text_encoder"]  # once for the folder
    assert remoco(*asked, "--out", tmp_path / "said", "--prompt", "dog") == 0
    assert [np.array_equal(own[name], written[name]) for name in "abc"] == [True, False, False]
    sample = tmp_path / "in" / "a"
    one = ["generate", saved, sample, *size, "--out", tmp_path / "one.mp4"]
    assert remoco(*one) == 0
    first = written["one"]
    assert remoco(*one, "--negative-prompt", "red dog") == 0 and not np.array_equal(first, written["one"])


def test_a_folder_of_clips_of_another_prompt_is_refused(folder, saved, tmp_path, capsys):
    write_drawing(tmp_path / "in" / "a", Drawing(picture(), TRACKS, np.ones((32, 48), np.uint8)))
    asked = ["generate", saved, tmp_path / "in", "--svd", folder, "--device", "cpu", "--height", "64", "--width", "64"]
    assert remoco(*asked, "--out", tmp_path / "out", "--prompt", "dog") == 0
    capsys.readouterr()
    assert remoco(*asked, "--out", tmp_path / "out", "--prompt", "red") != 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds clips" in line and "prompt" in line


# The page


def test_the_page_has_texts_for_a_base_that_takes_them(pipe):
    fields = {field.name: field for field in settings(pipe)}
    assert fields["prompt"].text and fields["negative_prompt"].text and fields["prompt"].value == ""
    values = read({"prompt": "dog", "negative_prompt": "red"}, [*fields.values()])
    assert sampling_of(values, pipe).inputs == {"prompt": "dog", "negative_prompt": "red"}
    with pytest.raises(UserError, match="^prompt is 5, expected a text"):
        read({"prompt": 5}, [*fields.values()])
    with pytest.raises(UserError, match="^prompt: 10001 characters, expected at most 10000"):
        read({"prompt": "x" * 10_001}, [*fields.values()])
    assert not any(field.text for field in settings(MotionControlPipeline.from_pretrained("embedded-sprites")))


# One line for each mistake


def test_a_base_without_text_takes_no_prompt(capsys, tmp_path):
    pipe = MotionControlPipeline.from_pretrained("embedded-sprites")
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(UserError, match=f"^{name}: this base takes no text, expected none$"):
            pipe(np.zeros((64, 64, 3), np.uint8), [[(9, 9), (30, 9)]], **{name: "dog"})
    drawn = Drawing(np.zeros((64, 64, 3), np.uint8), [[(9, 9), (30, 9)]], prompt="dog")  # of a benchmark for many bases
    assert len(pipe(drawn, num_inference_steps=1, num_frames=2).frames[0]) == 2
    Image.fromarray(picture()).save(tmp_path / "image.png")
    (tmp_path / "tracks.json").write_text(json.dumps({"traj_key_points": TRACKS}))
    asked = ["generate", "embedded-sprites", tmp_path / "image.png", "--tracks", tmp_path / "tracks.json"]
    assert remoco(*asked, "--out", tmp_path / "x.mp4", "--negative-prompt", "dog") != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].endswith("--negative-prompt: negative_prompt: this base takes no text, expected none")
    with pytest.raises(UserError, match="^sampling.inputs.prompt: this base takes no text, expected none$"):
        pipeline(RandomWan(), prompt="dog")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"prompt": 5}, "prompt: expected a text, or a list with one for each of 1 images"),
        ({"prompt": ["dog", "red"]}, "prompt: expected a text, or a list with one for each of 1 images"),
        ({"negative_prompt": [5]}, "negative_prompt is 5, expected a text"),
        ({"prompt": "dog " * 2501}, "prompt: 10004 characters, expected at most 10000"),
        ({"prompt": "\ud800"}, "prompt: holds half of a character, expected a text"),
        ({"prompt": "dog " * 300}, f"prompt: '{'dog ' * 10}'... has 600 tokens, expected at most 512"),
    ],
)  # fmt: skip
def test_bad_prompts_are_one_line_before_any_step(pipe, said, error):
    with mock.patch.object(type(pipe.module), "denoised", side_effect=AssertionError):
        with pytest.raises(UserError) as caught:
            clip(pipe, **said)
    assert str(caught.value) == error


def without_encoder(copy):
    shutil.rmtree(copy / "text_encoder")


def without_tokenizer(copy):
    shutil.rmtree(copy / "tokenizer")


def other_tokenizer(copy):
    file = copy / "tokenizer" / "tokenizer.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "post_processor": None}))


def no_tokenizer(copy):
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")


def large_tokenizer(copy):
    with (copy / "tokenizer" / "tokenizer.json").open("ab") as file:
        file.truncate((64 << 20) + 1)  # of zeros that take no room


def other_encoder(copy):
    wan.text_encoder(seed=9).save_pretrained(copy / "text_encoder")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (without_encoder, r"^prompt: \S+ has no text_encoder/, expected it as diffusers writes it, or no prompt$"),
        (
            without_tokenizer,
            r"^prompt: \S+/tokenizer.json not found, expected it beside the text encoder, or no prompt$",
        ),
        (other_tokenizer, r"^prompt: \S+tokenizer.json is of another text encoder, expected tokens below 32 and 1 as"),
        (no_tokenizer, r"^prompt: cannot read \S+/tokenizer.json as a tokenizer: "),
        (large_tokenizer, r"^prompt: \S+/tokenizer.json has 67108865 bytes, expected at most 67108864$"),
        (other_encoder, r"^prompt: \S+/text_encoder is not the text encoder that this base was made with$"),
    ],
)
def test_a_folder_that_cannot_read_prompts_is_one_line(folder, tmp_path, spoil, error):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    base = Wan(copy).build()
    spoil(copy)
    with pytest.raises(UserError, match=error) as caught:
        base.embed_text(["dog"])
    assert "\n" not in str(caught.value)
    assert torch.equal(base.embed_text([""])[0], base.empty)


def test_an_export_takes_prompts_where_its_encoder_lies_beside(folder, tmp_path):
    base = Wan(folder).build()
    base.export(tmp_path / "out")
    alone = Wan(tmp_path / "out").build()
    with pytest.raises(UserError, match="has no text_encoder/"):
        alone.embed_text(["dog"])
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / name, tmp_path / "out" / name)
    assert torch.equal(alone.embed_text(["dog"])[0], base.embed_text(["dog"])[0])


def test_each_pair_of_a_benchmark_has_its_own_prompt(folder, tmp_path, readings):
    videos = []
    for prompts in (("dog", "red"), ("dog", "dog")):
        root = tmp_path / "-".join(prompts)
        for name, prompt in zip("ab", prompts, strict=True):
            drawing = Drawing(picture().repeat(2, 0)[:64, :48], TRACKS, np.ones((64, 48), np.uint8), prompt=prompt)
            write_drawing(root / "bench" / "object_control" / name, drawing)
        module = pipeline(Wan(folder), negative_prompt="red dog").module
        run = Trainer(
            default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False,
            callbacks=[Benchmark([FrameConsistency()], frames=5)],
        )  # fmt: skip
        run.test(module, BenchmarkDataModule(str(root / "bench"), height=64, width=64, num_workers=0), verbose=False)
        videos.append([read_video(path)[0] for path in sorted((root).rglob("*.mp4"))])
    assert readings == ["text_encoder"] * 2  # once for all pairs of each
    (one, red), (same, dog) = videos
    assert np.array_equal(one, same) and not np.array_equal(red, dog)


def test_without_a_prompt_guidance_has_one_branch(pipe):
    for said, branches in (({}, 1), ({"prompt": " ", "negative_prompt": ""}, 1), ({"negative_prompt": "dog"}, 2)):
        with mock.patch.object(pipe.module.base, "predict", wraps=pipe.module.base.predict) as predict:
            clip(pipe, **said)
        assert {len(call.args[0]) for call in predict.call_args_list} == {branches}
