"""CogVideoX as a base: folder, latents, conditioning; steps that equal diffusers'."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import CogVideoX, RandomCogVideoX
from lightning_modules.conditioning import to_float
from lightning_modules.config import Control, Noise
from lightning_modules.process.base import Denoiser, sample_sigma
from lightning_modules.process.sampler import euler_sample
from lightning_modules.video_module import AUG_NOISE, AUG_SIGMA, NOISE, POSTERIOR
from remoco.common.errors import UserError
from tests.support import cogvideox, wan
from tests.support.cogvideox import FRAMES, SIDE, conditioned, first_frame, velocity
from tests.support.modules import draw, written
from tests.support.same import same

CLIPS = {"frames": FRAMES, "clips": 4, "val_clips": 2, "height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cogvideox.write(tmp_path_factory.mktemp("cogvideox") / "tiny")


@pytest.fixture(scope="module")
def net(folder):
    """A module over the folder in float64, with LoRA at its start."""
    control = Control([], "linear", 2)
    made = MotionControlModule(CogVideoX(folder), RegionWise(min_mask_ratio=0.5), control, Noise(dropout=0))
    made.configure_model(torch.float64)
    made.log = lambda *args, **kwargs: None
    return made


@pytest.fixture(scope="module")
def base(folder):
    """In float64."""
    return CogVideoX(folder).build(torch.float64)


@pytest.fixture(scope="module")
def theirs(folder):
    """diffusers' pipeline over the same folder, in float64."""
    pipe = CogVideoXImageToVideoPipeline.from_pretrained(folder)
    for name in ("transformer", "vae", "text_encoder"):
        nn.Module.to(getattr(pipe, name), torch.float64)
    return pipe


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 9 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), **CLIPS)


# Folders


def test_a_folder_is_loaded_as_diffusers_loads_it(folder, base, theirs):
    for name in ("transformer", "vae"):
        assert same(getattr(base, name).state_dict(), getattr(theirs, name).state_dict()), name
    assert "patch_embed.pos_embedding" in base.transformer.state_dict()  # learned
    for mine, other in zip((base.cosines, base.sines), cogvideox.rotary(theirs, SIDE, SIDE, 3), strict=True):
        assert torch.equal(mine, other)
    assert base.hashes.keys() == {"transformer", "vae", "text_encoder"}
    assert CogVideoX(folder).build(torch.bfloat16).identity == base.identity  # of the stored weights
    layout = CogVideoX(folder).layout()
    shapes = {name: value.shape for name, value in layout.named_parameters()}
    assert shapes == {name: value.shape for name, value in base.named_parameters()}
    assert all(value.is_meta for value in layout.parameters())


def test_frozen_in_bfloat16_with_what_stays_in_float32(folder):
    made = CogVideoX(folder).build(torch.bfloat16)
    kind, part = CogVideoXTransformer3DModel, {"subfolder": "transformer", "torch_dtype": torch.bfloat16}
    dtypes = {name: value.dtype for name, value in kind.from_pretrained(folder, **part).state_dict().items()}
    drawn = RandomCogVideoX().build(torch.bfloat16)
    for built in (made, drawn):
        assert {name: value.dtype for name, value in built.transformer.state_dict().items()} == dtypes
        assert {value.dtype for value in built.vae.state_dict().values()} == {torch.float32}
        assert built.cosines.dtype == torch.float32 and built.arithmetic() == torch.float32
        assert not any(value.requires_grad for value in built.parameters())
    assert set(dtypes.values()) == {torch.bfloat16} and drawn.identity == RandomCogVideoX().build().identity
    made.cast(torch.float32)
    made.cast(torch.bfloat16)
    assert {value.dtype for value in made.transformer.state_dict().values()} == {torch.bfloat16}
    trained = RandomCogVideoX(trained=True).build(torch.float32)
    assert {name for name, value in trained.named_parameters() if value.requires_grad} == {
        f"transformer.{name}" for name, _ in trained.transformer.named_parameters()
    }
    with torch.no_grad():
        cond = conditioned(made)
        out = made.predict(draw(1, 3, 4, 8, 8).float(), torch.tensor([500.0]), cond)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_an_export_is_the_base_without_its_text_encoder(base, tmp_path):
    base.export(tmp_path / "out")
    assert not (tmp_path / "out" / "text_encoder").exists()
    again = CogVideoX(tmp_path / "out").build(torch.float64)
    assert again.identity["hash"] == base.identity["hash"] and torch.equal(again.empty, base.empty)
    drawn = RandomCogVideoX(init_seed=9).build()
    drawn.export(tmp_path / "drawn")
    assert CogVideoX(tmp_path / "drawn").build().hashes == drawn.hashes


