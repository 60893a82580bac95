"""SVD: sizes, weights, freezing, latents, CLIP input, LoRA and gradient checkpointing."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from transformers import CLIPImageProcessor

from lightning_modules.bases import SVD
from lightning_modules.bases.svd.blocks import set_recomputed
from lightning_modules.bases.svd.clip import clip_input
from lightning_modules.bases.svd.norms import RES_BLOCK_EPS, set_res_block_eps
from lightning_modules.control.lora import lora_layers, merge_lora, without_lora
from lightning_modules.control.motion_encoder import MotionEncoder
from lightning_modules.process.base import randn
from lightning_modules.process.edm import edm_loss
from remoco.common.errors import UserError
from tests.support.modules import inputs
from tests.support.nets import OfTensors, attached, random_svd, with_lora


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts_at_full_size_without_memory():
    with torch.device("meta"):
        svd = random_svd("full")
        base = count(svd.unet)
        encoder = MotionEncoder(svd.unet.config.block_out_channels)
        modulation = attached(svd.unet, "modulation")
        with_lora(svd.unet, "linear", rank=32)
    assert base == 1_524_623_082
    assert count(encoder) == 69_195_440
    assert count(modulation) == 45_497_280
    assert count(svd.unet) - base == 39_016_448
    assert len(lora_layers(svd.unet)) == 464
    assert svd.identity["hash"] == "meta"
    # diffusers makes its 1-element mix factors with torch.Tensor([0.5]), which no device context moves
    assert sum(p.numel() for p in svd.parameters() if not p.is_meta) < 100


def test_attention_lora_is_on_every_attention_projection():
    with torch.device("meta"):
        unet = random_svd("full").unet
        with_lora(unet, "attention", rank=32)
    names = set(lora_layers(unet))
    assert len(names) == 256  # 16 transformers x 2 (spatial, temporal) x 2 attentions x 4 projections
    assert {name.rsplit(".attn", 1)[1][2:] for name in names} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_full_unet_is_the_default_svd():
    with torch.device("meta"):
        ours, stock = random_svd("full").unet, UNetSpatioTemporalConditionModel()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    assert ours.config.num_attention_heads == stock.config.num_attention_heads
    assert set_res_block_eps(stock) == 72  # diffusers' 1e-6
    assert set_res_block_eps(ours) == 0
    assert ours.up_blocks[0].resnets[0].temporal_res_block.norm2.eps == RES_BLOCK_EPS


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_svd("tiny", seed=3)
    torch.manual_seed(2)
    again, other = random_svd("tiny", seed=3), random_svd("tiny", seed=4)
    assert first.identity == again.identity
    assert first.identity["init_args"] == {"size": "tiny", "init_seed": 3, "latents": "vae", "components": 8}
    assert first.identity["hash"] != other.identity["hash"]
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)
    with_lora(first.unet, "linear", 2, seed=1)
    MotionEncoder((32, 64), seed=1)
    attached(again.unet, "modulation", seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SVD in diffusers' layout."""
    path = tmp_path_factory.mktemp("svd")
    svd = random_svd("tiny", seed=5)
    for name, part in svd.named_children():
        part.save_pretrained(path / name)
    return path


def test_load_gives_the_saved_weights(folder):
    loaded, made = SVD(folder).build(), random_svd("tiny", seed=5)
    named = {"class_path": "lightning_modules.bases.SVD", "init_args": {"path": str(folder), "revision": None}}
    assert loaded.identity == {**named, "hash": made.identity["hash"]}
    assert set_res_block_eps(loaded.unet) == 0
    assert loaded.latent_scale == 0.18215 and loaded.channels == 4


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: shutil.rmtree(p), "unet/config.json not found"),
        (lambda p: shutil.rmtree(p / "vae"), "vae/config.json not found"),
        (lambda p: (p / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "cannot load unet"),
        (lambda p: (p / "image_encoder" / "model.safetensors").write_bytes(b"no weights"), "cannot load image_encoder"),
        (lambda p: pickled(p / "vae"), "cannot load vae"),
        (lambda p: drop_a_weight(p / "unet" / "diffusion_pytorch_model.safetensors"), "lacks 1 weights"),
    ],
    ids=["nothing", "no vae", "no weights", "broken file", "pickled weights", "a weight missing"],
)
def test_a_bad_folder_is_one_line(folder, tmp_path, damage, expected):
    copy = shutil.copytree(folder, tmp_path / "svd")
    damage(copy)
    with pytest.raises(UserError) as error:
        SVD(copy).build()
    assert expected in str(error.value) and str(copy) in str(error.value) and "\n" not in str(error.value)


