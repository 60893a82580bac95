"""Samples: files and TensorBoard hold them, the same clips each time, and nothing of training is disturbed."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import EMA, Evaluation, Samples
from callbacks.strips import gif, sheet, strip, to_pictures, write_mp4
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import FRAMES, HEIGHT, WIDTH, Data, Module, trainer


def moving(length: int = 5, height: int = 20, width: int = 30) -> np.ndarray:
    video = np.full((length, height, width, 3), 90, np.uint8)
    for i in range(length):
        video[i, 4:12, 3 * i : 3 * i + 8] = (230, 40, 40)
    return video


def test_strip_holds_every_panel_enlarged_under_its_label():
    video = moving()
    picture = strip({"still": video[0], "moving": video}, "step 3   clip")
    factor = 7  # 30 pixels -> at least 192
    height, width = 20 * factor, 30 * factor
    assert picture.shape[0] == 5 and picture.shape[1] % 2 == picture.shape[2] % 2 == 0
    top = np.argmax((picture[0, :, 8] == 90).all(-1))
    for i in range(5):
        left = 8
        for panel in (video[0], video[i]):
            got = picture[i, top : top + height, left : left + width]
            assert np.array_equal(got, panel.repeat(factor, 0).repeat(factor, 1))
            left += width + 6
    labels = picture[0, :top].astype(int)
    assert (labels < 100).any() and np.array_equal(picture[0, :top], picture[4, :top])


def test_sheet_shows_the_last_frames():
    strips = [strip({"a": moving()}, "x"), strip({"a": moving()[::-1]}, "y")]
    assert np.array_equal(sheet(strips), np.concatenate([strips[0][-1], strips[1][-1]]))


def test_gif_and_mp4_play_back(tmp_path):
    video = strip({"a": moving(8, 32, 64)}, "x")
    image = Image.open(io.BytesIO(gif(video, fps=8)))
    assert image.n_frames == 8 and image.info["duration"] in (120, 125) and image.info["loop"] == 0
    write_mp4(tmp_path / "a.mp4", video, fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == video.shape
    for got in (decoded, np.stack([_frame(image, i) for i in range(8)])):
        assert np.abs(got.astype(int) - video.astype(int)).mean() < 6


def _frame(image: Image.Image, index: int) -> np.ndarray:
    image.seek(index)
    return np.asarray(image.convert("RGB"))


def test_pictures_of_floats_are_clamped():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert to_pictures(values)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    module = Module()
    callback = Evaluation(Samples(every_n_steps=3, clips=2, sigma=1.5))
    trainer(folder, [callback], max_steps=6, val_check_interval=4).fit(module, datamodule=Data())
    return folder / "run", module


def test_on_the_schedule_and_at_validation(run):
    folder, module = run
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-000003", "step-000004", "step-000006"]
    for step in (folder / "samples").iterdir():
        assert sorted(p.name for p in step.iterdir()) == ["clip-00.mp4", "clip-01.mp4", "sheet.png"]
    assert set(module.sampled) == {"square-000", "square-001"}


def test_sheet_on_disk_shows_the_clips_and_all_five_columns(run):
    picture = np.asarray(Image.open(run[0] / "samples/step-000004/sheet.png"))
    factor = -(-192 // WIDTH)
    width = factor * WIDTH
    assert picture.shape[1] == 5 * width + 4 * 6 + 2 * 8
    clip = Data().val[0]
    rows = picture.shape[0] // 2
    top = rows - 8 - factor * HEIGHT
    for column, frame in ((0, clip["first_frame"]), (4, clip["video"][-1])):
        left = 8 + column * (width + 6)
        got = picture[top : top + factor * HEIGHT : factor, left : left + width : factor]
        assert np.array_equal(got, to_pictures(frame))


def test_tensorboard_has_a_moving_picture_per_clip(run):
    events = EventAccumulator(str(run[0]), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"samples/clip-00", "samples/clip-01", "samples/sheet"}
    images = events.Images("samples/clip-01")
    assert [image.step for image in images] == [3, 4, 6]
    picture = Image.open(io.BytesIO(images[0].encoded_image_string))
    assert picture.format == "GIF" and picture.n_frames == FRAMES


def test_training_does_not_notice(tmp_path):
    """The same weights with and without samples; the global random state does not move; modes are restored."""
    results = []
    for callbacks in ([], [Evaluation(Samples(every_n_steps=1, clips=1))]):
        torch.manual_seed(0)
        module = Module()
        module.frozen.eval()
        trainer(tmp_path / str(len(callbacks)), callbacks, limit_val_batches=0).fit(module, datamodule=Data())
        results.append((module.trained.weight.detach().clone(), torch.random.get_rng_state(), module.trained.training))
        assert not module.frozen.training
    assert all(torch.equal(a, b) for a, b in zip(results[0][:2], results[1][:2]))
    assert results[0][2] == results[1][2]


class Seen(Module):
    def __init__(self):
        super().__init__()
        self.weights = []

    def sample(self, batch, control):
        assert not torch.is_grad_enabled() and not self.training
        self.weights.append(self.trained.weight.detach().clone())
        return super().sample(batch, control)

    def denoise_once(self, batch, sigma):
        return super().sample(batch, None)


def test_samples_are_of_the_averaged_weights(tmp_path):
    module, ema = Seen(), EMA(0.5)
    callbacks = [ema, Evaluation(Samples(every_n_steps=4, clips=1))]
    trainer(tmp_path, callbacks, limit_val_batches=0).fit(module, datamodule=Data())
    assert len(module.weights) == 1 and torch.equal(module.weights[0], ema.shadow["trained.weight"])
    assert not ema.swapped


def test_latents_only_clips_have_no_reference(tmp_path):
    class Latents(Data):
        def setup(self, stage):
            inner = self.val

            class Without(type(inner)):
                def __getitem__(self, index):
                    item = super().__getitem__(index)
                    del item["video"]
                    return item

            self.val = Without(len(inner))

    class Blind(Module):
        def validation_step(self, batch, batch_idx):
            pass

    trainer(tmp_path, [Evaluation(Samples(clips=1))]).fit(Blind(), datamodule=Latents())
    width = -(-192 // WIDTH) * WIDTH
    picture = Image.open(next((tmp_path / "run/samples").glob("*/sheet.png")))
    assert picture.width == 4 * width + 3 * 6 + 2 * 8


@pytest.mark.parametrize("argument", ["every_n_steps", "clips", "sigma", "fps"])
def test_arguments_out_of_range(argument):
    with pytest.raises(UserError, match=f"Evaluation.samples.{argument}"):
        Samples(**{argument: -1})


def test_a_try_samples_one_batch_and_writes_nothing(tmp_path, monkeypatch, capsys):
    """`fast_dev_run` finds what a sample would stumble over, whatever the schedule of a whole run."""
    monkeypatch.chdir(tmp_path)
    module = Module()
    evaluation = Evaluation(samples=Samples(clips=4, every_n_steps=1), every_n_validations=3)
    trainer(tmp_path, [evaluation], fast_dev_run=True).fit(module, datamodule=Data())
    assert module.sampled == ["square-000", "square-001"] * 2  # generated, and denoised: the one batch of two clips
    assert "Sampled 2 clips; fast_dev_run writes no files" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*"))
