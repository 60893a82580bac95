"""Wan 2.1 as a base: folder, dtypes, latents, conditioning; steps that equal diffusers'."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.bases.empty_prompt import empty_prompt
from lightning_modules.bases.wan.network import KEPT
from lightning_modules.conditioning import to_float
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.base import Denoiser
from lightning_modules.process.sampler import euler_sample
from lightning_modules.video_module import NOISE
from remoco.common.errors import UserError
from remoco.common.model_folders import SLACK
from tests.support import wan
from tests.support.modules import draw, written
from tests.support.same import same

FRAMES, HEIGHT, WIDTH = 9, 32, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan.write(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def base(folder):
    """In float64."""
    return Wan(folder).build(torch.float64)


@pytest.fixture(scope="module")
def theirs(folder):
    """diffusers' pipeline over the same folder, in float64."""
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    for name in ("transformer", "vae", "image_encoder", "text_encoder"):
        torch.nn.Module.to(getattr(pipe, name), torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def first_frame(batch=1, seed=1):
    return draw(batch, 3, HEIGHT, WIDTH, seed=seed).tanh()


def conditioned(base, batch=1, **more):
    return base.condition({"first_frame": first_frame(batch), "frames": FRAMES, **more}, {}, None)


# Folders


def test_a_folder_is_loaded_as_diffusers_loads_it(folder, base, theirs):
    for name in ("transformer", "vae", "image_encoder"):
        mine, other = getattr(base, name).state_dict(), getattr(theirs, name).state_dict()
        assert same(mine, other), name
    ours, rope = base.transformer.rope, theirs.transformer.rope
    assert torch.equal(ours.freqs_cos.double(), rope.freqs_cos) and torch.equal(ours.freqs_sin.double(), rope.freqs_sin)
    assert base.hashes.keys() == {"transformer", "vae", "image_encoder", "text_encoder"}
    again = Wan(folder).build(torch.bfloat16)
    assert again.identity == base.identity  # of the stored weights, not of the rounded ones
    layout = Wan(folder).layout()
    shapes = {name: value.shape for name, value in layout.named_parameters()}
    assert shapes == {name: value.shape for name, value in base.named_parameters()}
    assert all(value.is_meta for value in layout.parameters())


def test_frozen_in_bfloat16_with_what_stays_in_float32(folder):
    base = Wan(folder).build(torch.bfloat16)
    theirs = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.bfloat16)
    dtypes = {name: value.dtype for name, value in theirs.named_parameters()}
    assert {name: value.dtype for name, value in base.transformer.named_parameters()} == dtypes
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32} and frozenset(theirs._keep_in_fp32_modules) == KEPT
    assert base.transformer.rope.freqs_cos.dtype == torch.float32 and base.arithmetic() == torch.float32
    for network in (base.vae, base.image_encoder):
        assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert not any(value.requires_grad for value in base.parameters())
    drawn = RandomWan().build(torch.bfloat16)
    assert {name: value.dtype for name, value in drawn.transformer.named_parameters()} == dtypes
    assert drawn.identity == RandomWan().build().identity
    base.cast(torch.float32)
    base.cast(torch.bfloat16)
    assert {name: value.dtype for name, value in base.transformer.named_parameters()} == dtypes
    assert {value.dtype for value in base.vae.parameters()} == {torch.float32}
    trained = RandomWan(trained=True).build(torch.bfloat16)
    assert {value.dtype for value in trained.transformer.parameters()} == {torch.float32}
    assert {name for name, value in trained.named_parameters() if value.requires_grad} == {
        f"transformer.{name}" for name in dtypes
    }


def test_an_export_is_the_base_without_its_text_encoder(folder, base, tmp_path):
    base.export(tmp_path / "out")
    assert not (tmp_path / "out" / "text_encoder").exists()
    again = Wan(tmp_path / "out").build(torch.float64)
    assert again.identity["hash"] == base.identity["hash"] and torch.equal(again.empty, base.empty)
    drawn = RandomWan(init_seed=9).build()
    drawn.export(tmp_path / "drawn")
    assert Wan(tmp_path / "drawn").build().hashes == drawn.hashes


