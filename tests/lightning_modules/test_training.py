"""The LightningModule: dtypes, what one step changes, randomness by position, checkpoints, resume."""

import copy
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from conditions import GaussianFiltered, RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.control.lora import without_lora
from lightning_modules.record import check_trainer
from remoco.common.errors import UserError
from tests.support.modules import data, module, perturb, trainer
from tests.support.recorder import read


@pytest.fixture(scope="module")
def batch(sprites):
    dm = data(sprites, batch_size=4)
    dm.prepare_data()
    dm.setup("validate")
    batch = next(iter(dm.val_dataloader()))
    return batch


def test_trained_is_fp32_frozen_is_bf16_and_one_step_changes_all(tmp_path, sprites):
    net = module(lr=1e-5)

    class Probe(Callback):
        def on_train_start(self, trainer, pl_module):
            perturb(pl_module)
            self.before = {k: p.detach().clone() for k, p in pl_module.trained().items()}

    probe = Probe()
    run = trainer(tmp_path, 1, precision="bf16-mixed", callbacks=[probe], enable_checkpointing=False)
    run.fit(net, data(sprites))
    trained = net.trained()
    assert len(trained) > 50
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {k: p for k, p in net.named_parameters() if not p.requires_grad}
    base = {k: p for k, p in frozen.items() if k.startswith(("base.unet", "base.image_encoder")) and ".lora_" not in k}
    assert {p.dtype for p in base.values()} == {torch.bfloat16}
    states = run.optimizers[0].state
    assert {s["exp_avg"].dtype for s in states.values()} == {torch.float32}
    # with one image token the cross-attention softmax is 1, so its queries and keys have no gradient
    stuck = [k for k, p in trained.items() if torch.equal(p, probe.before[k]) and "attn2.to_" not in k]
    assert stuck == []


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16-true"}, {"strategy": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)}],
)
def test_a_trainer_under_which_nothing_right_is_trained_is_refused(changes):
    check_trainer(Trainer(accelerator="cpu", devices=1, logger=False, precision="bf16-mixed"))
    name = f"trainer.{next(iter(changes))} is .*expected (bf16-mixed|ddp): "
    with pytest.raises(UserError, match=name):
        check_trainer(Trainer(accelerator="cpu", devices=1, logger=False, **changes))


def test_training_step_leaves_the_global_generators_alone(sprites):
    net = module()
    dm = data(sprites)
    dm.prepare_data()
    dm.setup("validate")
    batch = next(iter(dm.val_dataloader()))
    net.configure_model()
    net.log = lambda *a, **k: None
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    net.training_step(batch, 0).backward()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


def test_a_sample_does_not_depend_on_the_batch_around_it(sprites, monkeypatch):
    net = module()
    net.configure_model()
    perturb(net)
    dm = data(sprites, batch_size=3)
    dm.prepare_data()
    dm.setup("validate")
    batch = next(iter(dm.val_dataloader()))
    one = {k: v[1:2] for k, v in batch.items()}
    for stream in range(8):
        assert torch.equal(net.draw_noise(batch, stream, (5,))[1:2], net.draw_noise(one, stream, (5,)))
    assert torch.equal(net.draw_control(batch)[1:2], net.draw_control(one))
    # in float64: the networks amplify the roundings of a larger batch
    net.double()
    monkeypatch.setattr(net, "draw_noise", lambda *args: MotionControlModule.draw_noise(net, *args).double())
    torch.testing.assert_close(
        net.sample(batch, net.draw_control(batch))[1:2], net.sample(one, net.draw_control(one)), atol=1e-6, rtol=0
    )


