"""A benchmark through `python -m lightning test`: sampled once, resumed, scored as `remoco score` does."""

import json
import shutil
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer

from callbacks import Benchmark
from callbacks.made_by import clip_seed
from conditions import RegionWise
from datamodules import BenchmarkDataModule
from datamodules.bench.sprites import write_sprite_bench
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomCogVideoX, RandomWan, Sprites
from lightning_modules.config import Control, Sampling
from metrics import FrameConsistency
from remoco.common.errors import UserError
from remoco.common.json_files import read_json
from remoco.common.videos.files import read_video
from remoco.score import read_metrics
from tests.support.commands import CONFIGS, quick, remoco
from tests.support.toy import Toy


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench") / "small"
    write_sprite_bench(root, pairs=1, height=64, width=64, frames=4)
    return root


def test_a_benchmark_is_sampled_once_and_scored(cli, sprites, bench, tmp_path, capsys):
    run = tmp_path / "runs" / "one"
    bench = shutil.copytree(bench, tmp_path / "small")
    assert cli("fit", *quick(sprites, run, **{"trainer.limit_val_batches": 0}))[0] == 0
    metrics = tmp_path / "metrics.yaml"
    metrics.write_text(
        "- class_path: metrics.FrameConsistency\n"
        "- class_path: metrics.MDVid\n"
        "  init_args: {tracker: datamodules.trackers.points.LucasKanade}\n"
    )
    overlay = tmp_path / "few.yaml"
    entries = "".join(f"      {line}\n" for line in metrics.read_text().splitlines())
    overlay.write_text(
        "trainer:\n  callbacks+:\n  - class_path: callbacks.Benchmark\n"
        f"    init_args:\n      frames: 4\n      metrics:\n{entries}"
        f"data:\n  class_path: datamodules.BenchmarkDataModule\n"
        f"  init_args: {{root: {bench}, height: 64, width: 64, num_workers: 0}}\n"
    )
    of_model = [a for a in quick(sprites, run) if not a.startswith("--data") and "--data" not in a]
    command = ["test", *of_model, "--config", overlay, "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    code, said = cli(*command)
    assert code == 0, said
    folder = run / "benchmark" / "small"
    videos = sorted((folder / "videos").rglob("*.mp4"))
    assert [video.stem for video in videos] == ["sprite-000", "sprite-000"]
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores) == {f"{level}/{name}" for level in ("fine", "object") for name in (
        "frame_consistency_random_features", "md_vid_lk"
    )}  # fmt: skip
    # again: nothing is sampled twice, what is missing is sampled as it was
    kept, lost = videos[0].stat().st_mtime_ns, videos[1].read_bytes()
    videos[1].unlink()
    assert cli(*command)[0] == 0
    assert videos[0].stat().st_mtime_ns == kept and videos[1].read_bytes() == lost
    again = json.loads((folder / "scores.json").read_text())
    assert {name: entry["value"] for name, entry in again.items()} == {name: e["value"] for name, e in scores.items()}
    # the same files by the command
    out = tmp_path / "scores.json"
    assert remoco("score", folder / "videos", "--bench", bench, "--frames", 4, "--metrics", metrics, "--json", out) == 0
    by_command = json.loads(out.read_text())
    assert {name: entry["value"] for name, entry in by_command.items()} == {n: e["value"] for n, e in scores.items()}
    # what was made from inputs that have changed since is made again
    brush = bench / "Fine_grained_control" / "sprite-000" / "first_frame_mask.png"
    inputs = json.loads((folder / "generated.json").read_text())["inputs"]
    brush.write_bytes((bench / "object_control" / "sprite-000" / "first_frame_mask.png").read_bytes())
    assert cli(*command)[0] == 0
    assert videos[0].stat().st_mtime_ns != kept and videos[1].read_bytes() == lost
    now = json.loads((folder / "generated.json").read_text())["inputs"]
    assert [name for name in inputs if now[name] != inputs[name]] == ["Fine_grained_control/sprite-000"]
    # other settings are not mixed with these
    code, said = cli(*command, "--model.init_args.sampling.steps", 3)
    assert code == 2 and "made with other sampling.steps;" in said
    inputs = json.loads((folder / "generated.json").read_text())["sampling.inputs"]
    assert inputs == {"motion_bucket_id": "drawing", "fps": 8}  # the quick start's and its own
    code, said = cli(*command, "--model.init_args.sampling.inputs.motion_bucket_id", 17)
    assert code == 2 and "made with other sampling.inputs;" in said
    shutil.rmtree(folder / "videos")


def test_a_video_with_nan_is_named_and_not_written(cli, bench, tmp_path, monkeypatch):
    from lightning_modules import networks

    own = networks.sample
    monkeypatch.setattr(networks, "sample", lambda *args, **options: own(*args, **options) * float("nan"))
    code, said = cli(
        "test", f"--config={CONFIGS / 'sprites_lora.yaml'}", f"--config={CONFIGS / 'eval' / 'quickstart_bench.yaml'}",
        f"--data.init_args.root={bench}", f"--trainer.logger.init_args.save_dir={tmp_path}",
        "--ckpt_path=embedded-sprites", "--model.init_args.sampling.steps=2", "--trainer.accelerator=cpu",
    )  # fmt: skip
    assert code == 2 and "Fine_grained_control/sprite-000: the generated video holds NaN" in said
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_pairs_noise_is_a_function_of_its_name():
    assert clip_seed(2025, "object_control/a") == clip_seed(2025, "object_control/a")
    assert len({clip_seed(seed, key) for seed in (1, 2025) for key in ("a/b", "a/c")}) == 4


