"""Control in CogVideoX's tokens, LoRA, training, samples, and its recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomCogVideoX
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process import VPrediction
from remoco import configs
from remoco.common.errors import UserError
from remoco.training import Unstarted
from tests.support import cogvideox, wan
from tests.support.cogvideox import FRAMES, SIDE, conditioned, velocity
from tests.support.commands import remoco
from tests.support.modules import data, draw, perturb, trainer, written
from tests.support.same import same

CLIPS = {"frames": FRAMES, "clips": 4, "val_clips": 2, "height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 9 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), **CLIPS)


def controlled(kinds=("modulation",), lora="attention", dtype=torch.float64, **options):
    made = MotionControlModule(
        RandomCogVideoX("tiny_i2v", 3, **options), RegionWise(min_mask_ratio=0.5), Control([*kinds], lora, 2),
        Noise(dropout=0),
    )  # fmt: skip
    made.configure_model(dtype)
    if dtype == torch.float64:
        made.double()  # what is trained is float32 otherwise
    return made


def asked(net, batch=2):
    """Noisy latents, time and conditioning with a control."""
    control = 5 * draw(batch, FRAMES, 3, SIDE, SIDE, seed=2)
    time = torch.tensor([900.0, 30.0], dtype=torch.float64)[:batch]
    return draw(batch, 3, 4, 8, 8, seed=3), time, conditioned(net.base, batch), control


def test_features_stand_where_the_tokens_do_and_text_is_untouched():
    """A feature of one frame and place changes the one token there, behind the text in the joint sequence."""
    net = controlled()
    x, time, cond, control = asked(net)
    features = net.motion_encoder(control)
    level = net.base.places()[0].level
    assert features[level].shape[1:2] + features[level].shape[3:] == (3, 4, 4)
    block, seen = net.base.transformer.transformer_blocks[0], []
    hook = block.attn1.to_q.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    perturb(net)
    nn.init.zeros_(net.injections[0]._weights[0].project.bias)
    one = torch.zeros_like(features[level])
    one[0, 1, :, 1, 2] = 1
    for feature in (torch.zeros_like(one), one):
        net.injections[0].set([feature] * (level + 1))
        with torch.no_grad():
            net.base.predict(x, time, cond)
    hook.remove()
    assert seen[0].shape[1] == cogvideox.TOKENS + 3 * 4 * 4
    changed = (seen[0] - seen[1]).abs().sum(-1).nonzero().tolist()
    assert changed == [[0, cogvideox.TOKENS + 16 + 4 + 2]]


@pytest.mark.parametrize("kinds", [("modulation",), ("concat", "add")])
def test_from_the_bare_networks_bits_to_a_gradient_for_everything(kinds):
    """At the start it is the bare network, to the bit; then all that is trained has a gradient, also recomputed."""
    bare = RandomCogVideoX("tiny_i2v", 3).build(torch.float64).double()  # its tables of positions too
    found = []
    for recompute in ("none", "all"):
        net = controlled(kinds, "linear", recompute=recompute)
        x, time, cond, control = asked(net)
        with torch.no_grad():
            plain = bare.predict(x, time, cond)
            net.steer(cond.__class__(cond.parts, control))
            assert torch.equal(net.base.predict(x, time, cond), plain)
            perturb(net)
            net.release()
        net.steer(cond.__class__(cond.parts, control))
        out = net.base.predict(x, time, cond)
        assert not torch.allclose(out, plain, atol=1e-4)
        out.square().mean().backward()
        found.append((out.detach(), {name: p.grad for name, p in net.optimized().items()}))
        assert [name for name, grad in found[-1][1].items() if grad is None or not grad.any()] == []
        with torch.no_grad():  # two branches of guidance over one clip's features
            twice = net.base.predict(torch.cat([x, x]), torch.cat([time, time]), cond.followed_by(cond))
        torch.testing.assert_close(twice, torch.cat([out, out]).detach(), rtol=0, atol=1e-5)
    assert torch.equal(found[0][0], found[1][0]) and same(found[0][1], found[1][1])


def test_compiled_by_blocks_with_places_it_computes_the_same():
    outs = []
    for compiled in (False, True):
        net = perturb(controlled(lora=None, dtype=torch.float32))
        if compiled:
            net.base.compile(backend="eager")
        cond = conditioned(net.base, 2)
        control = 5 * draw(2, FRAMES, 3, SIDE, SIDE, seed=2).float()
        with torch.no_grad():
            net.steer(cond.__class__(cond.parts, control))
            outs.append(net.base.predict(draw(2, 3, 4, 8, 8).float(), torch.tensor([900.0, 30.0]), cond))
    assert torch.equal(*outs)


def test_lora_goes_around_the_blocks_linear_layers_and_fusing_is_refused():
    made = RandomCogVideoX().build()
    targets = {kind: set(made.lora_targets(kind)["transformer"]) for kind in ("attention", "linear")}
    assert targets["attention"] == {
        f"transformer_blocks.{n}.attn1.{name}" for n in range(2) for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert targets["linear"] - targets["attention"] == {
        f"transformer_blocks.{n}.{name}"
        for n in range(2)
        for name in ("norm1.linear", "norm2.linear", "ff.net.0.proj", "ff.net.2")
    }
    with pytest.raises(UserError, match="^fuse_qkv_projections .*drops LoRA"):
        made.transformer.fuse_qkv_projections()
    with pytest.raises(UserError, match="recompute is 'top', expected one of none, all"):
        RandomCogVideoX(recompute="top")


@pytest.mark.parametrize("lora", ["attention", "linear"])
def test_its_lora_is_read_by_diffusers_own_pipeline(lora, tmp_path):
    """Under diffusers' names; their network then predicts what ours does without control."""
    net = perturb(controlled((), lora))
    MotionControlPipeline(net).save_lora_weights(tmp_path)
    x, time, cond, _ = asked(net)
    theirs = cogvideox.pipeline(RandomCogVideoX("tiny_i2v", 3).build())
    theirs.load_lora_weights(tmp_path)
    nn.Module.to(theirs.transformer, torch.float64)
    with wan.lifted(), torch.no_grad():
        ours = net.base.predict(x, time, cond)
        other = velocity(theirs, x, time, cond.parts["first"], cond.parts["text"])
        without = controlled((), None).base.predict(x, time, cond)
    assert (ours - without).abs().max() > 1e-3
    torch.testing.assert_close(other, ours, rtol=0, atol=1e-6)  # the file's factors are float32


