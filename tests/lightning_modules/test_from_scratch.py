"""What training from scratch needs: fitted latents, a schedule, evenly spread noise levels, and a model in one file."""

import json

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file

from callbacks import EMA
from conditions import RegionWise
from datamodules.drawings import read_drawing
from datamodules.scenes.gather import LIST, listed
from lightning_modules import checkpoint, embedded
from lightning_modules.bases import SVD
from lightning_modules.bases.sprites.pca import PatchPCA
from lightning_modules.layers import TemporalConv3d
from lightning_modules.optimizer import OURS, Plan, WarmupDecay
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.base import spread_sigma
from remoco.cli import main
from remoco.common.errors import UserError
from remoco.common.videos.files import read_video
from tests.support.modules import data, module, trainer
from tests.support.nets import random_svd

MICRO = dict(size="micro", latents="pca", trained=True, lora=None, guidance=(1.0, 1.0), flow_scale=0.1)


def low_rank_clips(seed: int, rank: int, clips: int = 3) -> list[torch.Tensor]:
    """Clips whose patches lie in a space of so many dimensions, around a mean."""
    rng = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, 3, 8, 8, generator=torch.Generator().manual_seed(99)).double()
    out = []
    for _ in range(clips):
        weights = torch.randn(2, 4, 6, rank, generator=rng).double() * torch.tensor([3.0, 1.0, 0.3][:rank])
        patches = torch.einsum("lhwr,rcij->lchiwj", weights, basis).reshape(2, 3, 32, 48)
        out.append(0.05 * patches + 0.1)
    return out


def test_a_whole_small_model_is_the_start_of_another(tmp_path, sprites):
    """Its UNet and components too, under another condition; a frozen base keeps its own."""
    trainer(tmp_path, 1).fit(module(**MICRO), data(sprites))
    start = str(tmp_path / "last.ckpt")
    other = module(**MICRO, start=("checkpoint", start), seed=7, condition=RegionWise(min_mask_ratio=0.9))
    other.configure_model()
    found = checkpoint.read_checkpoint(start)["state_dict"]
    assert other.base.pca.fitted and found.keys() == other.stored().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in other.stored().items())
    with pytest.raises(UserError, match="adapter"):
        module(start=("checkpoint", start)).configure_model()


def test_a_checkpoint_of_before_is_a_start_and_no_resume(tmp_path, sprites):
    """Its tensors were `svd.*` and `injection.*`, and its record named the base by the options of the module."""
    trainer(tmp_path, 1).fit(module(**MICRO), data(sprites))
    last, old = tmp_path / "last.ckpt", tmp_path / "old.ckpt"
    saved = torch.load(last, weights_only=True)
    before = {"base.": "svd.", "injections.0.": "injection."}
    found = {}
    for name, tensor in saved["state_dict"].items():
        new = next((new for new in before if name.startswith(new)), "")
        found[before.get(new, "") + name.removeprefix(new)] = tensor
    assert any(name.startswith("svd.") for name in found) and any(name.startswith("injection.") for name in found)
    record = saved[checkpoint.KEY]
    record["base"] = {"svd": None, "random_init": "micro", "hash": record["base"]["hash"]}
    torch.save({**saved, "state_dict": found}, old)
    other = module(**MICRO, start=("checkpoint", str(old)), seed=7)
    other.configure_model()
    assert all(torch.equal(saved["state_dict"][name], tensor) for name, tensor in other.stored().items())
    with pytest.raises(UserError, match="old.ckpt is of an earlier version.*model.init_args.start"):
        checkpoint.read_record(old)


def test_pca_keeps_what_its_components_hold():
    """Exact where the data have no more dimensions; deviations are roots of deviations, the mean variance 1."""
    clips = low_rank_clips(0, 3)
    pca = PatchPCA(3).double()
    assert not pca.fitted
    pca.fit(clips)
    assert pca.fitted
    frames = torch.cat(clips)
    latents = torch.cat([pca.encode(frames[:2]), pca.encode(frames[2:])])
    assert torch.allclose(pca.decode(latents), frames, atol=1e-9)
    patches = torch.nn.functional.pixel_unshuffle(frames, 8).flatten(2).transpose(1, 2).flatten(0, 1)
    spread = torch.linalg.eigvalsh(torch.cov(patches.T, correction=0)).flip(0)[:3].sqrt()
    found = latents.double().var((0, 2, 3), correction=0)
    assert torch.allclose(found, spread / spread.mean(), rtol=1e-9)
    assert found.mean().item() == pytest.approx(1, abs=1e-9)