def test_positions_change_the_draws(sprites):
    net = module()
    net.configure_model()
    batch = {"position": torch.arange(3)}
    noise = net.draw_noise(batch, 0, (4,))
    assert len({tuple(row.tolist()) for row in noise}) == 3
    assert not torch.equal(noise, net.draw_noise(batch, 1, (4,)))
    other = module(seed=1)
    other.configure_model()
    assert not torch.equal(noise, other.draw_noise(batch, 0, (4,)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_continues_with_the_same_bits(tmp_path, sprites, accumulate):
    """6 steps at once, against 3 steps, a new process's objects, another worker count, and 3 more."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    more = dict(accumulate_grad_batches=accumulate)
    whole = module(lr=1e-3)
    trainer(tmp_path / "a", 6, **more).fit(whole, data(sprites))
    trainer(tmp_path / "b", 3, **more).fit(module(lr=1e-3), data(sprites))
    resumed = module(lr=1e-3)
    trainer(tmp_path / "b", 6, **more).fit(
        resumed, data(sprites, num_workers=2), ckpt_path=str(tmp_path / "b" / "last.ckpt"), weights_only=True
    )
    assert read(tmp_path / "a" / "steps.jsonl") == read(tmp_path / "b" / "steps.jsonl")
    for name, p in whole.trained().items():
        assert torch.equal(p, resumed.trained()[name]), name


def test_accumulation_sees_the_samples_of_one_large_batch(tmp_path, sprites):
    """Losses equal to 1e-6, in float64: AdamW turns the rounding of a near-zero gradient into a step."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    trainer(tmp_path / "a", 3, precision="64-true").fit(module(), data(sprites, batch_size=4))
    accumulated = trainer(tmp_path / "b", 3, precision="64-true", accumulate_grad_batches=2)
    accumulated.fit(module(), data(sprites, batch_size=2))
    large, small = read(tmp_path / "a" / "steps.jsonl"), read(tmp_path / "b" / "steps.jsonl")
    halves = list(zip(small[::2], small[1::2], strict=True))
    assert [r["keys"] for r in large] == [a["keys"] + b["keys"] for a, b in halves]
    mean = [(float.fromhex(a["loss"]) + float.fromhex(b["loss"])) / 2 for a, b in halves]
    assert mean == pytest.approx([float.fromhex(r["loss"]) for r in large], abs=1e-6)


def test_a_checkpoint_holds_what_was_trained_and_nothing_else(tmp_path, sprites):
    net = module()
    trainer(tmp_path, 1).fit(net, data(sprites))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == net.trained().keys()
    assert not any("base_layer" in key or "image_encoder" in key for key in checkpoint["state_dict"])
    record = checkpoint["remoco"]
    assert record["architecture"]["condition"]["init_args"]["region_size"] == 8
    assert record["base"]["init_args"]["size"] == "tiny" and len(record["base"]["hash"]) >= 32
    assert "hyper_parameters" not in checkpoint


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(injection=["add"]), "injection"),
        (dict(rank=4), "lora_rank"),
        (dict(condition=RegionWise(region_size=4, min_mask_ratio=0.5)), "condition"),
        (dict(size="small"), "base"),
        (dict(init_seed=1), "base"),
        (dict(lora=None, trained=True), "lora"),
    ],
)
def test_another_architecture_or_base_is_refused_before_weights_load(tmp_path, sprites, monkeypatch, changes, named):
    trainer(tmp_path, 1).fit(module(), data(sprites))
    monkeypatch.setattr(MotionControlModule, "configure_model", lambda self: pytest.fail("built before the check"))
    resumed = trainer(tmp_path, 2)
    resumed.ckpt_path = str(tmp_path / "last.ckpt")  # what `python -m lightning fit --ckpt_path` does
    with pytest.raises(UserError, match=named) as caught:
        resumed.fit(module(**changes), data(sprites))
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused_by_trainer_fit_too(tmp_path, sprites):
    trainer(tmp_path, 1).fit(module(), data(sprites))
    with pytest.raises(UserError, match="injection"):
        trainer(tmp_path, 2).fit(module(injection=["add"]), data(sprites), ckpt_path=str(tmp_path / "last.ckpt"))


def test_other_weights_under_the_same_name_are_refused(tmp_path, sprites):
    trainer(tmp_path, 1).fit(module(), data(sprites))
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["remoco"]["base"]["hash"] = "0" * 64
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="other base weights"):
        trainer(tmp_path, 2).fit(module(), data(sprites), ckpt_path=str(path))


def test_at_test_the_checkpoints_condition_wins_and_is_said(tmp_path, sprites, caplog):
    trainer(tmp_path, 1).fit(module(condition=GaussianFiltered()), data(sprites))
    net = module()
    with caplog.at_level("INFO"):
        trainer(tmp_path, 1).test(net, data(sprites), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert isinstance(net.condition, GaussianFiltered)
    assert "GaussianFiltered" in caplog.text


def test_gradient_checkpointing_does_not_change_a_bit(tmp_path, sprites):
    runs = {}
    for on in ("none", "all"):
        folder = tmp_path / on
        folder.mkdir()
        trainer(folder, 2).fit(module(recompute=on), data(sprites))
        runs[on] = read(folder / "steps.jsonl"), torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert runs["none"][0] == runs["all"][0]
    assert all(torch.equal(p, runs["all"][1][name]) for name, p in runs["none"][1].items())


def test_the_uncontrolled_start_is_the_bare_unet(sprites):
    net = module()
    net.configure_model()
    dm = data(sprites, batch_size=1)
    dm.prepare_data()
    dm.setup("validate")
    batch = next(iter(dm.val_dataloader()))
    with torch.no_grad():
        clean = net.clean_latents(batch)
        cond = net.conditioning(batch, torch.full((1,), 0.02), net.draw_control(batch))
        sigma = torch.full((1,), 2.0)
        inputs = clean, sigma, cond
        net.injections[0].set(net.motion_encoder(cond.control))
        controlled = net.denoiser(*inputs)
        net.injections[0].set(None)
        with without_lora(net.base.unet):
            bare = net.denoiser(*inputs)
    assert torch.equal(controlled, bare)


def test_space_to_depth_samples_are_pictures(sprites):
    """What is encoded comes back: latents are an invertible rearrangement."""
    net = module()
    net.configure_model()
    video = torch.rand(2, 4, 3, 64, 64) * 2 - 1
    assert torch.equal(net.base.decode(net.base.normalise(net.base.encode(video).mean)), video)


def test_sampling_is_deterministic_and_changes_nothing(sprites):
    net = module()
    net.configure_model()
    dm = data(sprites)
    dm.prepare_data()
    dm.setup("validate")
    batch = next(iter(dm.val_dataloader()))
    state = copy.deepcopy(net.state_dict())
    first, second = (net.sample(batch, net.draw_control(batch)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == batch["video"].shape and first.abs().max() <= 1
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


@pytest.mark.gpu
def test_trains_in_bf16_on_a_gpu(tmp_path, sprites):
    net = module(recompute="all")
    trainer(tmp_path, 2, accelerator="gpu", precision="bf16-mixed").fit(net, data(sprites))
    assert all(np.isfinite(float.fromhex(line["loss"])) for line in read(tmp_path / "steps.jsonl"))


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(trained=True), "lora"),
        (dict(rank=0), "rank"),
        (dict(dropout=1.5), "dropout"),
        (dict(std=-1), "std"),
        (dict(latents="pixels"), "latents"),
        (dict(inputs={"prompt": "a cat"}), "prompt"),
    ],
)
def test_contradicting_arguments_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        module(**changes)
