"""Our forwards of diffusers' blocks and peft's LoRA: the same numbers, in float64, as the libraries' own."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_modules.bases import SVD
from lightning_modules.bases.svd import blocks
from lightning_modules.bases.svd.blocks import attention, compile_unet, freeze_idle, set_recomputed
from lightning_modules.bases.svd.norms import set_res_block_eps
from lightning_modules.control.lora import LoraLinear, lora_layers, merged_lora, without_lora
from lightning_modules.layers import seeded
from lightning_modules.process.base import randn
from lightning_modules.process.edm import edm_loss
from tests.support.modules import inputs
from tests.support.nets import OfTensors, attached, random_svd, with_lora

# the full topology, so 464 linear layers and 256 attention projections, at the width of a test
TOPOLOGY = dict(
    in_channels=8, out_channels=4, block_out_channels=(32, 32, 32, 32), layers_per_block=2,
    num_attention_heads=(2, 2, 2, 2), cross_attention_dim=16, addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=48,
)  # fmt: skip


def wake(unet: torch.nn.Module, size: float = 0.1) -> None:
    """LoRA away from its start, where B is zero."""
    with torch.no_grad():
        for i, (name, p) in enumerate(unet.named_parameters()):
            if ".lora_" in name:
                p.copy_(size * randn([i], p.shape)[0])


@pytest.mark.parametrize(("targets", "layers"), [("attention", 256), ("linear", 464)])
@pytest.mark.parametrize("tokens", [1, 2])
def test_outputs_and_gradients_are_diffusers_and_pefts(targets, layers, tokens):
    with seeded(0):  # of all weights there are some whose gradients cancel to less than the tolerance
        theirs = UNetSpatioTemporalConditionModel(**TOPOLOGY).requires_grad_(False)
    set_res_block_eps(theirs)
    ours = copy.deepcopy(theirs)
    blocks.use_our_blocks(ours)
    with_lora(ours, targets, rank=2)
    names = list(lora_layers(ours))
    assert len(names) == layers and all(type(layer) is LoraLinear for layer in lora_layers(ours).values())
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=2, target_modules=names), theirs)
    wake(ours)
    theirs.load_state_dict(ours.state_dict())
    idle = freeze_idle(ours) if tokens == 1 else {}
    found = []
    for unet in (ours.double(), theirs.double()):
        x = [randn([0], shape).double() for shape in ((2, 4, 8, 8), (4, 8, 8), (tokens, 16))]
        ids = torch.tensor([[8.0, 17.0, 0.02]]).double()
        sigma = torch.tensor([2.0]).double()
        out = OfTensors(unet)(x[0], sigma, x[1], x[2], ids)
        edm_loss(out, 0.5 * x[0], sigma).mean().backward()
        found.append((out.detach(), {k: p.grad for k, p in unet.named_parameters() if ".lora_" in k}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-9, rtol=1e-9)
    without = {name for name, gradient in found[0][1].items() if gradient is None}
    assert without == set(idle) and len(without) == (128 if tokens == 1 else 0)  # 32 blocks, q and k, A and B
    for name, gradient in found[1][1].items():
        if name in without:
            assert gradient.abs().max() < 1e-9, name
        else:
            torch.testing.assert_close(found[0][1][name], gradient, atol=1e-9, rtol=1e-7, msg=name)


def lora_unet(dtype: torch.dtype = torch.float32) -> SVD:
    svd = random_svd("tiny", dtype=dtype)
    with_lora(svd.unet, "linear", rank=2)
    wake(svd.unet, 0.05)
    return svd


def test_merged_for_a_while_is_the_same_network_and_comes_back_bit_for_bit():
    svd = lora_unet()
    torch.nn.Module.double(svd.unet)
    denoiser, x = OfTensors(svd), [part.double() for part in inputs(svd)]
    before = {name: value.clone() for name, value in svd.unet.state_dict().items()}
    with torch.no_grad():
        apart = denoiser(*x)
        with pytest.raises(KeyError), merged_lora(svd.unet):
            torch.testing.assert_close(denoiser(*x), apart, atol=1e-9, rtol=1e-9)
            raise KeyError("what fails inside leaves nothing merged")
        assert torch.equal(denoiser(*x), apart)
    assert all(torch.equal(value, before[name]) for name, value in svd.unet.state_dict().items())


def test_without_lora_leaves_frozen_what_was_frozen():
    svd = lora_unet()
    idle = freeze_idle(svd.unet)
    trained = {name for name, p in svd.unet.named_parameters() if p.requires_grad}
    assert idle and not trained & set(idle)
    with without_lora(svd.unet):
        pass
    assert {name for name, p in svd.unet.named_parameters() if p.requires_grad} == trained


def test_a_gated_layer_keeps_its_input_alone_and_has_autograds_bits():
    kept = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.untyped_storage().nbytes())
        return x

    ours, theirs = (randn([0], (2, 3, 16))[0].requires_grad_(True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = blocks.Gated.apply(ours)
    assert kept == [ours.nbytes]
    h, g = theirs.chunk(2, -1)
    expected = h * torch.nn.functional.gelu(g)
    assert torch.equal(out, expected)
    for each in (out, expected):
        each.backward(randn([1], out.shape)[0])
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(("levels", "again"), [("none", 0), ("top", 3), ("all", 10)])
def test_levels_that_are_recomputed_change_no_bit(levels, again):
    svd = lora_unet()
    freeze_idle(svd.unet)
    trained = [p for p in svd.unet.parameters() if p.requires_grad]
    denoiser, x, calls = OfTensors(svd), inputs(svd), []
    for name, module in svd.unet.named_modules():
        if name.endswith("temporal_transformer_blocks.0"):
            module.attn1.register_forward_hook(lambda *args: calls.append(0))

    def gradients() -> list[torch.Tensor]:
        calls.clear()
        return torch.autograd.grad(edm_loss(denoiser(*x), 0.5 * x[0], x[1]).mean(), trained)

    plain = gradients()
    assert len(calls) == 10
    set_recomputed(svd.unet, levels)
    chosen = gradients()
    assert len(calls) == 10 + again
    assert all(torch.equal(a, b) for a, b in zip(plain, chosen, strict=True))


def test_other_levels_are_refused():
    with pytest.raises(ValueError, match="'some', expected one of none, top, all"):
        set_recomputed(random_svd("tiny").unet, "some")


def test_more_sequences_than_a_kernel_takes(monkeypatch):
    q, k, v = (randn([i], (7, 2, 4, 8))[0] for i in range(3))
    whole = attention(q, k, v)
    monkeypatch.setattr(blocks, "MOST_SEQUENCES", 3)
    assert torch.equal(attention(q, k, v), whole)


def test_a_half_precision_unet_ignores_autocast():
    svd = lora_unet(torch.bfloat16)
    denoiser, x = OfTensors(svd), inputs(svd)
    with torch.no_grad():
        plain = denoiser(*x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(denoiser(*x), plain)


@pytest.mark.slow
def test_compiled_is_one_graph_and_compiled_once():
    """With the motion's hooks, LoRA, dropout of conditionings and recomputed levels, down to 1 x 1 pixels."""
    svd = lora_unet()
    injection = attached(svd.unet, "modulation")
    freeze_idle(svd.unet)
    set_recomputed(svd.unet, "top")
    denoiser, counter = OfTensors(svd), CompileCounterWithBackend("aot_eager")
    trained = [p for p in svd.unet.parameters() if p.requires_grad]
    trained += [p for p in injection.parameters() if p.requires_grad]
    for i, p in enumerate(trained):
        p.data += 0.01 * randn([i], p.shape)[0]

    def gradients(seed: int) -> list[torch.Tensor]:
        x, keep = inputs(svd), torch.arange(10).view(2, 5) != seed
        sizes = zip(svd.unet.config.block_out_channels, (8, 4, 2, 1), strict=True)
        injection.set([randn([seed, 1 + seed], (3, width, size, size)) for width, size in sizes])
        denoised = denoiser(x[0] + seed, *x[1:], keep)
        return torch.autograd.grad(edm_loss(denoised, 0.5 * x[0], x[1]).mean(), trained)

    plain = [gradients(seed) for seed in range(3)]
    compile_unet(svd.unet, counter)
    for seed in range(3):
        for one, other in zip(gradients(seed), plain[seed], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert counter.frame_count == 1