@pytest.mark.parametrize("kind, said", [("warp", "warp"), ("latent", "latent")])
def test_an_injection_that_it_cannot_take_is_one_line(kind, said):
    with pytest.raises(UserError, match=said) as error:
        MotionControlModule(RandomCogVideoX(), RegionWise(), Control([kind], None)).configure_model()
    assert "\n" not in str(error.value)


# Training and samples


def test_it_trains_resumes_and_follows_what_is_drawn(clips, tmp_path, capsys):
    """A resume has the same bits; another stroke gives another clip; any picture is brought to its one size."""

    def fresh():
        made = MotionControlModule(
            RandomCogVideoX("tiny_i2v", 3), RegionWise(min_mask_ratio=0.5), Control(["modulation"], "attention", 2),
            Noise(dropout=0.5), Sampling(2, guidance=(3.0, 3.0)),
        )  # fmt: skip
        made.plan = Plan(adamw(lr=1e-2))
        return made

    root, (whole, parts) = clips[0], (tmp_path / "whole", tmp_path / "parts")
    whole.mkdir(), parts.mkdir()
    trainer(whole, 3, limit_val_batches=1, val_check_interval=3).fit(fresh(), data(root, **CLIPS))
    trainer(parts, 2).fit(fresh(), data(root, **CLIPS))
    trainer(parts, 3).fit(fresh(), data(root, **CLIPS), ckpt_path=str(parts / "last.ckpt"), weights_only=True)
    one, other = (torch.load(each / "last.ckpt", weights_only=True) for each in (whole, parts))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert all(one["state_dict"][f"injections.0.transformer_blocks.{n}.project.weight"].any() for n in range(2))
    pipe = MotionControlPipeline.from_checkpoint(whole / "last.ckpt")
    image = np.random.default_rng(0).integers(0, 255, (70, 200, 3), np.uint8)
    strokes = [[[(99, 9), end]] for end in ((120, 9), (99, 60), (120, 9))]
    found = [pipe(image, stroke, output_type="latent").frames for stroke in strokes]
    assert found[0].shape == (1, 3, 4, 8, 8) and found[0].isfinite().all()
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    with pytest.raises(UserError, match="frames is 16, expected 9: this base takes clips of 9 x 64 x 64 alone"):
        pipe(image, strokes[0], num_frames=16)
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"traj_key_points": [[[99, 9], [120, 9]]]}))
    command = ["generate", whole / "last.ckpt", tmp_path / "a.png", "--tracks", tmp_path / "a.json"]
    assert remoco(*command, "--out", tmp_path / "a.mp4") == 0 and (tmp_path / "a.mp4").is_file()
    assert remoco(*command, "--out", tmp_path / "b.mp4", "--height", 80, "--width", 64) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "height is 80, expected 64: this base takes clips of 9 x 64 x 64 alone" in error


@pytest.mark.filterwarnings("ignore:LightningCLI's args")
def test_the_recipe_has_the_authors_settings():
    words = ["fit", "--config", "configs/cogvideox_i2v.yaml", "--data", "datamodules.SpritesDataModule"]
    built = Unstarted(configs.resolved(words))
    made, shape = built.model, built.datamodule.shape
    path = "zai-org/CogVideoX-5b-I2V"
    assert made.base.arguments == {"path": path, "revision": None, "trained": False, "recompute": "all"}
    assert made.process.record()["init_args"] == {"shift": 1.0}
    assert (made.noise.mean, made.noise.std) == VPrediction().training
    assert made.sampling == Sampling(50, VPrediction.highest, (6.0, 6.0), {}, "euler")
    assert (shape.frames, shape.height, shape.width) == (49, 480, 720)
    assert made.control == Control(["modulation"], "attention", 32)
