"""FVD and FID at validation, throughput, and both with the samples in two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.image.fid import FrechetInceptionDistance

from callbacks import Evaluation, LastCheckpoint, Samples, Throughput, VideoMetrics
from callbacks.strips import to_uint8
from conditions import DenseFlow, RegionWise
from lightning_modules.bases import VideoBase
from metrics import (
    FeatureNetwork,
    FrameConsistency,
    FrechetImageDistance,
    FrechetVideoDistance,
    I3DFeatures,
    InceptionFeatures,
    MeanTrackDistance,
    RandomFrameFeatures,
    RandomVideoFeatures,
    VideoMetric,
)
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import Data, Module, trainer
from tests.support.feature_networks import FakeI3D, FakeInception, save_script

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:FVD over", "ignore:a Frechet distance")


def expected(module: Module, clips: int) -> tuple[float, float]:
    fvd, fid = FrechetVideoDistance(RandomVideoFeatures()), FrechetInceptionDistance(RandomFrameFeatures())
    for index in range(clips):
        batch = torch.utils.data.default_collate([Data().val[index]])
        fake = to_uint8(module.sample(batch, None))
        for videos, real in ((batch["video"], True), (fake, False)):
            fvd.update(videos, real=real)
            fid.update(videos.flatten(0, 1), real=real)
    return float(fvd.compute()), float(fid.compute())


@pytest.mark.parametrize("clips", [None, 3])
def test_every_clip_once_and_the_numbers_of_the_metrics(tmp_path, clips):
    module = Module()
    run = trainer(tmp_path, [Evaluation(metrics=VideoMetrics(clips=clips))], num_sanity_val_steps=2)
    run.fit(module, datamodule=Data())
    assert sorted(module.sampled) == [f"square-{i:03d}" for i in range(clips or 5)]  # none in the sanity check
    fvd, fid = expected(module, clips or 5)
    assert float(run.callback_metrics["val/fvd_random_features"]) == pytest.approx(fvd, rel=1e-4)
    assert float(run.callback_metrics["val/fid_random_features"]) == pytest.approx(fid, rel=1e-3)


class Silent(VideoMetric):
    """As the control error of clips in which nothing moves: none counts."""

    name = "silent"

    def update(self):
        pass

    def add(self, clip):
        self.update()


def test_a_metric_for_which_no_clip_counts_is_left_out_with_a_line(tmp_path):
    run = trainer(tmp_path, [Evaluation(metrics=VideoMetrics([Silent(), FrechetVideoDistance()], clips=3))])
    with pytest.warns(UserWarning, match="no silent, for none of the clips"):
        run.validate(Module(), datamodule=Data())
    assert "val/fvd_random_features" in run.callback_metrics and "val/silent" not in run.callback_metrics


def test_the_protocol_is_logged_and_printed(tmp_path, capsys):
    trainer(tmp_path, [Evaluation(metrics=VideoMetrics(clips=3))]).fit(Module(), datamodule=Data())
    said = capsys.readouterr().out
    assert "val/fvd_random_features = " in said and "3 generated" in said
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    text = events.Tensors("val/fvd_random_features_protocol/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "seed 0" in text and "reference: raw" in text


def test_networks_from_files_have_the_real_names_and_stay_out_of_the_checkpoint(tmp_path):
    i3d, inception = save_script(FakeI3D(), tmp_path / "i3d.pt"), save_script(FakeInception(), tmp_path / "inc.pt")
    metrics = [FrechetVideoDistance(I3DFeatures(i3d)), FrechetImageDistance(InceptionFeatures(inception))]
    run = trainer(tmp_path, [Evaluation(metrics=VideoMetrics(metrics)), LastCheckpoint(4)])
    run.fit(Module(), datamodule=Data())
    assert {"val/fvd_i3d_styleganv", "val/fid_inception"} <= set(run.callback_metrics)
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {"trained.weight", "trained.bias", "frozen.weight", "frozen.bias"}


def test_a_file_without_a_network_is_one_line_before_anything_runs(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    module = Module()
    with pytest.raises(UserError) as caught:
        metrics = [FrechetVideoDistance(I3DFeatures(tmp_path / "text.pt"))]
        trainer(tmp_path, [Evaluation(metrics=VideoMetrics(metrics))]).fit(module, datamodule=Data())
    assert "text.pt" in str(caught.value) and "\n" not in str(caught.value) and not module.sampled
    with pytest.raises(UserError, match="mean_track_distance needs tracks"):
        VideoMetrics([MeanTrackDistance()])


def test_a_video_that_is_not_finite_is_named(tmp_path):
    class Broken(Module):
        def sample(self, batch, control):
            return super().sample(batch, control) * float("nan")

    with pytest.raises(UserError, match="square-000: the generated video holds NaN"):
        trainer(tmp_path, [Evaluation(metrics=VideoMetrics())]).fit(Broken(), datamodule=Data())


class Colour(FeatureNetwork):
    """The mean colour of a clip."""

    name = protocol = "colour"
    num_features = 3

    def forward(self, videos):
        return videos.float().mean((1, 3, 4))


def test_test_prints_a_table_and_writes_the_results(tmp_path, capsys):
    overlay = VideoMetrics([FrechetVideoDistance(Colour()), FrameConsistency()], clips=3)
    run = trainer(tmp_path, [Evaluation(Samples(), VideoMetrics()), Evaluation(metrics=overlay)])
    module, data = Module(), Data()
    data.test_dataloader = data.val_dataloader
    module.test_step = lambda batch, batch_idx: None
    run.test(module, datamodule=data)
    assert len(module.sampled) == 3  # the last of the two measures, and it alone
    said = capsys.readouterr().out
    assert "\nValidation clips\n" in said and "quoted" not in said and "fvd_colour" in said
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(results) == {"fvd_colour", "frame_consistency_random_features"}
    assert all(set(entry) == {"value", "protocol", "n", "seconds"} and entry["n"] == 3 for entry in results.values())


@pytest.mark.parametrize(("key", "clips", "published"), [
    ("006001_006050_{}-0123456789abcdef", 3, True),
    ("006001_006050_{}-0123456789abcdef", 4, False),  # fewer than the published number
    ("{}-0123456789abcdef", 3, False),
])  # fmt: skip
def test_published_rows_are_for_clips_of_webvid(tmp_path, capsys, monkeypatch, key, clips, published):
    monkeypatch.setattr("callbacks.video_metrics.PUBLISHED_CLIPS", clips)
    monkeypatch.setattr("callbacks.video_metrics.PUBLISHED_FRAMES", 6)
    monkeypatch.setattr(Colour, "name", "i3d_styleganv")
    run = trainer(tmp_path, [Evaluation(metrics=VideoMetrics([FrechetVideoDistance(Colour())], clips=3))])
    module, data = Module(), Data()
    get = type(data.val).__getitem__
    named = {"__getitem__": lambda self, index: get(self, index) | {"key": key.format(index)}}
    data.val.__class__ = type("Named", (type(data.val),), named)
    data.about = "24 x 32 squares"
    data.test_dataloader = data.val_dataloader
    module.test_step = lambda batch, batch_idx: None
    run.test(module, datamodule=data)
    said = capsys.readouterr().out
    assert ("Table 1: " in said) == ("96.65" in said) == ("DragNUWA (quoted)" in said) == published
    assert ("\nValidation clips, 24 x 32 squares\n" in said) != published
    (result,) = json.loads((tmp_path / "run" / "metrics.json").read_text()).values()
    assert result["protocol"].endswith(f"; data: {'WebVid-10M' if published else 'validation clips, 24 x 32 squares'}")


@pytest.mark.parametrize("mask_ratio", [None, 0.85])
def test_the_regions_and_the_reference_of_the_released_evaluation(tmp_path, mask_ratio):
    """The control is of another share of the regions; the reference is the VAE's."""

    class Conditioned(Module):
        condition = RegionWise(4, 0.5)
        ratios = []

        def draw_control(self, batch, condition=None):
            self.ratios.append((condition or self.condition).mask_ratios)
            return super().draw_control(batch)

    class Half:
        reconstructed = VideoBase.reconstructed

        def encode(self, video):
            return SimpleNamespace(mean=video / 2)

        def normalise(self, latents):
            return latents * 2

        def decode(self, latents):
            return latents / 2

    module, data = Conditioned(), Data(val=2)
    module.__dict__["base"] = Half()
    data.test_dataloader = data.val_dataloader
    module.test_step = lambda batch, batch_idx: None
    metric = FrechetVideoDistance(Colour())
    part = VideoMetrics([metric], mask_ratio=mask_ratio, reference="vae")
    trainer(tmp_path, [Evaluation(metrics=part)]).test(module, datamodule=data)
    assert module.ratios == [(0.5, 1.0) if mask_ratio is None else (0.85, 0.85)]
    assert "reference: vae" in metric.protocol
    video = torch.stack([data.val[i]["video"] for i in range(2)]).float() / 127.5 - 1
    expected = ((video / 2 + 1) * 127.5).round().mean((1, 3, 4)).double().sum(0)
    assert torch.allclose(metric.real_sum.cpu(), expected, atol=1e-3)


