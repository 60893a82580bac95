"""Control into the tokens of Wan: folded features, what a place adds, the zero start, gradients, training, samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.control.injection import Modulation
from lightning_modules.control.motion_encoder import Fold, MotionEncoder
from lightning_modules.control.tokens import KINDS, TokenInjection
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process import FlowMatching
from remoco import configs
from remoco.common.errors import UserError
from remoco.training import Unstarted
from tests.support import wan
from tests.support.modules import data, draw, perturb, trainer
from tests.support.same import same

SIZES = {"tiny_i2v": (32, 48), "tiny_ti2v": (64, 96)}


class Mine(Modulation):
    """An injection of one's own, for feature maps."""


def module(size="tiny_i2v", kinds=("modulation",), dtype=torch.float64, lora="attention", **base):
    made = MotionControlModule(
        RandomWan(size, 3, **base), RegionWise(min_mask_ratio=0.5), Control([*kinds], lora, 2), Noise(dropout=0)
    )
    made.configure_model(dtype)
    if dtype == torch.float64:
        made.double()  # what is trained is float32 otherwise
    return made


def asked(net, batch=2):
    """Noisy latents, time and conditioning of clips of 9 frames, with a control."""
    height, width = SIZES[net.base.size]
    frame = draw(batch, 3, height, width, seed=1).tanh()
    cond = net.base.condition({"first_frame": frame, "frames": 9}, {}, None)
    control = 5 * draw(batch, 9, 3, height, width, seed=2)
    x = draw(batch, 3, 4, *net.base.grid.size(height, width), seed=3)
    return x, torch.tensor([900.0, 30.0], dtype=torch.float64)[:batch], cond, control


def test_frames_are_folded_as_a_causal_autoencoder_groups_them():
    """Equal to a strided convolution over frames, the first one repeated three times in front; later frames unseen."""
    fold = Fold(3, 4).double()
    x = draw(2, 13, 3, 2, 5).requires_grad_()
    y = fold(x)
    assert y.shape == (2, 4, 3, 2, 5)
    padded = torch.cat([x[:, :1]] * 3 + [x], 1).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B h w, C, L + 3)
    weight = fold.conv.weight.view(3, 4, 3).transpose(1, 2)
    wanted = F.conv1d(padded, weight, fold.conv.bias, stride=4).unflatten(0, (2, 2, 5)).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    for latent, frames in enumerate(([0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])):
        (grad,) = torch.autograd.grad(y[:, latent].sum(), x, retain_graph=True)
        assert grad.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist() == frames
    with pytest.raises(UserError, match="12 frames, expected 1 plus a multiple of 4"):
        fold(x[:, :12])


def test_an_encoder_that_folds_draws_the_same_weights_before():
    plain, folding = MotionEncoder((32, 64), seed=4), MotionEncoder((32, 64), seed=4, times=(1, 4))
    weights = plain.state_dict()
    assert same(weights, {name: folding.state_dict()[name] for name in weights})
    assert folding.state_dict().keys() - weights.keys() == {"folds.1.conv.weight", "folds.1.conv.bias"}