def test_pca_does_not_depend_on_how_the_clips_are_cut():
    whole, parts = PatchPCA(2).double(), PatchPCA(2).double()
    clips = low_rank_clips(1, 3)
    whole.fit([torch.cat(clips)])
    parts.fit(clips)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, parts.state_dict()[name], atol=1e-9)


def test_temporal_convolutions_are_the_same_function():
    unet = random_svd("micro").unet.double()
    convs = [m for m in unet.modules() if isinstance(m, TemporalConv3d)]
    assert len(convs) > 10 and not any(type(m) is torch.nn.Conv3d and m.kernel_size[0] == 3 for m in unet.modules())
    x = torch.randn(2, convs[0].in_channels, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.conv3d(x, convs[0].weight, convs[0].bias, padding=(1, 0, 0))
    assert torch.allclose(convs[0](x), want, atol=1e-12)


def test_spread_sigmas_divide_the_distribution_evenly():
    """Any n neighbours hit each of n / 3 equal parts; the whole has the asked moments; a function of position alone."""
    positions = torch.arange(1000, 1000 + 4096)
    offset = torch.tensor(-(2**60) - 12345)
    sigma = spread_sigma(positions, offset, 0.7, 1.2)
    z = (sigma.double().log() - 0.7) / 1.2
    assert abs(z.mean()) < 5e-3 and abs(z.std() - 1) < 5e-3
    quantile = torch.special.ndtr(z)
    for start in (0, 100, 3000):
        parts = (quantile[start : start + 12] * 4).long()
        assert torch.bincount(parts, minlength=4).min() >= 2
    assert torch.equal(spread_sigma(positions[7:9], offset, 0.7, 1.2), sigma[7:9])
    assert not torch.equal(spread_sigma(positions[:4], offset + 2**61, 0.7, 1.2), sigma[:4])


def test_schedule():
    schedule = WarmupDecay(torch.optim.SGD([torch.zeros(1)], 1.0), warmup_steps=9, decay=0.3)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:71] == pytest.approx([1.0] * 62)
    assert factors[85] == pytest.approx(0.5) and factors[99] == pytest.approx(1 / 30)
    with pytest.raises(UserError, match="lr_scheduler.decay needs trainer.max_steps"):
        Plan(lr_scheduler={"class_path": OURS, "init_args": {"decay": 0.3}}).check(-1)
    for bad in ({"warmup_steps": -1}, {"decay": 1.5}):
        with pytest.raises(UserError, match=f"lr_scheduler.{next(iter(bad))}"):
            Plan(lr_scheduler={"class_path": OURS, "init_args": bad}).check(10)


def test_a_warm_up_needs_no_end():
    parameter = torch.nn.Parameter(torch.zeros(1))
    plan = Plan(lr_scheduler={"class_path": OURS, "init_args": {"warmup_steps": 3}})
    run = Trainer(max_steps=-1, logger=False, accelerator="cpu", barebones=True)
    made = plan.build([parameter], run)
    rates = []
    for _ in range(5):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates == [1e-5 * part for part in (0.25, 0.5, 0.75, 1.0, 1.0)]


