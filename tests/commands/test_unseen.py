"""A model that is asked for pictures unlike its training set says so, on the page and at the command line."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import render
from lightning_modules import bases
from lightning_modules.bases.svd.base import SVD
from lightning_modules.bases.trained_on import KEY as STATED
from lightning_modules.bases.trained_on import NAME, TrainedOn, read_trained_on
from lightning_modules.built import built
from lightning_modules.checkpoint import KEY, read_checkpoint
from lightning_modules.checkpoint import of as checkpoint_of
from lightning_modules.pipeline import MotionControlPipeline
from remoco.cli import main
from remoco.common.errors import UserError
from remoco.unseen import unseen
from tests.support.commands import quick


class Pipeline:
    """The base of plain sprites as a pipeline has it."""

    trained_size = (64, 64)

    def __init__(self, base):
        self.module = type("Module", (), {"base": base})


@pytest.fixture(scope="module")
def model():
    return Pipeline(SVD("embedded-sprites").build())


def photograph(height, width):
    """Noise of all scales, as natural pictures have (a spectrum of 1/f)."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.fft2(rng.normal(size=(3, height, width)))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    grey = np.fft.ifft2(spectrum / np.maximum(radius, 1 / max(height, width))).real
    grey = 128 + 50 * (grey - grey.mean()) / grey.std()
    return grey.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def sprite(scene):
    return np.ascontiguousarray(render(plain_scene([0, 2, scene], [0, 2, scene, 1], 2, 64, 64))[0].transpose(1, 2, 0))


def test_photographs_are_new_to_it_and_sprites_are_not(model):
    for size in ((64, 64), (100, 120), (480, 640)):
        assert "only seen plain discs and boxes" in unseen(model, photograph(*size))
    assert not [scene for scene in range(40) if unseen(model, sprite(scene))]


def test_a_base_that_states_nothing_says_nothing(model):
    class Silent:
        trained_on = None

    for pipeline in (Pipeline(Silent()), object()):
        assert unseen(pipeline, photograph(480, 640)) is None


def test_the_statement_is_of_the_base_not_of_a_name(model):
    """Another base's statement holds for it, whatever its folder is called."""
    base = model.module.base
    before = base.trained_on
    try:
        base.trained_on = TrainedOn("nothing at all", 199.0)
        assert "nothing at all" in unseen(model, sprite(0))
    finally:
        base.trained_on = before


def test_a_run_over_drawn_weights_says_what_its_clips_show(lightning, model, tmp_path, capsys):
    """So do the folder that is written of it, and not a checkpoint of before, whose record says nothing."""
    run = tmp_path / "runs" / "one"
    code, said = lightning("fit", *quick(None, run), "--trainer.limit_val_batches=0")
    assert code == 0, said
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert saved[KEY][STATED] == "plain discs and boxes over smooth colours"
    MotionControlPipeline.from_checkpoint(run / "checkpoints" / "last.ckpt").save_pretrained(tmp_path / "folder")
    for path in (run / "checkpoints" / "last.ckpt", tmp_path / "folder"):
        pipeline = MotionControlPipeline.from_pretrained(path)
        assert "only seen plain discs and boxes over smooth colours, 64 x 64" in unseen(pipeline, photograph(320, 512))
        assert unseen(pipeline, photograph(64, 64)) is None
    assert main(["demo", "--checkpoint", str(run / "checkpoints" / "last.ckpt"), "--out", str(tmp_path / "demo")]) == 0
    assert "only seen plain discs and boxes" in capsys.readouterr().err  # its photograph is none
    del saved[KEY][STATED]
    module, _ = built(checkpoint_of(saved, "earlier"), saved["state_dict"], None, torch.float32)
    assert module.base.trained_on is None and STATED not in module.own_record()
    saved[KEY][STATED] = ["words"]
    with pytest.raises(UserError, match="trained_on is"):
        checkpoint_of(saved, "damaged")


@pytest.mark.parametrize("name", ["Photos", "RandomCogVideoX", "RandomWan", "Sprites"])
def test_bases_with_random_weights_say_so(name):
    assert getattr(bases, name).drawn


@pytest.mark.parametrize("text", ["", "[]", '{"says": 5, "psnr": 3}', '{"says": "a", "psnr": "b"}', '{"says": "a"}'])
def test_a_bad_statement_is_a_line(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=NAME):
        read_trained_on(tmp_path)
    (tmp_path / NAME).unlink()
    assert read_trained_on(tmp_path) is None


def test_generate_says_the_same_line_once(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, picture in (("photo", photograph(200, 300)), ("sprite", sprite(3))):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        (tmp_path / f"{name}.png").write_bytes(file.getvalue())
    arguments = ["--camera", "pan:0.2", "--steps", "1", "--num-frames", "2", "--svd", "embedded-sprites"]
    for name, times in (("photo", 1), ("sprite", 0)):
        path = tmp_path / f"{name}.png"
        assert main(["generate", "embedded-sprites", str(path), *arguments, "--out", f"{name}.mp4"]) == 0
        said = capsys.readouterr().err
        assert said.count("This model has only seen") == times
        assert times == 0 or unseen(model, photograph(200, 300)) in said