OVERLAYS = {"bench": "remoco_svd", "quickstart_bench": "quickstart", "webvid": "quickstart"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_shipped_overlays_build(overlay, bench, tmp_path, monkeypatch):
    from remoco.training import CLI

    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, name: None)
    configs = [CONFIGS / f"{OVERLAYS[overlay]}.yaml", CONFIGS / "eval" / f"{overlay}.yaml"]
    root = tmp_path if overlay == "webvid" else bench
    args = ["test", *(f"--config={path}" for path in configs), f"--data.init_args.root={root}", "--trainer.devices=1"]
    built = CLI(args)
    kinds = [type(callback).__name__ for callback in built.trainer.callbacks]
    assert kinds.count("Evaluation" if overlay == "webvid" else "Benchmark") == (2 if overlay == "webvid" else 1)
    assert "LastCheckpoint" in kinds
    if overlay == "webvid":
        last = [c for c in built.trainer.callbacks if type(c).__name__ == "Evaluation"][-1].metrics
        assert last.mask_ratio == 0.85 and len(last.metrics) == 4
    assert {path.stem for path in (CONFIGS / "eval").iterdir()} == set(OVERLAYS) | {"metrics"}


def test_the_published_metrics_are_named_by_their_files(tmp_path, monkeypatch):
    """Nothing is read when they are made; a file that is not there is one line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="i3d_torchscript.pt: no such file"):
        read_metrics(str(CONFIGS / "eval" / "metrics.yaml"))
    (tmp_path / "weights").mkdir()
    for name in ("i3d_torchscript.pt", "inception-2015-12-05.pt", "scaled_offline.pth"):
        (tmp_path / "weights" / name).write_bytes(b"x")
    names = [metric.name for metric in read_metrics(str(CONFIGS / "eval" / "metrics.yaml"))]
    assert names == [
        "fvd_i3d_styleganv",
        "fid_inception",
        "md_img",
        "md_vid",
        "frame_consistency",
        "flow_magnitude_dis",
    ]


def test_a_base_without_a_rate_is_sampled_without_one(bench, tmp_path):
    module = MotionControlModule(Toy(3), RegionWise(), Control(["modulation"], "linear", 2), sampling=Sampling(1))
    run = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False,
        callbacks=[Benchmark([FrameConsistency()], frames=3, fps=7)],
    )  # fmt: skip
    run.test(module, BenchmarkDataModule(str(bench), height=64, width=64, num_workers=0), verbose=False)
    made = read_json(next(tmp_path.rglob("generated.json")))
    assert len(list(tmp_path.rglob("*.mp4"))) == 2 and made["sampling.inputs"] == {} and made["fps"] == 7
    with pytest.raises(UserError, match="^Benchmark.inputs.wind: unknown, the inputs of this base are none$"):
        Benchmark([], inputs={"wind": 3.0})._sampling(module)


def sampled(base, bench, folder, height, width):
    module = MotionControlModule(base, RegionWise(16), Control(lora=None), sampling=Sampling(1))
    run = Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False,
        callbacks=[Benchmark([FrameConsistency()], frames=9)],
    )  # fmt: skip
    run.test(module, BenchmarkDataModule(str(bench), height, width, num_workers=0), verbose=False)
    return [read_video(path)[0].shape for path in sorted(folder.rglob("*.mp4"))]


def test_frames_are_on_the_grid_of_the_base(bench, tmp_path):
    """Wan has multiples of 16 where Stable Video Diffusion has 64: 480 lines are a size of the first alone."""
    assert sampled(RandomWan(), bench, tmp_path, 48, 80) == [(9, 48, 48, 3)] * 2  # of square images
    for base, height, width, error in (
        (RandomWan("tiny_ti2v"), 48, 64, "data.height is 48, expected a multiple of 32 up to 8192"),
        (Sprites("micro"), 480, 832, "data.height is 480, expected a multiple of 64 up to 8192"),
        (RandomCogVideoX(), 64, 96, "Benchmark: width is 96, expected 64: this base takes clips of 9 x 64 x 64 alone"),
    ):
        with pytest.raises(UserError, match=f"^{error}$"):
            sampled(base, bench, tmp_path / "refused", height, width)


def test_lengths_are_those_of_the_base(bench, tmp_path):
    callback = Benchmark([FrameConsistency()], frames=80)
    data = BenchmarkDataModule(str(bench), 480, 832, num_workers=0)
    run = SimpleNamespace(datamodule=data)
    with pytest.raises(
        UserError, match="^Benchmark: frames is 80, expected 1 plus a multiple of 4, the nearest 77 and"
    ):
        callback.setup(run, SimpleNamespace(base=RandomWan()), "test")