def test_micro_run_resumes_to_the_bit_with_the_latents_it_began_with(tmp_path, sprites, monkeypatch):
    """Schedule, spread sigmas, fitted latents, warming average: 4 steps at once, or 2 and 2 with the fit forbidden."""
    options = dict(MICRO, lr=1e-3, warmup_steps=1, decay=0.5, spread=True)

    def run(folder, steps, **fit):
        net = module(**options)
        (tmp_path / folder).mkdir(exist_ok=True)
        callbacks = trainer(tmp_path / folder, 1).callbacks
        callbacks = [c for c in callbacks if type(c).__name__ in ("LastCheckpoint", "Recorder")]
        loop = trainer(tmp_path / folder, 4, callbacks=[EMA(0.9, warmup=True), *callbacks], gradient_clip_val=1.0)
        if steps < 4:
            loop.callbacks.append(Stop(steps))
        loop.fit(net, data(sprites), **fit)
        return net

    whole = run("whole", 4)
    run("parts", 2)
    monkeypatch.setattr(PatchPCA, "fit", lambda *_: pytest.fail("fitted again"))
    resumed = run("parts", 4, ckpt_path=str(tmp_path / "parts" / "last.ckpt"))
    for name, value in whole.stored().items():
        assert torch.equal(value, resumed.stored()[name]), name
    kept = [torch.load(tmp_path / f / "last.ckpt", weights_only=True)["callbacks"]["EMA"] for f in ("whole", "parts")]
    assert all(torch.equal(value, kept[1]["shadow"][name]) for name, value in kept[0]["shadow"].items())
    assert {name for name in whole.stored() if "pca" in name} == {f"base.pca.{n}" for n in ("mean", "basis", "scale")}