def changed(part, **values):
    def change(copy):
        path = copy / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def lacking(copy):
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "patch_embed.pos_embedding"}, path)


def another_prompt(copy):
    (copy / "text").mkdir()
    save_file({"empty": torch.zeros(3, 16)}, copy / "text" / "embeddings.safetensors", {"text_encoder": "0" * 64})


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            changed("transformer", in_channels=4),
            "4 input and 4 output channels, expected twice .* text-to-video has as",
        ),
        (changed("transformer", patch_size_t=2), "patch_size_t is 2 as in CogVideoX 1.5, expected None"),
        (changed("transformer", ofs_embed_dim=512), "ofs_embed_dim is 512 as in CogVideoX 1.5"),
        (changed("transformer", use_learned_positional_embeddings=False), "use_learned_positional_embeddings is False"),
        (changed("transformer", use_rotary_positional_embeddings=False), "as in CogVideoX 2B, expected True"),
        (changed("transformer", sample_frames=8), "sample_frames is 8, expected 1 plus a multiple of 4"),
        (changed("transformer", max_text_seq_length=1 << 20), "max_text_seq_length is 1048576, expected 1 to 1024"),
        (changed("transformer", sample_height=9), "sample_height is 9, expected"),
        (changed("vae", invert_scale_latents=True), "expected 4 frames and 8 pixels per latent"),
        (lambda copy: shutil.rmtree(copy / "text_encoder"), "text_encoder/config.json not found"),
        (lambda copy: shutil.rmtree(copy / "vae"), "vae/config.json not found"),
        (changed("text_encoder", pad_token_id=99), "its pad_token_id is no token, expected 0"),
        (lacking, "lacks 1 weights of CogVideoXTransformer3DModel, the first is patch_embed.pos_embedding"),
        (another_prompt, r"its transformer takes text of \(12, 16\), not \(3, 16\)"),
    ],
)
def test_a_folder_of_another_kind_is_one_line(folder, tmp_path, spoil, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(UserError, match=said) as error:
        CogVideoX(copy).build()
    assert "\n" not in str(error.value)


def test_wan_and_cogvideox_refuse_each_others_folders(folder, tmp_path):
    from lightning_modules.bases import Wan

    wan.write(tmp_path / "wan")
    for made in (CogVideoX(tmp_path / "wan"), Wan(folder)):
        with pytest.raises(UserError, match="^base: .*transformer is a .*, expected a ") as error:
            made.build()
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="^base: path is missing, expected a folder or hub id of CogVideoX"):
        CogVideoX().build()


def test_the_full_size_is_cogvideox():
    """5.57 billion weights, counted without memory for them."""
    layout = RandomCogVideoX("i2v_5b").layout()
    assert sum(p.numel() for p in layout.transformer.parameters()) == pytest.approx(5.57e9, rel=2e-3)
    assert layout.channels == 16 and layout.usual() == (49, 480, 720)
    assert layout.transformer.patch_embed.pos_embedding.shape == (1, 226 + 13 * 30 * 45, 3072)
    assert [(level.space, level.time) for level in layout.levels()] == [(8, 1), (16, 4)]


