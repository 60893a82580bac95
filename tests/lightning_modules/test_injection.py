"""Motion encoder and the three injections on a stock UNet."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.bases.places import Place
from lightning_modules.bases.svd.blocks import set_recomputed
from lightning_modules.control.injection import Injection, Modulation
from lightning_modules.control.motion_encoder import MotionEncoder
from lightning_modules.layers import TemporalConv
from lightning_modules.process.base import randn
from tests.support.modules import inputs
from tests.support.nets import OfTensors, attached, random_svd, with_lora

KINDS = ("modulation", "concat", "add")


@pytest.fixture
def svd():
    return random_svd("tiny", latents="space_to_depth", dtype=torch.float32)


@pytest.fixture
def encoder(svd):
    return MotionEncoder(svd.unet.config.block_out_channels)


def control(batch: int = 2, frames: int = 3, size: int = 64) -> torch.Tensor:
    return 10 * randn(list(range(batch)), (frames, 3, size, size))


def wake(injection: Injection) -> None:
    """Give the zero-initialised weights some value."""
    for i, p in enumerate(injection.parameters()):
        p.data.add_(0.05 * randn([i], p.shape)[0])


def test_features_have_the_unets_scales(svd, encoder):
    features = encoder(control(2, 5, 64))
    widths = svd.unet.config.block_out_channels
    assert [tuple(f.shape) for f in features] == [(2, 5, c, size, size) for c, size in zip(widths, (8, 4, 2, 1))]
    odd = [f.shape[-2:] for f in encoder(10 * randn([0], (2, 3, 72, 40)))]
    assert [tuple(size) for size in odd] == [(9, 5), (5, 3), (3, 2), (2, 1)]


def test_features_of_a_clip_do_not_depend_on_its_batch(encoder):
    both = encoder.double()(control(2))
    for b in (0, 1):
        for one, two in zip(encoder(control(2)[b : b + 1]), both):
            torch.testing.assert_close(one[0], two[b], atol=1e-9, rtol=1e-9)


@pytest.fixture
def norm():
    return MotionEncoder((32, 64)).stages[0].norm


def test_encoder_group_norm_is_float32_in_a_bfloat16_encoder(norm):
    x = 300 + randn([0], (2, 32, 4, 4))[0].bfloat16()
    exact = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    # the error is that of rounding the result, half a unit of bfloat16
    torch.testing.assert_close(copy.deepcopy(norm).bfloat16()(x).double(), exact, rtol=1.01 * 2**-8, atol=1e-5)


def test_encoder_group_norm_is_exact_on_an_almost_constant_map(norm):
    """A control is zero almost everywhere; torch's own float32 GroupNorm is off by 5e-5 here."""
    x = 5 + 1e-6 * randn([0], (2, 32, 16, 16))[0]
    exact = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    assert (norm(x) - exact).abs().max() < 1e-6


def test_a_bfloat16_encoder_gives_bfloat16_features(encoder):
    assert [f.dtype for f in encoder.bfloat16()(control())] == [torch.bfloat16] * 4


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_temporal_conv_is_conv1d_with_replicate_padding(frames):
    ours = TemporalConv(6, 4).double()
    reference = torch.nn.Conv1d(6, 4, 3, padding=1, padding_mode="replicate").double()
    reference.load_state_dict(ours.state_dict())
    x = randn([0, 1], (frames, 6, 2, 3)).double()
    pixels = x.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B*h*w, C, L)
    expected = reference(pixels).unflatten(0, (2, 2, 3)).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(ours(x.flatten(0, 1), frames), expected.flatten(0, 1))


def test_too_narrow_an_encoder_is_refused():
    with pytest.raises(ValueError, match=r"channels \(24, 64\)"):
        MotionEncoder((24, 64))


def test_unknown_kind_is_refused(svd):
    with pytest.raises(ValueError, match="'film', expected one of modulation, concat, add"):
        attached(svd.unet, "film")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast"])