class Stop(EMA):
    """Not an average: ends a run after so many steps, as a time limit does."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_batch_end(self, trainer, pl_module, *args):
        trainer.should_stop = trainer.global_step >= self.steps

    def state_dict(self):
        return {}


@pytest.fixture(scope="module")
def packed(tmp_path_factory, sprites):
    folder = tmp_path_factory.mktemp("packed")
    net = module(**MICRO, sigma_max=80.0, inputs={"motion_bucket_id": "drawing"})
    trainer(folder, 2).fit(net, data(sprites))
    file = folder / "model.safetensors"
    assert main(["pack", str(folder / "last.ckpt"), str(file), "--num-frames", "4", "--command", "make fit"]) == 0
    return folder / "last.ckpt", file


def test_a_packed_model_is_the_checkpoint_in_half_precision(packed):
    _, file = packed
    theirs, ours = (MotionControlPipeline.from_checkpoint(path) for path in packed)
    for name, value in theirs.module.stored(whole=True).items():
        want = value if name.startswith("base.pca.") else value.half().float()
        assert torch.equal(want, ours.module.stored(whole=True)[name]), name
    assert ours.module.sampling.sigma_max == 80 and ours.module.sampling.guidance == (1.0, 1.0)
    assert ours.sampling["num_frames"] == 4 and ours.module.sampling.inputs == {"motion_bucket_id": "drawing"}
    frame = torch.randint(0, 255, (64, 64, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    assert len(ours(frame, [[[20, 20], [40, 30]]]).frames[0]) == 4
    assert checkpoint.read_checkpoint(file)["global_step"] == 2


def test_a_packed_model_is_evaluated_as_a_checkpoint_is(packed, sprites, tmp_path):
    """By Lightning, over whatever seed the configuration has: it brings its own base."""
    losses = []
    for path, seed in zip(packed, (0, 5)):
        run = trainer(tmp_path, 1, limit_val_batches=1)
        losses += run.validate(module(**MICRO, init_seed=seed), data(sprites), ckpt_path=str(path), verbose=False)
    assert losses[0]["val/loss"] == pytest.approx(losses[1]["val/loss"], rel=0.02)


def test_a_packed_model_that_is_damaged_or_none_is_named(packed, tmp_path, capsys):
    _, file = packed
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    save_file(load_file(file), tmp_path / "bare.safetensors")
    for name, text in (("bad", "checksum does not match"), ("bare", "weights without a record")):
        with pytest.raises(UserError, match=text):
            checkpoint.read_checkpoint(tmp_path / f"{name}.safetensors")
    assert main(["demo", "--checkpoint", str(tmp_path / "none.ckpt")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_fit_does_not_go_on_from_a_model_without_a_run(packed, sprites, tmp_path):
    with pytest.raises(UserError, match="a model, not a run"):
        trainer(tmp_path, 3).fit(module(**MICRO), data(sprites), ckpt_path=str(packed[1]))


@pytest.mark.parametrize(("name", "base"), [(embedded.NAME, "Photos"), (embedded.SPRITES, "SVD")])
def test_the_embedded_models_are_small_and_say_how_they_were_made(name, base):
    from safetensors import safe_open

    assert embedded.FILES[name].stat().st_size <= 8e6
    with safe_open(embedded.FILES[name], framework="pt") as file:
        about = file.metadata()
    assert "lightning fit" in about["commands"] and int(about["global_step"]) > 0
    record = json.loads(about["remoco"])
    assert record["base"]["class_path"] == f"lightning_modules.bases.{base}"
    assert record["sampling"]["num_frames"] == (16 if base == "Photos" else 8)


def test_what_the_model_of_photographs_has_seen_is_listed_beside_it():
    rows = listed()
    beside = embedded.FILES[embedded.NAME].with_suffix(".tsv")
    assert beside.read_bytes() == LIST.read_bytes()
    assert {row["licence"].split("-")[0] for row in rows} <= {"CC0", "public", "CC"}
    assert all(row["licence"].startswith(("CC0", "CC-BY-", "public-domain")) and row["author"] for row in rows)
    assert not any("SA" in row["licence"] or "NC" in row["licence"] or "ND" in row["licence"] for row in rows)


def test_a_record_from_before_the_model_of_photographs_names_the_sprites_base():
    assert SVD("embedded").path == "embedded-sprites"


def scores(folder, printed):
    """Control error and that of standing still, as written; they are what was printed."""
    errors = json.loads((folder / "metrics.json").read_text())
    error, still = errors["control_error"], errors["control_error_standing_still"]
    assert f"is {error:.1f} px from the drawn path" in printed and f"would be {still:.1f} px" in printed
    assert all((folder / f"{name}.mp4").stat().st_size > 1000 for name in ("clip", "strip"))
    assert len(read_drawing(folder / "inputs").tracks) == 1
    return error, still


def test_the_demo_moves_a_flower_and_nothing_else(tmp_path, capsys):
    """`make demo`: it is on its path within a pixel, what is far from it keeps its colours, and it stays sharp."""
    assert main(["demo", "--out", str(tmp_path)]) == 0
    error, still = scores(tmp_path, capsys.readouterr().out)
    assert error < 1 and still > 50
    clip, _ = read_video(tmp_path / "clip.mp4")
    drawing = read_drawing(tmp_path / "inputs")
    assert np.asarray(clip).shape == (16, 320, 512, 3)
    first, last = clip[0].astype(float), clip[-1].astype(float)
    assert np.abs(last - first)[:, :100].mean() < 4  # of 255, through the video's codec
    way = (drawing.paths(16)[0][-1] - drawing.paths(16)[0][0]).round().astype(int)
    moved = np.roll(first, (way[1], way[0]), (0, 1)), np.roll(drawing.brush > 0, (way[1], way[0]), (0, 1))
    inside = cv2.erode(moved[1].astype(np.uint8), np.ones((9, 9))) > 0
    assert np.abs(last - moved[0])[inside].mean() < 6


def test_the_demo_on_sprites_shows_control(tmp_path, capsys):
    """The object follows the stroke; without control it would be somewhere else."""
    assert main(["demo", "--checkpoint", "embedded-sprites", "--scene", "3", "--out", str(tmp_path)]) == 0
    error, still = scores(tmp_path, capsys.readouterr().out)
    assert error < still / 2


SPRITES = ["--checkpoint", "embedded-sprites", "--scene", "3"]


def test_the_demo_at_another_size(tmp_path, capsys, monkeypatch):
    own = MotionControlPipeline.__call__
    monkeypatch.setattr(MotionControlPipeline, "__call__", lambda *a, **b: own(*a, num_inference_steps=1, **b))
    assert main(["demo", *SPRITES, "--out", str(tmp_path / "large"), "--size", "128"]) == 0
    assert (tmp_path / "large" / "strip.mp4").is_file()
    for wrong in (["--size", "65"], ["--scene", "-1"]):
        assert main(["demo", "--out", str(tmp_path / "none"), *wrong]) == 2
        assert f"{wrong[0]} is {wrong[1]}, expected" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
