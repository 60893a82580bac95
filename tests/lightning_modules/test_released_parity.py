"""The released network's recorded numbers, from a file in the released layout through the public functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from conditions import RegionWise
from lightning_modules.control.lora import without_lora
from lightning_modules.process.edm import edm_loss, karras_sigmas
from lightning_modules.released import Network, Released, build, load_released
from tests.support import frequencies
from tests.support.nets import OfTensors, motion_control, random_svd
from tests.support.parity import ParitySet, load_set

# float32: a hundred times what was measured (docs/fidelity.md), for CPUs order sums and fuse products differently
TOLERANCE = {torch.float64: 1e-9, torch.float32: 4e-3}


@pytest.fixture(scope="module", params=["full_topology", "wide", "tiny"])
def parity(request) -> ParitySet:
    shared = request.getfixturevalue("shared") if request.param == "tiny" else None
    return load_set(request.param, shared)


@pytest.fixture(scope="module")
def released_file(parity, tmp_path_factory) -> Path:
    return parity.write(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def released(released_file) -> Released:
    return load_released(released_file)


def through_the_module(path: Path, released: Released) -> Network:
    """What `start: {kind: motionpro}` builds; of VAE and image encoder the sets hold none: tiny ones lie beside."""
    sizes = released.architecture
    folder = path.parent / "svd"
    others = random_svd("tiny")
    others.vae.save_pretrained(folder / "vae")
    config = others.image_encoder.config
    config.projection_dim = sizes.cross_attention_dim
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    module = motion_control(
        RegionWise(visibility_rule="block", motion_norm="squared"),
        path=folder,
        start=("motionpro", path),
        lora=sizes.lora,
        rank=sizes.lora_rank,
    )
    module.configure_model()
    return Network(module.base.unet, module.motion_encoder, module.injections[0], module.denoiser)


@pytest.fixture(
    scope="module",
    params=[
        (torch.float64, "functions"),
        (torch.float32, "functions"),
        (torch.float64, "module"),
        (torch.float32, "module"),
    ],
    ids=["float64-functions", "float32-functions", "float64-module", "float32-module"],
)
def network(request, released, released_file) -> Network:
    dtype, way = request.param
    network = build(released, dtype) if way == "functions" else through_the_module(released_file, released)
    frequencies.apply(network.unet)
    for part in network.parts().values():
        part.to(dtype)
    return network


class Case:
    """Inputs in the network's dtype, and comparison with an output."""

    def __init__(self, parity: ParitySet, network: Network):
        self.io, self.network, self.dtype = parity.io, network, network.unet.dtype

    def inp(self, name: str) -> torch.Tensor:
        return self.io[f"in.{name}"].to(self.dtype)

    def predict(self, context: str = "context", keep: torch.Tensor | None = None) -> torch.Tensor:
        c_noise = 0.25 * self.inp("sigma_unet").log()
        inputs = c_noise, self.inp("concat"), self.inp(context), self.inp("ids")
        return OfTensors(self.network.denoiser).network(self.inp("x"), *inputs, keep)

    def check(self, ours: torch.Tensor, name: str, tolerance: float | None = None) -> None:
        recorded = self.io[f"out.{name}"]
        assert ours.shape == recorded.shape
        error = (ours.double() - recorded.double()).abs().max().item()
        assert error < (tolerance or TOLERANCE[self.dtype]), f"{name}: differs by {error}"


@pytest.fixture
def case(parity, network):
    with torch.no_grad():
        case = Case(parity, network)
        network.injection.set(network.motion_encoder(case.inp("flow")))
        yield case


def test_vector_conditioning(case):
    embedding = case.network.unet.add_time_proj(case.inp("ids").flatten()).reshape(len(case.inp("ids")), -1)
    case.check(embedding, "vector")


def test_unet(case):
    case.check(case.predict(), "unet.full")


def test_two_token_context(case):
    case.check(case.predict("context2"), "unet.two_token_context")


def test_without_lora(case):
    with without_lora(case.network.unet):
        case.check(case.predict(), "unet.no_lora")
    case.check(case.predict(), "unet.full")


def test_without_modulation(case):
    case.network.injection.set(None)
    case.check(case.predict(), "unet.no_modulation")
    with without_lora(case.network.unet):
        case.check(case.predict(), "unet.base")


def test_zero_flow(case):
    case.network.injection.set(case.network.motion_encoder(torch.zeros_like(case.inp("flow"))))
    case.check(case.predict(), "unet.zero_flow")