def without_image(copy):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_dim": None, "added_kv_proj_dim": None}))


def configured(**changes):
    def change(copy):
        path = copy / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def long_prompt(copy):
    (copy / "text").mkdir()
    save_file({"empty": torch.zeros(513, 16)}, copy / "text" / "embeddings.safetensors", {"text_encoder": "0" * 64})


def lacking(copy):
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "blocks.1.attn1.to_q.weight"}, path)


def not_finite(copy):
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({k: v * float("nan") if k == "proj_out.bias" else v for k, v in load_file(path).items()}, path)


def no_prompt(copy):
    (copy / "text").mkdir()
    save_file({"empty": torch.zeros(1, 16)}, copy / "text" / "embeddings.safetensors")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda copy: shutil.rmtree(copy / "text_encoder"), "text_encoder/config.json' not found|text_encoder.config"),
        (lambda copy: shutil.rmtree(copy / "image_encoder"), "image_encoder"),
        (without_image, "transformer_2/config.json not found, expected transformer_2/"),  # 2.2 A14B has none
        (configured(in_channels=13), "13 input and 4 output channels and image tokens, expected"),
        (lacking, "lacks 1 weights of WanTransformer3DModel, the first is blocks.1.attn1.to_q.weight"),
        (not_finite, "proj_out.bias holds NaN"),
        (no_prompt, "expected `empty` .n, D., finite, of at most 512 tokens, and the hash of its text_encoder"),
        (long_prompt, "expected `empty` .n, D., finite, of at most 512 tokens"),
        (configured(_class_name="WanAnimateTransformer3DModel"), "transformer is a WanAnimateTransformer3DModel, exp"),
        (configured(_class_name=["a\nb"]), "transformer is a .*, expected a WanTransformer3DModel"),
        (configured(pos_embed_seq_len=514), "transformer is given a first and a last frame, expected"),
    ],
)
def test_a_folder_of_another_kind_is_one_line(folder, tmp_path, spoil, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(UserError, match=said) as error:
        Wan(copy).build()
    assert "\n" not in str(error.value)


def test_weights_under_two_names_are_counted_once(tmp_path):
    """UMT5's embedding of words is in its state twice and in its file once: at full size a fifth of all."""
    config = UMT5Config(vocab_size=150_000, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, eos_token_id=1)
    encoder = UMT5EncoderModel(config)
    assert encoder.shared.weight.numel() > 2 * SLACK
    encoder.save_pretrained(tmp_path / "text_encoder")
    empty, digest = empty_prompt(tmp_path, torch.float32, "it", UMT5EncoderModel)
    assert empty.shape == (1, 16) and len(digest) == 64


def test_the_full_size_is_wans():
    """16.4 billion weights, counted without memory for them."""
    layout = RandomWan("i2v_14b").layout()
    assert sum(p.numel() for p in layout.transformer.parameters()) == pytest.approx(16.40e9, rel=1e-3)
    assert layout.channels == 16 and layout.usual() == (81, 480, 832)


# Latents


def test_latents_are_normalised_channel_by_channel_and_causal(base):
    video = draw(2, FRAMES, 3, HEIGHT, WIDTH).tanh()
    mean, std = base.encode(video)
    assert mean.shape == (2, 3, 4, HEIGHT // 8, WIDTH // 8) and not std.any()
    config = base.vae.config
    for channel in range(4):
        wanted = (mean[:, :, channel] - config.latents_mean[channel]) / config.latents_std[channel]
        torch.testing.assert_close(base.normalise(mean)[:, :, channel], wanted, rtol=1e-12, atol=1e-12)
    for frames in (1, 5):  # what comes later is not seen
        torch.testing.assert_close(base.encode(video[:, :frames]).mean, mean[:, : frames // 4 + 1], rtol=0, atol=1e-12)
    each = torch.cat([base.encode(clip[None]).mean for clip in video])
    torch.testing.assert_close(each, mean, rtol=0, atol=1e-12)
    decoded = base.vae.decode(mean.transpose(1, 2)).sample.transpose(1, 2)
    torch.testing.assert_close(base.decode(base.normalise(mean)), decoded, rtol=0, atol=1e-9)
    assert base.decode(base.normalise(mean), chunk=1).equal(base.decode(base.normalise(mean)))
    assert decoded.shape == video.shape


@pytest.mark.parametrize(
    "clip, said",
    [
        ((80, 480, 832), "frames is 80, .* the nearest 77 and 81"),
        ((81, 481, 832), "height is 481, expected a multiple of 16, the nearest 480 and 496"),
        ((81, 480, 839), "width is 839, .* the nearest 832 and 848"),
        ((81, 480, 9), "width is 9, expected a multiple of 16, the nearest 16$"),
    ],
)
def test_lengths_and_sizes_off_the_grid_name_the_nearest(clip, said):
    RandomWan().grid.check(81, 480, 832)
    with pytest.raises(UserError, match=said) as error:
        RandomWan().grid.check(*clip)
    assert "\n" not in str(error.value)


# Conditioning


def test_what_it_is_conditioned_on_is_diffusers(base, theirs):
    """y, image tokens and text, from its pipeline's own functions; they take a float32 picture."""
    cond = conditioned(base)
    _, y = theirs.prepare_latents(first_frame().float(), 1, 4, HEIGHT, WIDTH, FRAMES, torch.float64, "cpu")
    torch.testing.assert_close(cond.parts["y"].transpose(1, 2), y, rtol=0, atol=1e-5)
    assert cond.parts["y"][:, 0, :4].eq(1).all() and not cond.parts["y"][:, 1:, :4].any()
    torch.testing.assert_close(cond.parts["text"], wan.embeddings(theirs, ""), rtol=0, atol=1e-12)
    assert torch.equal(cond.parts["text"], cond.parts["negative_text"]) and base.empty.any()
    pixels = np.random.default_rng(0).integers(0, 256, (wan.SIDE, wan.SIDE, 3), np.uint8)  # nothing to scale
    mine = base.embed_image(torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 127.5 - 1)
    torch.testing.assert_close(mine, theirs.encode_image(Image.fromarray(pixels), "cpu"), rtol=0, atol=1e-5)


def test_prompts_come_as_embeddings_and_are_dropped_to_the_empty_one(base, theirs):
    """Padded with zeros to 512, beyond their own length too; dropped, they are the empty prompt's."""
    prompts, negative = (wan.embeddings(theirs, *both) for both in (("red dog", "dog"), ("dog", "red")))
    lengths = torch.tensor([4, 2])
    stored = prompts[:, :4].clone()
    stored[1, 2:] = 7  # of a batch whose padding is anything
    given = {"text": stored, "text_length": lengths, "negative_text": negative[:, :2]}
    cond = conditioned(base, 2, **given)
    assert torch.equal(cond.parts["text"], prompts) and torch.equal(cond.parts["negative_text"], negative)
    noisy, time = draw(2, 3, 4, 4, 6), torch.tensor([900.0, 20.0])
    with wan.lifted():
        full, none = base.predict(noisy, time, cond), base.predict(noisy, time, conditioned(base, 2))
        half = base.predict(noisy, time, cond.dropping(torch.tensor([[True], [False]]), base.conditionings))
    torch.testing.assert_close(half, torch.stack([full[0], none[1]]), rtol=0, atol=1e-9)
    assert not torch.allclose(full, none, atol=1e-4)
    other = base.predict(noisy, time, cond.unconditional(base.unconditional))
    swapped = base.predict(noisy, time, conditioned(base, 2, text=negative))
    assert torch.equal(other, swapped)
    with pytest.raises(UserError, match="513 tokens, expected at most 512"):
        conditioned(base, text=draw(1, 513, 16))


# diffusers' own modules, in float64


def velocity(net, x, t, cond, text):
    """diffusers' network, as its pipeline calls it."""
    inputs = torch.cat([x.transpose(1, 2), cond.parts["y"].transpose(1, 2)], 1)
    image = cond.parts["image_embedding"]
    return net(inputs, 1000 * t.expand(len(x)), text, image, return_dict=False)[0].transpose(1, 2)


@pytest.fixture(scope="module")
def net(folder):
    """A module over the folder in float64, with LoRA at its start."""
    made = MotionControlModule(Wan(folder), RegionWise(min_mask_ratio=0.5), Control([], "linear", 2), Noise(dropout=0))
    made.configure_model(torch.float64)
    return made


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 5 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), frames=5, clips=4, val_clips=2)


def test_a_training_step_is_diffusers(net, clips, theirs):
    batch = clips[1]
    net.log = lambda *args, **kwargs: None
    first = to_float(batch["first_frame"], torch.float64)
    video = to_float(batch["video"]).double()  # float32 in the module too
    config = theirs.vae.config
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (config.latents_mean, config.latents_std))
    noise = net.draw_noise(batch, NOISE, (2, 4, 8, 8)).double()
    sigma = net.draw_sigma(batch).double()
    losses = []
    with wan.lifted(), torch.no_grad():
        ours = net.training_step(batch, 0)
        for index, t in enumerate(sigma / (1 + sigma)):
            cond = net.base.condition({"first_frame": first[index, None], "frames": 5}, {}, None)
            mode = theirs.vae.encode(video[index, None].transpose(1, 2)).latent_dist.mode().transpose(1, 2)
            clean = (mode - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
            noisy = (1 - t) * clean + t * noise[index]
            out = velocity(theirs.transformer, noisy, t, cond, cond.parts["text"])
            losses.append((out - (noise[index] - clean)).square().mean())
    assert len(losses) == 2 and abs(losses[0] - losses[1]) > 1e-3
    torch.testing.assert_close(ours, torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_guided_step_and_four_steps_are_diffusers(net, theirs, solver):
    """With guidance 5 from a negative prompt, LoRA at zero and no control; the sigmas are given to both."""
    prompts, negative = (wan.embeddings(theirs, prompt) for prompt in ("red dog", "dog"))
    base, x = net.base, draw(1, 3, 4, 4, 6)
    cond = conditioned(base, text=prompts, negative_text=negative)
    scheduler = UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=1.0)  # of shifted times
    theirs.scheduler.set_timesteps(4)
    times = theirs.scheduler.sigmas.double()
    sampler = Denoiser(base, net.process)
    start = x / ((1 - times[0]) ** 2 + times[0] ** 2).sqrt()  # the sampler scales what it starts from
    states = []
    with wan.lifted(), torch.no_grad():
        for steps in (1, 4):
            sigmas = (times / (1 - times))[: steps + 1]
            ours = euler_sample(sampler, start, cond, guidance=(5.0, 5.0), sigmas=sigmas, solver=solver)
            latents = x
            scheduler.set_timesteps(steps)
            scheduler.sigmas = times[: steps + 1]
            scheduler.set_begin_index(0)
            for t, after in zip(times[:steps], times[1 : steps + 1], strict=True):
                u, c = (velocity(theirs.transformer, latents, t, cond, text) for text in (negative, prompts))
                guided = u + 5 * (c - u)
                if solver == "unipc":
                    latents = scheduler.step(guided, scheduler.timesteps[0], latents).prev_sample
                else:
                    latents = latents + (after - t) * guided
            torch.testing.assert_close(ours, latents, rtol=0, atol=1e-9)
            states.append(latents)
    assert not torch.allclose(states[0], x, atol=1e-3)


def test_without_prompts_guidance_costs_nothing(net):
    """Both branches are given the empty prompt: one is computed. It is what two are, which a copy of it still makes."""
    seen, cond = [], conditioned(net.base)
    hook = net.base.transformer.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    copied = replace(cond, parts=cond.parts | {"negative_text": cond.parts["text"].clone()})
    sampler, x = Denoiser(net.base, net.process), draw(1, 3, 4, 4, 6)
    with wan.lifted(), torch.no_grad():
        one, two = (euler_sample(sampler, x, each, 2, (5.0, 5.0)) for each in (cond, copied))
    hook.remove()
    assert seen == [1, 1, 2, 2]
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_its_usual_length_is_a_calls():
    """Where no training said one; it is on the grid."""
    net = MotionControlModule(RandomWan(), RegionWise(), Control([], None), sampling=Sampling(1))
    net.configure_model()
    pipe = MotionControlPipeline(net)
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    assert pipe(image, [[(9, 9), (30, 9)]], height=32, width=48, output_type="latent").frames.shape[1] == 3
