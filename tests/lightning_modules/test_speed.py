"""What makes a step fast changes nothing: what is optimized, older checkpoints, host and device, dtypes."""

from __future__ import annotations

import shutil

import pytest
import torch

from lightning_modules.conditioning import to_float
from lightning_modules.diffusion import randn
from lightning_modules.host import EarlierValue
from lightning_modules.restorable import drop_idle
from lightning_modules.svd import SVD
from lightning_modules.weights import load_unet, weight_files, weights_hash
from tests.lightning_modules.test_training import data, module, trainer
from tests.support.recorder import read


@pytest.fixture(scope="module")
def built():
    net = module()
    net.configure_model()
    return net


def test_queries_and_keys_of_one_token_are_kept_but_not_optimized(built):
    trained, optimized = built.trained(), built.optimized()
    idle = trained.keys() - optimized.keys()
    assert idle and all("attn2.to_q" in name or "attn2.to_k" in name for name in idle)
    assert len(idle) == 2 * 2 * 2 * 10  # q and k, A and B, spatial and temporal, 10 transformers
    assert list(built.stored()) == list(trained)


def test_the_state_of_an_optimizer_that_had_them_still_loads(built):
    """Until they were taken out, an optimizer knew all trained parameters; each keeps the moments it had."""
    trained = built.trained()
    older = torch.optim.AdamW(trained.values(), lr=1e-3)
    for i, p in enumerate(trained.values()):
        p.grad = torch.full_like(p, i)
    older.step()
    built.zero_grad(set_to_none=True)
    shadow = {name: p.detach().clone() for name, p in trained.items()}
    checkpoint = {"optimizer_states": [older.state_dict()], "callbacks": {"EMA": {"shadow": dict(shadow)}}}
    drop_idle(checkpoint, list(trained), built.optimized().keys())
    newer = torch.optim.AdamW(built.optimized().values(), lr=1e-3)
    newer.load_state_dict(checkpoint["optimizer_states"][0])
    names = {id(p): name for name, p in trained.items()}
    assert len(newer.state) == len(built.optimized())
    for p, state in newer.state.items():
        assert torch.equal(state["exp_avg"], older.state[p]["exp_avg"]), names[id(p)]
    assert checkpoint["callbacks"]["EMA"]["shadow"].keys() == built.optimized().keys()
    again = {"optimizer_states": [newer.state_dict()]}
    drop_idle(again, list(trained), built.optimized().keys())
    assert again["optimizer_states"][0] == newer.state_dict()


def test_the_progress_bars_loss_is_on_the_host():
    shown = EarlierValue()
    assert shown.value.isnan()
    assert shown.push(torch.tensor(2.0, requires_grad=True) * 3) == 6 and not shown.value.requires_grad


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device(tmp_path, sprites):
    """Copies from the host, the draws, the forward and backward pass, the optimizer: nothing synchronises."""
    net = module(gradient_checkpointing=True)
    net.configure_model(torch.bfloat16)
    net.cuda()
    net.log = lambda *args, **kwargs: None
    source = data(sprites)
    source.prepare_data()
    source.setup("validate")
    batch = next(iter(source.val_dataloader()))
    batch = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    optimizer = torch.optim.AdamW(net.optimized().values(), fused=True)

    def step() -> None:
        on_device = net.transfer_batch_to_device(batch, net.device, 0)
        with net.autocast():
            loss = net.training_step(on_device, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_twenty_steps_in_bfloat16_are_within_its_noise(tmp_path, sprites):
    """The same samples, noise and sigmas: the losses differ by bfloat16's rounding, not by what is learned."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        folder = tmp_path / precision
        folder.mkdir()
        trainer(folder, 20, precision=precision).fit(module(learning_rate=1e-3), data(sprites))
        losses[precision] = torch.tensor([float.fromhex(line["loss"]) for line in read(folder / "steps.jsonl")])
    difference = (losses["bf16-mixed"] / losses["32-true"] - 1).abs()
    assert difference.mean() < 0.02 and difference.max() < 0.1


@pytest.mark.slow
def test_two_ranks_train_without_unused_parameters(tmp_path, sprites):
    net = module(learning_rate=1e-3)
    source = data(sprites)
    source.prepare_data()
    run = trainer(tmp_path, 2, devices=2, strategy="ddp_fork")
    run.callbacks = [callback for callback in run.callbacks if type(callback).__name__ != "Recorder"]
    run.fit(net, source)
    assert (tmp_path / "last.ckpt").is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("svd")
    for name, part in SVD.random("tiny", seed=5).named_children():
        part.save_pretrained(path / name)
    return path


def test_a_base_in_its_compute_dtype_has_the_identity_of_its_files(folder):
    full, half = SVD.load(folder), SVD.load(folder, dtype=torch.bfloat16)
    assert full.identity == half.identity and full.hashes["unet"] == weights_hash(full.unet)
    assert (
        {p.dtype for p in half.unet.parameters()}
        == {torch.bfloat16}
        == {p.dtype for p in half.image_encoder.parameters()}
    )
    for name, value in full.unet.state_dict().items():
        assert torch.equal(half.unet.state_dict()[name], value.bfloat16())


def test_half_precision_files_are_taken_where_there_are_no_others(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "svd")
    for name in ("unet", "vae", "image_encoder"):
        shutil.rmtree(copy / name)
        getattr(SVD.random("tiny", seed=5), name).half().save_pretrained(copy / name, variant="fp16")
        assert [file.name.split(".")[1] for file in weight_files(copy / name, name)] == ["fp16"]
    loaded, made = SVD.load(copy), SVD.random("tiny", seed=5)
    for name, value in made.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value.half().float())
    unet, found = load_unet(str(copy), None, torch.float16)
    assert found == loaded.hashes["unet"] and {p.dtype for p in unet.parameters()} == {torch.float16}


def test_the_vaes_precision_is_its_own(folder):
    svd = SVD.load(folder).freeze(torch.bfloat16, vae_precision="bfloat16")
    frames = to_float((127 * randn([0], (2, 3, 32, 64))[0]).clamp(0, 255).byte())
    mean, std = svd.encode(frames)
    assert mean.dtype == std.dtype == torch.float32 and svd.decode(mean[None]).dtype == torch.float32
    full = SVD.load(folder).freeze(torch.bfloat16, vae_precision="tf32")
    before = torch.backends.cuda.matmul.allow_tf32
    error = (mean - full.encode(frames)[0]).abs().max() / mean.std()
    assert 0 < error < 0.1 and torch.backends.cuda.matmul.allow_tf32 == before
    with pytest.raises(ValueError, match="'float8', expected one of float32, tf32, bfloat16"):
        full.freeze(torch.bfloat16, vae_precision="float8")