def test_one_conditioning_dropped(case):
    keep = torch.ones(len(case.inp("ids")), 5, dtype=torch.bool)
    keep[:, 2] = False
    case.check(case.predict(keep=keep), "unet.drop_motion_bucket_emb")


def test_motion_features_and_modulation(case):
    if "out.motion_feat.1" not in case.io:
        pytest.skip("the set has no motion features")
    features = case.network.motion_encoder(case.inp("flow"))
    # stored in float32
    tolerance = max(1e-6, TOLERANCE[case.dtype])
    case.check(features[0].flatten(0, 1)[:, ::4], "motion_feat.0.ch_step4", tolerance)
    for scale in (1, 2, 3):
        case.check(features[scale].flatten(0, 1), f"motion_feat.{scale}", tolerance)
    case.network.injection.prepare(features)
    for index, (gamma, beta) in enumerate(case.network.injection.coefficients()):
        place = f"{'down' if index < 4 else 'up'}.{index % 4}.ch_step8"
        case.check(gamma[:, ::8], f"gamma.{place}", tolerance)
        case.check(beta[:, ::8], f"beta.{place}", tolerance)
    case.check(case.predict(), "unet.full")


def test_denoised_and_loss(case):
    sigma = torch.exp(0.7 + 1.6 * case.inp("sigma_n"))
    case.check(sigma, "edm.sigma")
    clean = case.inp("z0")
    noisy = clean + sigma.view(-1, 1, 1, 1, 1) * case.inp("noise")
    denoised = OfTensors(case.network.denoiser)(noisy, sigma, case.inp("concat"), case.inp("context"), case.inp("ids"))
    case.check(denoised, "edm.denoised")
    loss = edm_loss(denoised, clean, sigma)
    case.check(loss, "edm.loss_per_frame")
    case.check(loss.mean().reshape(1), "edm.loss")


def test_five_step_sampler(case):
    case.network.injection.prepare(case.network.motion_encoder(case.inp("flow")))
    inputs = case.inp("init_noise"), case.inp("concat"), case.inp("context"), case.inp("ids")
    case.check(karras_sigmas(5, dtype=case.dtype), "sampler.sigmas", 2e-4)  # recorded in float32; 700 has a ulp of 6e-5
    case.check(OfTensors(case.network.denoiser).sample(*inputs, steps=5), "sampler.final_sigmas64")
    if case.dtype == torch.float64:
        # recorded with sigmas and coefficients in float32
        recorded = case.io["out.sampler.sigmas"].to(case.dtype)
        case.check(OfTensors(case.network.denoiser).sample(*inputs, sigmas=recorded), "sampler.final", 1e-5)


def test_gradients_against_finite_differences(released, parity):
    """d loss / d weight along a random direction, for one tensor of every trained part."""
    network = build(released, torch.float64)
    frequencies.apply(network.unet)
    case = Case(parity, network)
    sigma, clean = case.inp("sigma_edm"), case.inp("z0")
    noisy = clean + sigma.view(-1, 1, 1, 1, 1) * case.inp("noise")

    def loss() -> torch.Tensor:
        network.injection.set(network.motion_encoder(case.inp("flow")))
        denoised = OfTensors(network.denoiser)(noisy, sigma, case.inp("concat"), case.inp("context2"), case.inp("ids"))
        return edm_loss(denoised, clean, sigma).mean()

    unet = dict(network.unet.named_parameters())
    transformer = "down_blocks.1.attentions.0"
    weights = [
        unet[f"{transformer}.transformer_blocks.0.attn2.to_k.lora_A.default.weight"],
        unet[f"{transformer}.temporal_transformer_blocks.0.attn2.to_q.lora_B.default.weight"],
        unet["time_embedding.linear_1.lora_B.default.weight"],
        network.motion_encoder.stem.convs[0].spatial.weight,
        network.injection.up[1].gamma.temporal.weight,
        network.injection.down[0].norm.weight,
    ]
    gradients = torch.autograd.grad(loss(), weights)
    generator, step = torch.Generator().manual_seed(0), 1e-6
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients):
            direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(direction, alpha=step)
            above = loss()
            weight.sub_(direction, alpha=2 * step)
            below = loss()
            weight.add_(direction, alpha=step)
            assert gradient.abs().max() > 0
            torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-5, atol=1e-8)
