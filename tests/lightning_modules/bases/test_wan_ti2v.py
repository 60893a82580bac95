"""Wan 2.2 TI2V as a base: told by its folder; a time for each latent frame, the first clean and out of the loss."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from PIL import Image

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.conditioning import to_float
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.base import Denoiser
from lightning_modules.process.sampler import euler_sample
from lightning_modules.video_module import NOISE
from remoco.common.errors import UserError
from tests.support import wan
from tests.support.commands import remoco
from tests.support.modules import data, draw, trainer, written
from tests.support.same import same

SIZE = "tiny_ti2v"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan.write(tmp_path_factory.mktemp("wan") / "tiny", SIZE)


@pytest.fixture(scope="module")
def net(folder):
    """A module over the folder in float64, with LoRA at its start."""
    made = MotionControlModule(Wan(folder), RegionWise(min_mask_ratio=0.5), Control([], "linear", 2), Noise(dropout=0))
    made.configure_model(torch.float64)
    made.log = lambda *args, **kwargs: None
    return made


@pytest.fixture(scope="module")
def theirs(folder):
    """diffusers' pipeline over the same folder, in float64."""
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    for name in ("transformer", "vae", "text_encoder"):
        torch.nn.Module.to(getattr(pipe, name), torch.float64)
    assert pipe.config.expand_timesteps and pipe.image_encoder is None
    return pipe


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 5 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), frames=5, clips=4, val_clips=2)


def velocity(net, x, t, first, text):
    """diffusers' network as its pipeline calls it: the first latent clean, a time for each token."""
    x = torch.cat([first, x[:, 1:]], 1).transpose(1, 2)
    mask = torch.ones(len(x), x.shape[2], x.shape[3] // 2 * (x.shape[4] // 2), dtype=x.dtype)
    mask[:, 0] = 0
    times = (mask * 1000 * t.view(-1, 1, 1)).flatten(1)
    return net(x, times, text, return_dict=False)[0].transpose(1, 2)


def test_it_is_told_by_its_folder(folder, tmp_path):
    base = Wan(folder)
    assert base.grid.space == 16 and base.grid.step == 32 and base.usual() == (121, 704, 1280)
    assert base.process().shift == 5.0
    with pytest.raises(UserError, match="height is 720, expected a multiple of 32, the nearest 704 and 736"):
        base.grid.check(121, 720, 1280)
    built = base.build()
    assert built.hashes.keys() == {"transformer", "vae", "text_encoder"} and built.image_encoder is None
    assert len(built.beside()) == 1
    # a mirror's configuration speaks of image tokens that the weights do not have
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "transformer" / "config.json").read_text())
    config |= {"image_dim": 1280, "added_kv_proj_dim": 24}
    (copy / "transformer" / "config.json").write_text(json.dumps(config))
    assert Wan(copy).build().hashes == built.hashes
    shapes = {name: value.shape for name, value in Wan(copy).layout().named_parameters()}
    assert shapes == {name: value.shape for name, value in built.named_parameters()}
    built.export(tmp_path / "out")
    assert Wan(tmp_path / "out").build().hashes == built.hashes
    counted = RandomWan("ti2v_5b").layout()
    assert sum(p.numel() for p in counted.transformer.parameters()) == pytest.approx(5.00e9, rel=1e-3)


