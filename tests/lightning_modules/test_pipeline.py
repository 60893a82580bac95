"""The pipeline: from a checkpoint of `fit` to a video that a person drew."""

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import EMA
from lightning_modules.pipeline import MotionControlPipeline
from tests.lightning_modules.test_training import data, module, perturb, trainer


@pytest.fixture(scope="module")
def checkpoint(sprites, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, 1).fit(module(), data(sprites))
    return folder / "last.ckpt"


def test_draws_a_video(checkpoint):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    perturb(pipe.module)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    track = np.array([[20, 20], [30, 24], [40, 20]])
    options = dict(num_frames=4, num_inference_steps=2)
    video = pipe(image, [track], np.ones((64, 64)), **options)
    assert video.shape == (4, 64, 64, 3) and video.dtype == np.uint8
    assert np.array_equal(video, pipe(image, [track], np.ones((64, 64)), **options))
    assert not np.array_equal(video, pipe(image, [track], np.ones((64, 64)), seed=1, **options))
    assert not np.array_equal(video, pipe(image, [track[::-1]], np.ones((64, 64)), **options))


def test_carries_the_trained_weights(checkpoint):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], p) for name, p in pipe.module.trained().items())


def test_carries_the_averaged_weights_of_a_run_with_ema(sprites, tmp_path):
    run = trainer(tmp_path, 2)
    run.callbacks.insert(0, EMA(0.9))
    run.fit(module(learning_rate=1e-3), data(sprites))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for ema, expected in ((True, saved["callbacks"]["EMA"]["shadow"]), (False, saved["state_dict"])):
        pipe = MotionControlPipeline.from_checkpoint(tmp_path / "last.ckpt", ema=ema)
        assert all(torch.equal(expected[name], p) for name, p in pipe.module.trained().items())


@pytest.mark.parametrize(
    "image, tracks, named",
    [
        (np.zeros((64, 64), np.uint8), [], "image"),
        (np.zeros((64, 72, 3), np.uint8), [], "multiples of 64"),
        (np.zeros((64, 64, 3), np.uint8), [np.zeros((0, 2))], "track 0"),
    ],
)
def test_what_does_not_fit_is_named(checkpoint, image, tracks, named):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    with pytest.raises((ValueError, MisconfigurationException), match=named):
        pipe(image, tracks)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"no")
    with pytest.raises(MisconfigurationException, match="x.ckpt"):
        MotionControlPipeline.from_checkpoint(tmp_path / "x.ckpt")