@pytest.mark.parametrize(
    "clip, said",
    [
        ((80, 480, 720), "frames is 80, expected 49: this base takes clips of 49 x 480 x 720 alone"),
        ((49, 481, 720), "height is 481, expected 480: "),
        ((49, 480, 832), "width is 832, expected 720: "),
        ((None, 720, 480), "height is 720, expected 480: "),
    ],
)
def test_another_length_or_size_is_one_line(clip, said):
    grid = RandomCogVideoX("i2v_5b").grid
    grid.check(49, 480, 720), grid.check(None, 480, 720)
    assert grid.latents(49) == 13 and grid.size(480, 720) == (60, 90)
    with pytest.raises(UserError, match=said) as error:
        grid.check(*clip)
    assert "\n" not in str(error.value)


# Latents and conditioning


def test_latents_are_cut_and_scaled_as_diffusers(base, theirs):
    """9 frames, then 8: within a part, every latent depends on all frames; a real standard deviation."""
    video = draw(2, 17, 3, 16, 24).tanh()
    mean, std = base.encode(video)
    assert mean.shape == std.shape == (2, 5, 4, 2, 3) and (std > 0).all()
    for index in range(2):
        dist = theirs.vae.encode(video[index, None].transpose(1, 2)).latent_dist
        torch.testing.assert_close(mean[index, None], dist.mode().transpose(1, 2), rtol=0, atol=1e-12)
        torch.testing.assert_close(std[index, None], dist.std.transpose(1, 2), rtol=0, atol=1e-12)
    parts = base.encode(video[:, :9]).mean
    torch.testing.assert_close(parts, mean[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(base.encode(video[:, :1]).mean, mean[:, :1], atol=1e-4)  # not causal
    torch.testing.assert_close(base.normalise(mean), 0.7 * mean, rtol=1e-12, atol=0)
    decoded = theirs.decode_latents(0.7 * mean).transpose(1, 2)
    torch.testing.assert_close(base.decode(base.normalise(mean)), decoded, rtol=0, atol=1e-9)
    assert decoded.shape == video.shape


def test_what_it_is_conditioned_on_is_diffusers(base, theirs):
    """The first frame's latent and the texts, padding included; noise is added to the frame where it is said."""
    cond = conditioned(base)
    dist = theirs.vae.encode(first_frame()[:, :, None]).latent_dist
    torch.testing.assert_close(cond.parts["first"][:, 0], 0.7 * dist.mode()[:, :, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(cond.parts["text"], cogvideox.embeddings(theirs, ""), rtol=0, atol=1e-6)
    assert torch.equal(cond.parts["text"], cond.parts["negative_text"])
    noise = draw(1, 3, SIDE, SIDE, seed=2)
    strength = torch.tensor([0.3], dtype=torch.float64)
    known = {"first_frame": first_frame(), "frames": FRAMES}
    noised = base.condition(known, {"noise_aug_strength": strength}, noise)
    wanted = base.normalise(base.encode((first_frame() + 0.3 * noise)[:, None]).mean)
    torch.testing.assert_close(noised.parts["first"], wanted, rtol=0, atol=1e-12)
    none = base.condition(known, {"noise_aug_strength": 0 * strength}, noise)
    assert torch.equal(none.parts["first"], cond.parts["first"])
    assert base.inputs()["noise_aug_strength"].default == 0  # its authors sample without


def test_text_and_frame_are_dropped_apart(base, theirs):
    """Text to the empty prompt's, the frame to zeros; guidance leads away from the negative prompt alone."""
    prompts, negative = (cogvideox.embeddings(theirs, *both) for both in (("red dog", "dog"), ("dog", "red")))
    cond = conditioned(base, 2, text=prompts, negative_text=negative)
    noisy, time = draw(2, 3, 4, 8, 8), torch.tensor([900.0, 20.0], dtype=torch.float64)
    full, none = base.predict(noisy, time, cond), base.predict(noisy, time, conditioned(base, 2))
    keep = torch.tensor([[False, True], [True, False]])
    dropped = base.predict(noisy, time, cond.dropping(keep, base.conditionings))
    torch.testing.assert_close(dropped[0], none[0], rtol=0, atol=1e-6)
    blank = {**cond.parts, "first": torch.zeros_like(cond.parts["first"])}
    torch.testing.assert_close(dropped[1], base.predict(noisy, time, cond.__class__(blank))[1], rtol=0, atol=1e-6)
    assert not torch.allclose(full, none, atol=1e-4) and not torch.allclose(dropped[1], full[1], atol=1e-4)
    other = base.predict(noisy, time, cond.unconditional(base.unconditional))
    assert torch.equal(other, base.predict(noisy, time, conditioned(base, 2, text=negative)))
    with pytest.raises(UserError, match="^negative_text: 5 tokens of 16 values, expected 12 of 16, padding included"):
        conditioned(base, negative_text=draw(1, 5, 16))


# diffusers' own modules, in float64


def test_a_training_step_is_diffusers(net, clips, theirs, monkeypatch):
    """At times of its table, the last with infinite noise: its loss is theirs, of the error of the clean latents."""
    batch, at = clips[1], torch.tensor([999, 431])
    sigma = net.process.table()[at]
    monkeypatch.setattr(net, "draw_sigma", lambda batch: sigma)
    drawn = sample_sigma(net.seeds(batch, AUG_SIGMA).tolist(), -3.0, 0.5)  # the first frame's noise, as its authors'
    strength = drawn.double()
    video = to_float(batch["video"]).double()  # float32 in the module too
    first = to_float(batch["first_frame"], torch.float64)
    noise = net.draw_noise(batch, NOISE, (3, 4, 8, 8)).double()
    spread = net.draw_noise(batch, POSTERIOR, (3, 4, 8, 8)).double()
    frame = first + strength.view(-1, 1, 1, 1) * net.draw_noise(batch, AUG_NOISE, first.shape[1:])
    weight = 1 / (1 - theirs.scheduler.alphas_cumprod[at])
    losses = []
    with wan.lifted(), torch.no_grad():
        ours = net.training_step(batch, 0)
        for index in range(2):
            one = slice(index, index + 1)
            dist = theirs.vae.encode(video[one].transpose(1, 2)).latent_dist
            clean = 0.7 * (dist.mean.transpose(1, 2) + dist.std.transpose(1, 2) * spread[one])
            given = 0.7 * theirs.vae.encode(frame[one][:, :, None]).latent_dist.mode().transpose(1, 2)
            noisy = theirs.scheduler.add_noise(clean, noise[one], at[one])
            out = velocity(theirs, noisy, at[one].double(), given, cogvideox.embeddings(theirs, ""))
            estimate = theirs.scheduler.get_velocity(out, noisy, at[one])
            losses.append(weight[index] * (estimate - clean).square().mean())
    assert abs(losses[0] - losses[1]) > 1e-3
    torch.testing.assert_close(ours, torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)


def test_a_guided_step_and_four_steps_are_diffusers(net, theirs):
    """With guidance 6 from a negative prompt, LoRA at zero and no control; from infinite noise, as its scheduler."""
    prompts, negative = (cogvideox.embeddings(theirs, prompt) for prompt in ("red dog", "dog"))
    cond, x = conditioned(net.base, text=prompts, negative_text=negative), draw(1, 3, 4, 8, 8)
    states = []
    with wan.lifted(), torch.no_grad():
        for steps in (1, 4):
            theirs.scheduler.set_timesteps(steps)
            times = theirs.scheduler.timesteps
            sigmas = torch.cat([net.process.table()[times], torch.zeros(1, dtype=torch.float64)])
            assert sigmas[0] == math.inf
            ours = euler_sample(Denoiser(net.base, net.process), x, cond, guidance=(6.0, 6.0), sigmas=sigmas)
            latents = x
            for time in times:
                u, c = (
                    velocity(theirs, latents, time.expand(1).double(), cond.parts["first"], text)
                    for text in (negative, prompts)
                )
                latents = theirs.scheduler.step(u + 6 * (c - u), time, latents).prev_sample
            torch.testing.assert_close(ours, latents, rtol=0, atol=1e-9)
            states.append(latents)
    assert not torch.allclose(*states, atol=1e-3)