def test_text_to_video_is_refused(folder, tmp_path):
    """Its transformer has as many channels, but it never saw a first frame."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_residual": False, "scale_factor_spatial": 8}))
    with pytest.raises(UserError, match="4 input and 4 output channels and no image tokens, expected") as error:
        Wan(copy).build()
    assert "\n" not in str(error.value)


def test_latents_are_causal_and_come_back(net, theirs):
    video = draw(2, 9, 3, 64, 96).tanh()
    mean, _ = net.base.encode(video)
    assert mean.shape == (2, 3, 4, 4, 6)
    torch.testing.assert_close(net.base.encode(video[:, :1]).mean, mean[:, :1], rtol=0, atol=1e-12)
    torch.testing.assert_close(mean.transpose(1, 2), theirs.vae.encode(video.transpose(1, 2)).latent_dist.mode())
    torch.testing.assert_close(
        net.base.decode(net.base.normalise(mean)), theirs.vae.decode(mean.transpose(1, 2)).sample.transpose(1, 2)
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_rows_for_frames_are_times_for_tokens(net, theirs, recompute):
    """Our blocks against diffusers' in float64: output, and gradients of the latents."""
    text = draw(2, 512, 16, seed=1)
    times = torch.tensor([0.9, 0.02], dtype=torch.float64)
    ours = RandomWan(SIZE, 3).build(torch.float64)
    if recompute:
        ours.transformer.enable_gradient_checkpointing()
    found = []
    for predict in (ours._after_first, None):
        first, noisy = (draw(*shape, seed=2).requires_grad_() for shape in ((2, 1, 4, 4, 6), (2, 3, 4, 4, 6)))
        with wan.lifted():
            if predict is not None:
                out = predict(noisy, 1000 * times, first, text)
                straight = (noisy[:, :1] - first) / times.view(-1, 1, 1, 1, 1)
                torch.testing.assert_close(out[:, :1], straight, rtol=1e-12, atol=1e-12)
            else:
                out = velocity(theirs.transformer, noisy, times, first, text)
            out[:, 1:].square().sum().backward()
        found.append((out[:, 1:].detach(), first.grad, noisy.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)
    assert not found[0][2][:, 0].any() and found[0][1].any()


def test_a_training_step_is_diffusers_without_the_first_latent(net, clips, theirs):
    batch = clips[1]
    video = to_float(batch["video"]).double()
    first = to_float(batch["first_frame"], torch.float64)
    config = theirs.vae.config
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (config.latents_mean, config.latents_std))
    noise = net.draw_noise(batch, NOISE, (2, 4, 4, 4)).double()
    sigma = net.draw_sigma(batch).double()
    text = wan.embeddings(theirs, "")
    grads, losses = [], []
    with wan.lifted():
        hook = net.base.transformer.proj_out.register_full_backward_hook(lambda m, i, o: grads.append(o[0]))
        perturbed = net.training_step(batch, 0)
        perturbed.backward()
        hook.remove()
        for index, t in enumerate(sigma / (1 + sigma)):
            given, clip = (
                (theirs.vae.encode(part.transpose(1, 2)).latent_dist.mode().transpose(1, 2) - mean) / std
                for part in (first[index, None, None], video[index, None])
            )
            noisy = (1 - t) * clip + t * noise[index]
            with torch.no_grad():
                out = velocity(theirs.transformer, noisy, t, given, text)
            losses.append((out - (noise[index] - clip))[:, 1:].square().mean())
    torch.testing.assert_close(perturbed.detach(), torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)
    tokens = grads[0].unflatten(1, (2, -1))
    assert not tokens[:, 0].any() and tokens[:, 1].any()


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_guided_step_and_four_steps_are_diffusers(net, theirs, solver):
    prompts, negative = (wan.embeddings(theirs, prompt) for prompt in ("red dog", "dog"))
    frame = draw(1, 3, 64, 96, seed=1).tanh()
    batch = {"first_frame": frame, "frames": 9, "text": prompts, "negative_text": negative}
    cond = net.base.condition(batch, {}, None)
    assert cond.given == 1
    x, first = draw(1, 3, 4, 4, 6), cond.parts["first"]
    scheduler = UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=1.0)  # of shifted times
    theirs.scheduler.set_timesteps(4)
    times = theirs.scheduler.sigmas.double()
    start = x / ((1 - times[0]) ** 2 + times[0] ** 2).sqrt()  # the sampler scales what it starts from
    with wan.lifted(), torch.no_grad():
        for steps in (1, 4):
            sigmas = (times / (1 - times))[: steps + 1]
            ours = euler_sample(
                Denoiser(net.base, net.process), start, cond, guidance=(5.0, 5.0), sigmas=sigmas, solver=solver
            )
            latents = x
            scheduler.set_timesteps(steps)
            scheduler.sigmas = times[: steps + 1]
            scheduler.set_begin_index(0)
            for t, after in zip(times[:steps], times[1 : steps + 1], strict=True):
                u, c = (velocity(theirs.transformer, latents, t, first, text) for text in (negative, prompts))
                guided = u + 5 * (c - u)
                if solver == "unipc":
                    latents = scheduler.step(guided, scheduler.timesteps[0], latents).prev_sample
                else:
                    latents = latents + (after - t) * guided
            torch.testing.assert_close(ours[:, 1:], latents[:, 1:], rtol=0, atol=1e-9)
    torch.testing.assert_close(ours[:, :1], first, rtol=0, atol=1e-9)


def test_it_trains_resumes_and_is_sampled(clips, tmp_path, capsys):
    def module():
        made = MotionControlModule(
            RandomWan(SIZE, 3), RegionWise(min_mask_ratio=0.5), Control([], "attention", 2), Noise(dropout=0.5),
            Sampling(2, guidance=(3.0, 3.0), solver="unipc"),
        )  # fmt: skip
        made.plan = Plan(adamw(lr=1e-3))
        return made

    root, options = clips[0], {"frames": 5, "clips": 4, "val_clips": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    trainer(whole, 3, limit_val_batches=1, val_check_interval=3).fit(module(), data(root, **options))
    trainer(parts, 2).fit(module(), data(root, **options))
    trainer(parts, 3).fit(module(), data(root, **options), ckpt_path=str(parts / "last.ckpt"), weights_only=True)
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    pipe = MotionControlPipeline.from_checkpoint(tmp_path / "whole" / "last.ckpt", torch_dtype=torch.float64)
    image = (255 * torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(1))).byte().numpy()
    clip = pipe(image, [[(9, 9), (60, 9)]], height=64, width=96, output_type="latent").frames
    frame = torch.from_numpy(image).permute(2, 0, 1)[None]
    first = pipe.module.base.condition({"first_frame": frame, "frames": 5}, {}, None).parts["first"]
    assert clip.shape == (1, 2, 4, 4, 6)
    torch.testing.assert_close(clip[:, :1], first, rtol=0, atol=1e-9)
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"traj_key_points": [[[9, 9], [50, 9]]]}))
    command = ["generate", whole / "last.ckpt", tmp_path / "a.png", "--tracks", tmp_path / "a.json"]
    assert remoco(*command, "--out", tmp_path / "a.mp4") == 0 and (tmp_path / "a.mp4").is_file()
    assert remoco(*command, "--out", tmp_path / "b.mp4", "--num-frames", 8) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "frames is 8, expected 1 plus a multiple of 4, the nearest 5 and 9" in error