def test_step_0_is_the_bare_unet_bit_for_bit(kind, mode):
    svd = random_svd("tiny", dtype=torch.float32 if mode == "float32" else torch.bfloat16)
    denoiser, x = OfTensors(svd), inputs(svd)
    encoder = MotionEncoder(svd.unet.config.block_out_channels)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast")
    with torch.no_grad(), autocast:
        bare = denoiser(*x)
        injection = attached(svd.unet, kind)
        for give in (injection.set, injection.prepare):
            give(encoder(control()))
            assert torch.equal(denoiser(*x), bare)
    wake(injection)  # outside: autocast keeps the casts of the weights it saw
    with torch.no_grad(), autocast:
        injection.set(encoder(control()))
        assert not torch.equal(denoiser(*x), bare)
        injection.set(None)
        assert torch.equal(denoiser(*x), bare)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_weights_keep_awkward_values(svd, kind, dtype):
    """Zeros, subnormals and the largest numbers pass; a constant h has zero variance and must not make NaN."""
    injection = Injection(kind, [Place("down.0", torch.nn.Identity(), 32, 0)], [32])
    awkward = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 1.0, -1.0]).to(dtype)
    injection.set([randn([0], (2, 32, 4, 4))])
    for h in (awkward[torch.arange(2 * 32 * 16).view(2, 32, 4, 4) % 8], torch.full((2, 32, 4, 4), 5.0, dtype=dtype)):
        h = h.clamp(-1e18, 1e18)  # GroupNorm squares: beyond it float32 overflows in the bare UNet as well
        out = injection.inject(injection.down[0], 0, h)
        assert out.dtype == dtype and torch.equal(out, h)


def test_modulation_is_equation_8():
    place = Modulation(32, 64).double()
    for i, p in enumerate(place.parameters()):
        p.data = 0.2 * randn([i], p.shape)[0].double()
    h, feature = randn([0], (6, 64, 4, 4))[0].double(), randn([0, 1], (3, 32, 4, 4)).double()

    def stack(which: str) -> torch.Tensor:
        s = getattr(place, which)
        x = F.conv2d(feature.flatten(0, 1), s.spatial.weight, s.spatial.bias, padding=1)
        x = x.view(2, 3, 16, 16).permute(0, 3, 2, 1).flatten(0, 1)  # (B*h*w, C/4, L)
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
        return (
            F.conv1d(x, s.temporal.weight, s.temporal.bias).view(2, 16, 64, 3).permute(0, 3, 2, 1).reshape(6, 64, 4, 4)
        )

    norm = F.group_norm(h, 32, place.norm.weight, place.norm.bias, 1e-5)
    torch.testing.assert_close(place(h, *place.coefficients(feature)), h + norm * stack("gamma") + stack("beta"))


@pytest.mark.parametrize("kind", ["concat", "add"])
def test_variants_are_the_projection_they_claim(kind):
    injection = Injection(kind, [Place("down.0", torch.nn.Identity(), 32, 0)], [64]).double()
    wake(injection)
    h, feature = randn([0], (6, 32, 4, 4))[0].double(), randn([0, 1], (3, 64, 4, 4)).double()
    place = injection.down[0]
    injection.set([feature])
    flat = feature.flatten(0, 1)
    joined = torch.cat([h, flat], dim=1) if kind == "concat" else flat
    torch.testing.assert_close(injection.inject(place, 0, h), h + place.project(joined))