def pickled(folder):
    """Weights as a pickle only: must not be opened."""
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(random_svd("tiny", seed=5).vae.state_dict(), folder / "diffusion_pytorch_model.bin")


def drop_a_weight(path):
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    del state["conv_in.bias"]
    save_file(state, path)


def test_text_to_video_weights_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "svd")
    shutil.rmtree(copy / "unet")
    config = {**random_svd("tiny").unet.config, "in_channels": 4}
    UNetSpatioTemporalConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(UserError, match="4 input and 4 output channels, expected 8 and 4"):
        SVD(copy).build()


def test_frozen_dtypes_and_gradients():
    svd = random_svd("tiny", dtype=torch.bfloat16)
    assert (
        {p.dtype for p in svd.unet.parameters()}
        == {torch.bfloat16}
        == {p.dtype for p in svd.image_encoder.parameters()}
    )
    assert {p.dtype for p in svd.vae.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in svd.parameters()) and not svd.unet.training
    svd = random_svd("tiny", dtype=torch.bfloat16, trained=True)
    assert {(p.dtype, p.requires_grad) for p in svd.unet.parameters()} == {(torch.float32, True)}
    assert not any(p.requires_grad for p in svd.image_encoder.parameters())


def test_vae_is_float32_inside_autocast():
    svd = random_svd("tiny", dtype=torch.bfloat16)
    frames = randn([0], (5, 3, 32, 64))[0].clamp(-1, 1)
    mean, std = (part[0] for part in svd.encode(frames[None], chunk=2))
    video = svd.decode(mean[None] * svd.latent_scale)
    with torch.autocast("cpu", torch.bfloat16):
        again, std_again = (part[0] for part in svd.encode(frames[None], chunk=2))
        video_again = svd.decode(mean[None] * svd.latent_scale)
    assert mean.dtype == torch.float32 and mean.shape == (5, 4, 4, 8) and video.shape == (1, 5, 3, 32, 64)
    assert torch.equal(mean, again) and torch.equal(std, std_again) and torch.equal(video, video_again)


def test_frames_are_encoded_in_chunks_in_order(monkeypatch):
    svd = random_svd("tiny")
    frames, seen = randn([0], (5, 3, 32, 64))[0], []

    def encode(part):
        seen.append(len(part))
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=2 * part, std=part.abs()))

    monkeypatch.setattr(svd.vae, "encode", encode)
    mean, std = (part[0] for part in svd.encode(frames[None], chunk=2))
    assert seen == [2, 2, 1] and torch.equal(mean, 2 * frames) and torch.equal(std, frames.abs())


def test_space_to_depth_is_invertible(tmp_path):
    svd = random_svd("tiny", latents="space_to_depth")
    assert svd.vae is None and svd.channels == 192 and svd.unet.config.in_channels == 384
    frames = randn([0], (4, 3, 16, 24))[0]
    mean, std = (part[0] for part in svd.encode(frames[None]))
    assert mean.shape == (4, 192, 2, 3) and not std.any()
    assert torch.equal(svd.decode(mean[None] * svd.latent_scale)[0], frames)
    with pytest.raises(UserError, match="space_to_depth, which cannot be exported"):
        svd.export(tmp_path / "base")


@pytest.mark.parametrize("size", [(320, 512), (96, 160), (225, 451), (33, 33), (20, 24)])
def test_clip_input_is_the_diffusers_pipelines(size):
    frames = randn([0, 1], (3, *size)).clamp(-1, 1).double()
    theirs = (_resize_with_antialiasing(frames, (32, 32)) + 1) / 2
    processor = CLIPImageProcessor()
    mean, std = (
        torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (processor.image_mean, processor.image_std)
    )
    torch.testing.assert_close(clip_input(frames, 32), (theirs - mean) / std, atol=1e-9, rtol=0)
    assert clip_input(frames.bfloat16(), 32).dtype == torch.float32


