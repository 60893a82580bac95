"""SG-I2V: the original's numbers on a tiny base, its boxes, weights and filter in closed form, a folder of SVD."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from lightning_modules.systems.controlled import Settings
from lightning_modules.systems.sgi2v import SGI2V, Optimisation, box_loss, gaussian, grid_box, mixed
from remoco.common.errors import UserError
from tests.support.places import REPO
from tests.support.systems import compared, recorded_set, sgi2v
from tests.support.systems.files import drawing, svd_folder

SMALL = Settings(size=(64, 128), frames=3, steps=2)


@pytest.fixture(scope="module")
def recorded():
    return recorded_set(REPO / "tests" / "fixtures" / "sgi2v" / "pipeline.json")


@torch.no_grad()
def test_recorded_outputs_of_the_original(recorded):
    found = list(compared(recorded, sgi2v))
    assert not [each for each in found if not each.well]
    assert [each.name for each in found if each.reason] == ["pipeline/in.image"]


@torch.no_grad()
def test_recomputed_activations_give_the_same_latents(recorded):
    svd = sgi2v.sampler(recorded)
    cond = svd.frame_conditioning(recorded.input("in.image").numpy(), recorded.input("in.augmentation_noise"))
    x, sigma = recorded.input("in.noise") * 16, torch.tensor(15.0)
    svd.step_number, saved = 0, {}

    def count(how: str) -> torch.Tensor:
        saved[how] = 0

        def pack(tensor):
            saved[how] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return svd.optimised(x, sigma, cond)

    kept = count("kept")
    svd.unet.enable_gradient_checkpointing()
    recomputed = count("recomputed")
    assert torch.allclose(kept, recomputed, atol=1e-9) and not torch.allclose(kept, x, atol=0.1)
    assert saved["recomputed"] < saved["kept"]
    svd.boxes = svd.boxes[:0]
    assert torch.equal(svd.before_step(1, x, sigma, cond), x)  # nothing to move


def test_boxes_lie_in_whole_latents():
    assert grid_box(np.array([8.0, 17.0, 39.9, 57.0])) == (1, 2, 4, 7)
    assert grid_box(np.array([8.0, 16.0, 9.0, 17.0])) == (1, 2, 2, 3)  # one at least
    assert grid_box(np.array([-9.0, 0.0, 7.0, 8.0])) == (-2, 0, 0, 1)


def test_a_box_keeps_its_content_and_counts_by_its_gaussian():
    features = torch.zeros(3, 1, 8, 8).double()
    features[0, 0, 2:4, 2:4] = 1
    features[1, 0, 2:4, 4:6] = 1  # moved with its box
    boxes = np.array([[[16, 16, 32, 32], [16, 32, 32, 48], [16, 56, 32, 72]]], np.float32)
    loss = box_loss(features, boxes, 0.4)
    assert loss.item() == pytest.approx(0.5 / 1.5 * 2 / 2, abs=1e-6)  # of four values half are beyond the border
    assert box_loss(features, np.array([[[16, 16, 32, 32], [90, 0, 106, 16], [0, 90, 16, 106]]]), 0.4) is None
    weight = gaussian(3, 5, 0.4)
    assert weight.shape == (3, 5) and weight[1, 2] == 1 and torch.equal(weight, weight.flip(0, 1))
    assert weight[0, 2].item() == pytest.approx(math.exp(-((1 / 0.6) ** 2) / 2))


def test_low_frequencies_are_one_latents_and_high_ones_the_others():
    y, x = torch.meshgrid(torch.arange(16.0).double(), torch.arange(32.0).double(), indexing="ij")
    slow, fast = torch.cos(2 * math.pi * x / 32), torch.cos(math.pi * (x + y))
    one, other = torch.stack([slow, fast]), torch.zeros(2, 16, 32).double()
    found = mixed(one, other, 0.5)
    assert torch.allclose(found[0], slow, atol=1e-6) and found[1].abs().max() < 1e-3
    assert torch.allclose(found + mixed(other, one, 0.5), one, atol=1e-12)


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    how = Optimisation(first=1, last=1, iterations=1)
    return SGI2V.load(str(wide_base(tmp_path_factory.mktemp("svd"))), SMALL, how)


def wide_base(folder, frames=14):
    """The tiny base has one attention fewer in each up block than SVD, of whose second and third this system reads."""
    return svd_folder(folder, frames, layers_per_block=2)


def test_a_base_samples_the_drawing(system):
    boxes = system.control(drawing())
    assert boxes.shape == (2, 3, 4)
    # the brush at 64 x 128, rows 16 to 36 and columns 13.3 to 53.3: the pixels whose centres it covers
    assert boxes[0, 0].tolist() == [16, 13, 36, 53]
    half = 96 * 64 / 576 / 2
    assert (boxes[1, 0][2:] - boxes[1, 0][:2]).tolist() == pytest.approx([2 * half, 2 * half], abs=1e-3)
    moved = boxes[0, 2] - boxes[0, 0]
    assert moved.tolist() == pytest.approx([8, 40, 8, 40], abs=1)
    state = torch.random.get_rng_state()
    frames = system(drawing(), 5)
    assert frames.shape == (3, 3, 64, 128) and frames.isfinite().all() and torch.equal(frames, system(drawing(), 5))
    assert not torch.equal(frames, system(drawing(tracks=1), 5))
    assert torch.equal(state, torch.random.get_rng_state()) and "SG-I2V: 64 x 128" in system.protocol


def test_another_base_and_no_track_are_one_line(tmp_path, system):
    with pytest.raises(UserError, match=r"for 25 frames \(SVD-XT\), SG-I2V needs one for 14"):
        SGI2V.load(str(wide_base(tmp_path, 25)), SMALL)
    with pytest.raises(UserError, match="at least one track"):
        system.control(dataclasses.replace(drawing(), tracks=[]))