def test_places_are_the_first_res_block_of_every_level(svd):
    hooked = {
        name
        for name, module in svd.unet.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module._forward_hooks
    }
    assert not hooked
    names = set(svd.unet.state_dict())
    attached(svd.unet, "modulation")
    hooked = {name for name, module in svd.unet.named_modules() if module._forward_hooks} - {"add_time_proj"}
    levels = [f"{side}_blocks.{i}.resnets.0.spatial_res_block.conv1" for side in ("down", "up") for i in range(4)]
    assert hooked == set(levels)
    assert set(svd.unet.state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_controls_are_shared_by_the_branches_of_guidance(svd, encoder, kind):
    # float64: a random tiny network amplifies the rounding of a larger batch
    denoiser, x = OfTensors(torch.nn.Module.double(svd.unet)), tuple(part.double() for part in inputs(svd))
    injection = attached(svd.unet, kind).double()
    wake(injection)
    with torch.no_grad():
        features = encoder.double()(control().double())
        injection.set(features)
        once = denoiser(*x)
        twice = denoiser(*(torch.cat([part, part]) for part in x))
        injection.prepare(features)
        assert torch.equal(denoiser(*x), once)
        torch.testing.assert_close(twice, torch.cat([once, once]), atol=1e-9, rtol=1e-9)
        calls = []
        injection.down[0].register_forward_hook(lambda *args: calls.append(0))
        encoded = []
        for place in injection.down:
            for child in place.children():
                if kind == "modulation" and hasattr(child, "spatial"):
                    child.register_forward_hook(lambda *args: encoded.append(0))
        denoiser.sample(x[0], *x[2:], steps=3)
        assert len(calls) == 3 and not encoded  # 3 steps of one doubled batch; gamma and beta are not computed again


def test_features_swapped_before_backward_change_the_gradient(svd, encoder):
    """What `set` warns of: under checkpointing the hooks run again in the backward pass, with what is set then."""
    injection = attached(svd.unet, "modulation")
    wake(injection)
    set_recomputed(svd.unet)
    denoiser, x = OfTensors(svd), inputs(svd)
    weight = injection.down[1].gamma.temporal.weight

    def gradient(swap: bool) -> torch.Tensor:
        injection.set(encoder(control()))
        loss = denoiser(*x).square().mean()
        if swap:
            injection.set([feature.flip(0) for feature in encoder(control())])
        return torch.autograd.grad(loss, weight)[0]

    right = gradient(swap=False)
    assert torch.equal(gradient(swap=False), right)
    assert not torch.allclose(gradient(swap=True), right)


def test_two_backward_passes_accumulate_as_one_batch(svd, encoder):
    injection = attached(svd.unet, "modulation")
    wake(injection)
    set_recomputed(svd.unet)
    for module in (svd.unet, encoder, injection):
        torch.nn.Module.double(module)
    denoiser, x = OfTensors(svd), [part.double() for part in inputs(svd)]

    def backward(rows: slice) -> None:
        injection.set(encoder(control().double()[rows]))
        denoiser(*(part[rows] for part in x)).square().sum().backward()

    backward(slice(0, 2))
    whole = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    backward(slice(0, 1))
    backward(slice(1, 2))
    for one, p in zip(whole, encoder.parameters()):
        # a bias in front of GroupNorm has no gradient but rounding
        torch.testing.assert_close(p.grad, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dynamo_traces_the_controlled_unet_whole_and_once(svd, encoder):
    """No graph break with hooks, LoRA, dropout and checkpointing; other features do not recompile."""
    with_lora(svd.unet, "attention", rank=2)
    injection = attached(svd.unet, "modulation")
    wake(injection)
    set_recomputed(svd.unet)
    denoiser, x = OfTensors(svd), inputs(svd)
    keep = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]]).bool()
    weight = injection.up[2].gamma.temporal.weight

    def gradient(scale: float) -> torch.Tensor:
        injection.set(encoder(scale * control()))
        return torch.autograd.grad(denoiser(*x, keep).square().mean(), weight)[0]

    expected = [gradient(scale) for scale in (1.0, 0.5)]
    torch._dynamo.reset()
    denoiser.denoiser.base.network.unet = torch.compile(svd.unet, backend="eager", fullgraph=True)
    assert torch.equal(gradient(1.0), expected[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(gradient(0.5), expected[1])