@pytest.mark.parametrize("arguments", [{"clips": 1}, {"mask_ratio": 1.5}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(UserError, match=f"Evaluation.metrics.{next(iter(arguments))}"):
        VideoMetrics(**arguments)


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(UserError, match="fvd_random_features is there twice"):
        VideoMetrics([FrechetVideoDistance(), FrechetVideoDistance()])


def test_a_condition_without_regions_refuses_a_mask_ratio_before_a_fit(tmp_path):
    module, data = Module(), Data(val=2)
    module.condition = DenseFlow()
    with pytest.raises(UserError, match="Evaluation.metrics: mask_ratio: DenseFlow draws no regions"):
        trainer(tmp_path, [Evaluation(metrics=VideoMetrics(mask_ratio=0.85))]).fit(module, datamodule=data)
    assert not module.sampled


def test_every_second_validation(tmp_path):
    class Count(Callback):
        seen = []

        def on_validation_end(self, trainer, pl_module):
            self.seen.append(len(pl_module.sampled))

    run = trainer(tmp_path, [Evaluation(metrics=VideoMetrics(), every_n_validations=2), Count()], val_check_interval=1)
    run.fit(Module(), datamodule=Data())
    assert Count.seen == [0, 5, 5, 10]


def test_one_validation_clip_is_too_few_for_a_distance_and_no_reason_to_stop(tmp_path):
    run = trainer(tmp_path, [Evaluation(metrics=VideoMetrics())])
    with pytest.warns(UserWarning, match="with 1 validation clip, at least 2"):
        run.fit(Module(), datamodule=Data(val=1))
    assert not any("fvd" in name for name in run.callback_metrics)


class Clock:
    """`time.perf_counter` that advances only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_throughput_counts_clips_and_waiting(tmp_path, monkeypatch):
    """2 clips a step; 1 s waiting, 3 s working per step; a validation of 50 s counts for nothing."""
    clock = Clock()
    monkeypatch.setattr("callbacks.throughput.time.perf_counter", clock)

    class Slow(Module):
        def training_step(self, batch, batch_idx):
            clock.now += 3
            return super().training_step(batch, batch_idx)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            clock.now += 1 if self.trainer.training else 50 / 3  # three validation batches
            return batch

    run = trainer(tmp_path, [Throughput()], max_steps=8, log_every_n_steps=2, val_check_interval=3)
    run.fit(Slow(), datamodule=Data())
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    rates, waits = (events.Scalars(f"usage/{name}") for name in ("clips_per_s", "data_wait"))
    assert [event.step for event in rates] == [1, 3, 5, 7]
    assert [event.value for event in rates] == pytest.approx([0.5] * 4)
    assert [event.value for event in waits] == pytest.approx([0.25] * 4)
    assert 0.05 < events.Scalars("usage/peak_gib")[0].value < 100


def test_writing_a_checkpoint_is_not_waiting_for_data(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("callbacks.throughput.time.perf_counter", clock)

    class Slow(Module):
        def on_save_checkpoint(self, checkpoint):
            clock.now += 10

    run = trainer(tmp_path, [Throughput(), LastCheckpoint(1)], max_steps=6, log_every_n_steps=2)
    run.fit(Slow(), datamodule=Data())
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert max(event.value for event in events.Scalars("usage/data_wait")) == 0


DDP = """
import sys, torch
from pathlib import Path
from callbacks import *
from tests.support.callbacks_stand_in import Data, Module, trainer

torch.manual_seed(0)
module = Module()
run = trainer(sys.argv[1], [RunFolder(), EMA(0.9), Evaluation(Samples(every_n_steps=1, clips=2), VideoMetrics()),
              Throughput(), LastCheckpoint(2), BestCheckpoint()], max_steps=2, val_check_interval=2,
              plugins=[AtomicCheckpointIO()], devices=int(sys.argv[2]), strategy=sys.argv[3])
run.fit(module, datamodule=Data(train=8, val=3, batch_size=1))
(Path(sys.argv[1]) / f"sampled-{run.global_rank}").write_text(str(len(module.sampled)))
if run.is_global_zero:
    # stays until the other rank has ended, and ended well
    assert not any(process.wait() for process in getattr(run.strategy.launcher, "procs", []))
    print("FVD", float(run.callback_metrics["val/fvd_random_features"]), flush=True)
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_and_do_not_wait_for_each_other(tmp_path):
    """Three validation clips on two ranks: no padding, uneven work, between validations samples on rank 0 only."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    (tmp_path / "script.py").write_text(DDP)

    def launch(name, devices, strategy):
        command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(tmp_path / name), devices, strategy]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = launch("two", "2", "ddp")
    # rank 0: both samples at step 1, each also denoised; two of three clips at step 2, and its own sample denoised.
    # Rank 1 has the third clip, which is the other sample
    assert [(tmp_path / f"two/sampled-{rank}").read_text() for rank in (0, 1)] == ["7", "2"]
    assert said.count("Run folder:") == 1
    assert "is now" in launch("two", "2", "ddp")
    one = launch("one", "1", "auto")
    fvd = [float(re.search(r"FVD ([\d.e+-]+)", text).group(1)) for text in (said, one)]
    assert fvd[0] == pytest.approx(fvd[1], rel=1e-3)
    for name in ("clip-00.mp4", "clip-01.mp4", "sheet.png"):
        of_two, of_one = ((tmp_path / run / "run/samples/step-000002" / name).read_bytes() for run in ("two", "one"))
        assert of_two == of_one