def test_image_embedding():
    svd = random_svd("tiny", dtype=torch.bfloat16)
    embedding = svd.embed_image(randn([0, 1], (3, 64, 96)))
    assert embedding.shape == (2, 1, 32) and embedding.dtype == torch.bfloat16 and not embedding.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_starts_as_the_bare_unet(dtype):
    svd = random_svd("tiny", dtype=dtype)
    denoiser = OfTensors(svd)
    x = inputs(svd)
    with torch.no_grad():
        bare = denoiser(*x)
        with_lora(svd.unet, "linear", rank=4, seed=1)
        assert torch.equal(denoiser(*x), bare)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert torch.equal(denoiser(*x), bare)
    trained = [p for p in svd.unet.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert sum(p.numel() for p in trained) == sum(p.numel() for n, p in svd.unet.named_parameters() if ".lora_" in n)


def test_merged_lora_is_the_same_network():
    # float64: GroupNorm over the two values of a 1 x 1 level blows rounding errors up
    svd = random_svd("tiny", dtype=torch.float32)
    with_lora(svd.unet, "linear", rank=4)
    torch.nn.Module.double(svd.unet)
    with torch.no_grad():
        for i, layer in enumerate(lora_layers(svd.unet).values()):
            weight = layer.lora_B["default"].weight
            weight.copy_(0.05 * randn([i], weight.shape)[0])
        denoiser, x = OfTensors(svd), [part.double() for part in inputs(svd)]
        separate = denoiser(*x)
        with without_lora(svd.unet):
            assert (denoiser(*x) - separate).abs().max() > 1e-3
        merge_lora(svd.unet)
        torch.testing.assert_close(denoiser(*x), separate, atol=1e-9, rtol=1e-9)


def test_one_step_at_the_papers_rate_changes_every_trained_tensor():
    """bf16 weights would swallow an update of 1e-5; float32 ones under bf16 autocast do not."""
    svd = random_svd("tiny", dtype=torch.bfloat16)
    with_lora(svd.unet, "attention", rank=4)
    encoder = MotionEncoder(svd.unet.config.block_out_channels)
    injection = attached(svd.unet, "modulation")
    for place in (
        *injection.down,
        *injection.up,
    ):  # away from the start, where gamma and beta pass no gradient to the encoder
        for stack in (place.gamma, place.beta):
            torch.nn.init.constant_(stack.temporal.weight, 0.01)
    trained = {
        n: p for m in (svd.unet, encoder, injection) for n, p in m.named_parameters(str(id(m))) if p.requires_grad
    }
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5)
    # at 8 x 8 the middle attends to a single place, and its q and k have no gradient but what rounding leaves
    denoiser, x = OfTensors(svd), inputs(svd, side=16)
    context = randn([5, 6], (2, 32))  # with one token the cross-attention has no gradient in q and k either
    for _ in range(2):  # at step 0 B = 0 gives A no gradient
        with torch.autocast("cpu", torch.bfloat16):
            injection.set(encoder(10 * randn([0, 1], (3, 3, 128, 128))))
            loss = edm_loss(denoiser(*x[:3], context, x[4]), 0.5 * x[0], x[1]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unchanged = [name for name, p in trained.items() if torch.equal(p, before[name])]
    assert not unchanged


@pytest.mark.parametrize("kind", ["modulation", "concat", "add"])
def test_checkpointing_keeps_every_gradient_bit_and_recomputes_temporal_blocks(kind):
    svd = random_svd("tiny", dtype=torch.float32)
    with_lora(svd.unet, "linear", rank=2)
    encoder = MotionEncoder(svd.unet.config.block_out_channels)
    injection = attached(svd.unet, kind)
    for i, p in enumerate([*injection.parameters(), *(p for n, p in svd.unet.named_parameters() if ".lora_B" in n)]):
        p.data.copy_(0.05 * randn([i], p.shape)[0])
    trained = [p for m in (svd.unet, encoder, injection) for p in m.parameters() if p.requires_grad]
    denoiser, x, calls = OfTensors(svd), inputs(svd), []
    blocks = [m for n, m in svd.unet.named_modules() if n.endswith("temporal_transformer_blocks.0")]
    for block in blocks:
        block.attn1.register_forward_hook(lambda module, args, out: calls.append(module))
    keep = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]]).bool()

    def gradients() -> list[torch.Tensor]:
        calls.clear()
        injection.set(encoder(10 * randn([0, 1], (3, 3, 64, 64))))
        loss = edm_loss(denoiser(*x, keep), 0.5 * x[0], x[1]).mean()
        return torch.autograd.grad(loss, trained, allow_unused=False)

    plain = gradients()
    assert len(calls) == len(blocks) == 10  # 3 down, 1 middle, 6 up
    set_recomputed(svd.unet)
    checkpointed = gradients()
    assert len(calls) == 2 * len(blocks)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    with torch.no_grad():
        calls.clear()
        denoiser(*x)
    assert len(calls) == len(blocks)
