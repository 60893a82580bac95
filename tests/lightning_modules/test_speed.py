"""What makes a step fast changes nothing: what is optimized, older checkpoints, host and device, dtypes."""

from __future__ import annotations

import shutil

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_modules import networks
from lightning_modules.bases import SVD
from lightning_modules.bases.svd.network import conditioning
from lightning_modules.bases.svd.weights import load_unet
from lightning_modules.bases.weight_files import weight_files
from lightning_modules.bases.weights import weights_hash
from lightning_modules.conditioning import Conditioning, to_float
from lightning_modules.config import Sampling
from lightning_modules.host import EarlierValue
from lightning_modules.process.base import randn
from lightning_modules.process.graphs import Recorded
from lightning_modules.process.sampler import euler_sample
from lightning_modules.restorable import drop_idle
from tests.support.modules import data, module, perturb, trainer
from tests.support.nets import random_svd
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
    net = module(recompute="all")
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


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("32-true", 1.0, True), ("bf16-mixed", None, True), ("bf16-mixed", 1.0, False)],
)
def test_one_kernel_optimizes_where_lightning_lets_it(tmp_path, sprites, precision, clip, fused):
    """Under automatic mixed precision Lightning refuses to clip for an optimizer that may unscale gradients itself."""
    run = trainer(tmp_path, 1, precision=precision, gradient_clip_val=clip)
    run.fit(module(), data(sprites))
    assert run.optimizers[0].defaults["fused"] == fused


@pytest.mark.slow
def test_twenty_steps_in_bfloat16_are_within_its_noise(tmp_path, sprites):
    """The same samples, noise and sigmas: the losses differ by bfloat16's rounding, not by what is learned."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        folder = tmp_path / precision
        folder.mkdir()
        trainer(folder, 20, precision=precision).fit(module(lr=1e-3), data(sprites))
        losses[precision] = torch.tensor([float.fromhex(line["loss"]) for line in read(folder / "steps.jsonl")])
    difference = (losses["bf16-mixed"] / losses["32-true"] - 1).abs()
    assert difference.mean() < 0.02 and difference.max() < 0.1


@pytest.mark.slow
def test_two_ranks_train_without_unused_parameters(tmp_path, sprites):
    """Or gloo would wait for gradients of queries and keys that never come; they stay as they are, in files too."""
    net = module(lr=1e-3)
    net.configure_model()
    before = {name: p.detach().clone() for name, p in perturb(net).trained().items()}
    source = data(sprites)
    source.prepare_data()
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    run = trainer(tmp_path, 3, devices=2, strategy=strategy)
    run.callbacks = [callback for callback in run.callbacks if type(callback).__name__ != "Recorder"]
    run.fit(net, source)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    idle = before.keys() - net.optimized().keys()
    assert idle and saved["global_step"] == 3
    for name, value in before.items():
        assert torch.equal(saved["state_dict"][name], value) == (name in idle), name
    assert len(saved["optimizer_states"][0]["state"]) == len(before) - len(idle)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("svd")
    for name, part in random_svd("tiny", seed=5).named_children():
        part.save_pretrained(path / name)
    return path


def test_a_base_in_its_compute_dtype_has_the_identity_of_its_files(folder):
    full, half = SVD(folder).build(), SVD(folder).build(torch.bfloat16)
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
        getattr(random_svd("tiny", seed=5), name).half().save_pretrained(copy / name, variant="fp16")
        assert [file.name.split(".")[1] for file in weight_files(copy / name, name)] == ["fp16"]
    loaded, made = SVD(copy).build(), random_svd("tiny", seed=5)
    for name, value in made.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value.half().float())
    unet, found = load_unet(copy, torch.float16, "it")
    assert found == loaded.hashes["unet"] and {p.dtype for p in unet.parameters()} == {torch.float16}


def test_the_vaes_precision_is_its_own(folder):
    svd = SVD(folder, vae_precision="bfloat16").build(torch.bfloat16)
    frames = to_float((127 * randn([0], (2, 3, 32, 64))[0]).clamp(0, 255).byte())
    mean, std = (part[0] for part in svd.encode(frames[None]))
    assert mean.dtype == std.dtype == torch.float32 and svd.decode(mean[None]).dtype == torch.float32
    full = SVD(folder, vae_precision="tf32").build(torch.bfloat16)
    before = torch.backends.cuda.matmul.allow_tf32
    error = (mean - full.encode(frames[None]).mean[0]).abs().max() / mean.std()
    assert 0 < error < 0.1 and torch.backends.cuda.matmul.allow_tf32 == before
    with pytest.raises(ValueError, match="'float8', expected one of float32, tf32, bfloat16"):
        SVD(folder, vae_precision="float8")


def test_clips_are_decoded_in_parts_where_that_is_asked(folder):
    svd = SVD(folder).build(torch.float32)
    latents = randn([0, 1], (5, 4, 4, 8))
    whole, (first, last) = svd.decode(latents), [svd.decode(latents[:, i : i + 3]) for i in (0, 2)]
    svd.decode_chunk = 5
    assert torch.equal(svd.decode(latents), whole)
    svd.decode_chunk = 3
    shared = torch.lerp(first[:, 2], last[:, 0], 0.5)[:, None]
    assert torch.equal(svd.decode(latents), torch.cat([first[:, :2], shared, last[:, 1:]], 1))
    with pytest.raises(ValueError, match="decode_chunk is 0, expected a whole number"):
        module(decode_chunk=0)


def clip_of(net, dtype: torch.dtype) -> tuple[torch.Tensor, Conditioning]:
    """Noise and conditioning of one clip, on the network's device."""
    dim, channels = net.base.unet.config.cross_attention_dim, net.base.channels
    parts = [randn([i], shape)[0] for i, shape in enumerate([(1, 3, channels, 8, 8), (1, channels, 8, 8), (1, 1, dim)])]
    noise, latent, token = (part.to(net.device, dtype) for part in parts)
    return noise, conditioning(latent, token, torch.tensor([[8.0, 17.0, 0.02]], device=net.device))


def test_without_a_gpu_nothing_is_recorded(built):
    noise, cond = clip_of(built, torch.float32)
    plain, recorded = (
        networks.sample(built.denoiser, built.base, cond, noise, Sampling(2), graph=graph) for graph in (False, True)
    )
    assert torch.equal(plain, recorded)


@pytest.mark.gpu
def test_a_recorded_step_is_the_step():
    net = module()
    net.configure_model()
    torch.nn.Module.double(net.base.unet)
    net.cuda()
    noise, cond = clip_of(net, torch.float64)
    with torch.no_grad():
        for x in (noise, 2 * noise):
            plain = euler_sample(net.denoiser, x, cond, steps=4)
            recorded = euler_sample(net.denoiser, x, cond, steps=4, recorded=Recorded)
            torch.testing.assert_close(recorded, plain, atol=1e-9, rtol=1e-9)