@pytest.mark.parametrize("size", SIZES)
def test_features_stand_where_the_tokens_do(size):
    """A feature of one frame and place changes the one token there, in the order of the network's patches."""
    net = module(size)
    x, time, cond, control = asked(net)
    features = net.motion_encoder(control)
    attention, seen = net.base.transformer.blocks[0].attn1, []
    hook = attention.to_q.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    level = net.base.places()[0].level
    rows, columns = (side // net.base.grid.step for side in SIZES[size])
    assert features[level].shape[1:2] + features[level].shape[3:] == (3, rows, columns)
    perturb(net)
    one = torch.zeros_like(features[level])
    one[0, 1, :, 1, 2] = 1
    nn.init.zeros_(net.injections[0]._weights[0].project.bias)
    for feature in (torch.zeros_like(one), one):
        net.injections[0].set([feature] * (level + 1))
        with torch.no_grad():
            net.base.predict(x, time, cond)
    hook.remove()
    changed = (seen[0] - seen[1]).abs().sum(-1).nonzero().tolist()
    assert changed == [[0, (rows + 1) * columns + 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_place_adds(kind):
    x, feature = draw(4, 6, 8), draw(2, 6, 5, seed=1)  # two branches of two clips
    place = KINDS[kind](5, 8).double()
    assert torch.equal(place(x, feature), x)
    place.project.weight.data = draw(*place.project.weight.shape, seed=2)
    place.project.bias.data = draw(*place.project.bias.shape, seed=3)
    weight, bias, both = place.project.weight, place.project.bias, torch.cat([feature, feature])
    if kind == "modulation":
        out = both @ weight.T + bias
        normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        wanted = x + normal * out[..., :8] + out[..., 8:]
    else:
        wanted = x + (torch.cat([x, both], -1) if kind == "concat" else both) @ weight.T + bias
    torch.testing.assert_close(place(x, feature), wanted, rtol=0, atol=1e-12)
    half = place(x.bfloat16(), feature.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), wanted, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kinds", [("modulation",), ("concat", "add")])
def test_from_the_bare_networks_bits_to_a_gradient_for_everything(size, kinds):
    """At the start it is the bare network, to the bit; then all that is trained has a gradient, also recomputed."""
    bare = RandomWan(size, 3).build(torch.float64)
    found = []
    for recompute in ("none", "all"):
        net = module(size, kinds, recompute=recompute)
        x, time, cond, control = asked(net)
        with torch.no_grad():
            plain = bare.predict(x, time, cond)
            net.steer(cond.__class__(cond.parts, control))
            assert torch.equal(net.base.predict(x, time, cond), plain)
            perturb(net)
            net.release()
        net.steer(cond.__class__(cond.parts, control))
        out = net.base.predict(x, time, cond)
        assert not torch.allclose(out[:, 1:], plain[:, 1:], atol=1e-4)
        out.square().mean().backward()
        found.append((out.detach(), {name: p.grad for name, p in net.optimized().items()}))
        assert [name for name, grad in found[-1][1].items() if grad is None or not grad.any()] == []
        # two branches of guidance over one clip's features
        with wan.lifted(), torch.no_grad():
            one = net.base.predict(x, time, cond)
            twice = net.base.predict(torch.cat([x, x]), torch.cat([time, time]), cond.followed_by(cond))
        torch.testing.assert_close(twice, torch.cat([one, one]), rtol=0, atol=1e-9)
    assert torch.equal(found[0][0], found[1][0]) and same(found[0][1], found[1][1])


def test_compiled_by_blocks_with_places_it_computes_the_same():
    outs = []
    for compiled in (False, True):
        net = perturb(module(dtype=torch.float32, lora=None))
        if compiled:
            net.base.compile(backend="eager")
        x, time, cond, control = asked(net)
        cond = net.base.condition({"first_frame": draw(2, 3, 32, 48, seed=1).tanh().float(), "frames": 9}, {}, None)
        with torch.no_grad():
            net.steer(cond.__class__(cond.parts, control.float()))
            outs.append(net.base.predict(x.float(), time.float(), cond))
    assert torch.equal(*outs)


def test_an_injection_for_maps_is_refused_in_one_line():
    net = MotionControlModule(RandomWan(), RegionWise(), Control([f"{__name__}.Mine"], None))
    with pytest.raises(UserError, match="Mine is for feature maps, this base has tokens; expected modulation") as error:
        net.configure_model()
    assert "\n" not in str(error.value)


def test_it_trains_resumes_and_follows_what_is_drawn(tmp_path):
    """A resume has the same bits, and another stroke gives another clip."""

    def fresh():
        made = MotionControlModule(
            RandomWan("tiny_i2v", 3), RegionWise(min_mask_ratio=0.5), Control(["modulation"], "attention", 2),
            Noise(dropout=0.5), Sampling(2, guidance=(3.0, 3.0)),
        )  # fmt: skip
        made.plan = Plan(adamw(lr=1e-2))
        return made

    options = {"frames": 5, "clips": 4, "val_clips": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    trainer(whole, 4).fit(fresh(), data(tmp_path, **options))
    trainer(parts, 2).fit(fresh(), data(tmp_path, **options))
    trainer(parts, 4).fit(fresh(), data(tmp_path, **options), ckpt_path=str(parts / "last.ckpt"), weights_only=True)
    one, other = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, parts))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert all(one["state_dict"][f"injections.0.blocks.{n}.project.weight"].any() for n in range(2))
    pipe = MotionControlPipeline.from_checkpoint(whole / "last.ckpt")
    assert isinstance(pipe.module.injections[0], TokenInjection)
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    call = {"height": 32, "width": 48, "output_type": "latent"}
    clips = [pipe(image, [[(9, 9), end]], **call).frames for end in ((40, 9), (9, 30), (40, 9))]
    assert torch.equal(clips[0], clips[2]) and not torch.equal(clips[0], clips[1])


def test_in_bfloat16_it_is_near_float32_and_trains(tmp_path):
    """The frozen network in bfloat16, what is trained in float32."""
    outs, frame = [], draw(2, 3, 32, 48, seed=1).tanh().float()
    for dtype in (torch.float32, torch.bfloat16):
        net = module(dtype=dtype, lora="linear")
        assert {p.dtype for p in net.optimized().values()} == {torch.float32}
        perturb(net)
        x, time, _, control = asked(module())
        with torch.no_grad(), net.autocast():
            cond = net.base.condition({"first_frame": frame, "frames": 9}, {}, None)
            cond = net.steer(cond.__class__(cond.parts, control.float()))
            outs.append(net.base.predict(x.float(), time.float(), cond).float())
    assert 0 < (outs[0] - outs[1]).norm() < 0.05 * outs[0].norm()
    net = MotionControlModule(RandomWan("tiny_ti2v", 3), RegionWise(), Control(["modulation"], "linear", 2))
    net.plan = Plan(adamw(lr=1e-2))
    clips = {"frames": 5, "clips": 4, "val_clips": 2}
    trainer(tmp_path, 2, precision="bf16-mixed").fit(net, data(tmp_path, **clips))
    assert net.base.transformer.blocks[0].attn1.to_q.base_layer.weight.dtype == torch.bfloat16
    assert net.injections[0]._weights[0].project.weight.any()


def test_places_of_every_second_block(tmp_path):
    net = MotionControlModule(RandomWan(), RegionWise(), Control(["add"], None, every=2))
    net.plan = Plan(adamw(lr=1e-2))
    trainer(tmp_path, 1).fit(net, data(tmp_path, frames=5, clips=4, val_clips=2))
    assert [name for name in net.trained() if "injections" in name] == [
        f"injections.0.blocks.0.project.{part}" for part in ("weight", "bias")
    ]
    pipe = MotionControlPipeline.from_checkpoint(tmp_path / "last.ckpt")
    assert pipe.module.control.every == 2 and len(pipe.module.injections[0]._weights) == 1
    with pytest.raises(UserError, match="control.every is 0, expected"):
        Control(every=0)


@pytest.mark.parametrize(
    "name, path, expert, shift, steps, guidance, clip",
    [
        ("wan_i2v", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", None, 3.0, 40, (5.0, None), (81, 480, 832)),
        ("wan_ti2v", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", None, 5.0, 50, (5.0, None), (121, 704, 1280)),
        ("wan_a14b_high", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "high", 3.0, 40, (3.5, 3.5), (81, 480, 832)),
        ("wan_a14b_low", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "low", 3.0, 40, (3.5, 3.5), (81, 480, 832)),
    ],
)
@pytest.mark.filterwarnings("ignore:LightningCLI's args")
def test_the_recipes_have_the_authors_settings(name, path, expert, shift, steps, guidance, clip):
    words = ["fit", "--config", f"configs/{name}.yaml", "--data", "datamodules.SpritesDataModule"]  # shards are yours
    built = Unstarted(configs.resolved(words))
    net, shape = built.model, built.datamodule.shape
    said = {"path": path, "revision": None, "trained": False, "recompute": "all", "expert": expert}
    assert net.base.arguments == said
    assert net.process.record()["init_args"] == {"shift": shift, "weight": "uniform", "low": 0.0, "high": 1.0}
    assert (net.noise.mean, net.noise.std) == (math.log(shift), 1.0)
    first, second = (None if scale is None else (scale, scale) for scale in guidance)
    assert net.sampling == Sampling(steps, FlowMatching.highest, first, {}, "unipc", second)
    assert (shape.frames, shape.height, shape.width) == clip
    assert net.control == Control(["modulation"], "attention", 32)


@pytest.mark.parametrize("lora", ["attention", "linear"])
def test_its_lora_is_read_by_diffusers_own_pipeline(lora, tmp_path):
    """Under diffusers' names; their network then predicts what ours does without control. And ours reads it too."""
    net = perturb(module(lora=lora, kinds=()))
    pipe = MotionControlPipeline(net)
    pipe.save_lora_weights(tmp_path)
    x, time, cond, _ = asked(net)
    theirs = wan.pipeline(RandomWan("tiny_i2v", 3).build())
    theirs.load_lora_weights(tmp_path)
    found = {name for name, m in theirs.transformer.named_modules() if isinstance(m, LoraLayer)}
    assert found >= {name for name, m in net.base.transformer.named_modules() if isinstance(m, LoraLayer)}
    nn.Module.to(theirs.transformer, torch.float64)
    inputs = torch.cat([x, cond.parts["y"]], 2).transpose(1, 2)
    with wan.lifted(), torch.no_grad():
        ours = net.base.predict(x, time, cond)
        image = cond.parts["image_embedding"]
        other = theirs.transformer(inputs, time, cond.parts["text"], image, return_dict=False)[0].transpose(1, 2)
        bare = module(lora=None, kinds=())
        without = bare.base.predict(x, time, cond)
        reader = MotionControlPipeline(bare)
        reader.load_lora_weights(tmp_path)
        read = bare.base.predict(x, time, cond)
    assert (ours - without).abs().max() > 1e-3
    torch.testing.assert_close(other, ours, rtol=0, atol=1e-6)  # the file's factors are float32
    torch.testing.assert_close(read, ours, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="^save_lora_weights: the controller has no LoRA"):
        MotionControlPipeline(module(lora=None)).save_lora_weights(tmp_path / "none")
