"""Conditions from tracks: region selection, masks, classes."""

import math
import random

import cv2
import numpy as np
import pytest
import torch

import conditions
from conditions import (
    Condition,
    DenseFlow,
    DragNUWA,
    GaussianFiltered,
    Motion,
    MovingDiscs,
    RegionWise,
    average_magnitude,
    flow_to_pixels,
    global_visibility,
    motion_bucket,
    motion_mask,
    motion_of,
    uniform,
)
from conditions.gaussian import region_points
from conditions.region import candidate_regions, draw_regions, region_pixels, select_regions, spread_regions
from tests.support.arithmetic import assert_rounded

ALL = [
    RegionWise(8),
    RegionWise(7, 0.8, "block", "squared"),
    GaussianFiltered(5, 0.8, 21, 3.0),
    DragNUWA(5, 0.8, 21, 3.0),
    MovingDiscs(5, 0.8, 6, 2.4, 4.0),
    DenseFlow(),
]


def clip(batch=3, frames=4, height=48, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flow = torch.randn(batch, frames, 2, height, width, generator=generator) * 4
    visibility = torch.rand(batch, frames, height, width, generator=generator) > 0.1
    flow[:, 0], visibility[:, 0] = 0, True
    return flow, visibility, torch.arange(batch, dtype=torch.int64) + 100 * seed


# Flow and masks


def test_flow_to_pixels():
    flow = torch.randn(2, 3, 2, 8, 8) * 20
    step = torch.tensor([0.125, 0.5])
    stored = ((flow / step.view(2, 1, 1, 1, 1)).round() + 32768).to(torch.int32).to(torch.uint16)
    pixels = flow_to_pixels(stored, step)
    assert pixels.dtype == torch.float32
    assert ((pixels - flow).abs().amax((1, 2, 3, 4)) <= step / 2 + 1e-5).all()
    assert torch.equal(flow_to_pixels(stored[1], 0.5), pixels[1])
    assert torch.equal(flow_to_pixels(flow.half()), flow.half().float())
    with pytest.raises(ValueError, match="step"):
        flow_to_pixels(stored)
    with pytest.raises(ValueError, match="flow"):
        flow_to_pixels(flow.long())


def test_masks_against_their_definitions():
    flow, visibility, _ = clip()
    assert torch.equal(global_visibility(visibility), visibility.all(dim=1))
    length = torch.linalg.vector_norm(flow.double(), dim=2)
    for norm, power in (("l2", 1), ("squared", 2)):
        expected = length.pow(power).mean(1)
        assert_rounded(average_magnitude(flow, norm), expected)
        assert torch.equal(motion_mask(flow * 0.2, norm), (length * 0.2).pow(power).mean(1) > 1)
    assert_rounded(motion_bucket(flow), length.mean((1, 2, 3)))
    torch.testing.assert_close(motion_bucket(flow.half()), motion_bucket(flow), rtol=1e-3, atol=0)


# Region selection


def rejection(candidates, ratio, n, generator):
    """Draw until a candidate is kept, as the definition says."""
    out, todo = torch.zeros(n, candidates.numel(), dtype=torch.bool), torch.arange(n)
    while len(todo):
        kept = candidates & (torch.rand(len(todo), candidates.numel(), generator=generator) > ratio)
        out[todo] = kept
        todo = todo[~kept.any(1)]
    return out


@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.95, 0.999])
def test_selection_has_the_distribution_of_endless_redraws(ratio):
    n, candidates = 100_000, torch.tensor([True, False, True, True, False, True])
    numbers = uniform(torch.arange(n) + 7, 7)
    ours = select_regions(candidates.expand(n, -1), torch.full((n,), ratio), numbers[:, 1:], numbers[:, 0])
    code = (ours[:, candidates] * torch.tensor([1, 2, 4, 8])).sum(1)
    assert not ours[:, ~candidates].any() and code.min() > 0
    # All 15 non-empty subsets of the 4 candidates, against their exact probabilities ...
    sizes = torch.tensor([bin(subset).count("1") for subset in range(1, 16)])
    exact = (1 - ratio) ** sizes * ratio ** (4 - sizes) / (1 - ratio**4)
    expected, got = exact * n, torch.bincount(code, minlength=16)[1:]
    frequent = expected > 5
    chi = ((got - expected).square() / expected)[frequent].sum()
    assert chi < frequent.sum() + 5 * math.sqrt(2 * frequent.sum())
    # ... and by brute force.
    brute = rejection(candidates, ratio, 20_000, torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours.float().mean(0), brute.float().mean(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 1 - 2**-24, 1.0])
def test_selection_at_the_ends_of_the_ratio(ratio):
    n, candidates = 60_000, torch.tensor([False, True, True, False, True])
    numbers = uniform(torch.arange(n), 6)
    kept = select_regions(candidates.expand(n, -1), torch.full((n,), ratio), numbers[:, 1:], numbers[:, 0])
    if ratio < 0.5:
        assert (kept[:, candidates].float().mean(0) > 0.9999).all()
    else:  # one region, each as likely as another
        assert (kept.sum(1) == 1).all()
        torch.testing.assert_close(kept[:, candidates].float().mean(0), torch.full((3,), 1 / 3), atol=0.01, rtol=0)


def test_selection_without_candidates_is_empty():
    numbers = uniform(torch.arange(4), 9)
    for ratio in (0.0, 0.5, 1.0):
        none = torch.zeros(4, 8, dtype=torch.bool)
        assert not select_regions(none, torch.full((4,), ratio), numbers[:, 1:], numbers[:, 0]).any()


def test_mask_ratio_is_uniform_from_its_minimum():
    regions = draw_regions(torch.ones(4000, 20, 20, dtype=torch.bool), torch.arange(4000), 0.5)
    share = regions.float().mean((1, 2))
    assert share.mean() == pytest.approx(0.25, abs=0.01)  # mean of 1 - r_m
    assert share.std() == pytest.approx(0.5 / math.sqrt(12), rel=0.1) and share.max() < 0.6


@pytest.mark.parametrize("k", [1, 2, 4, 5, 7, 8, 16, 48])
@pytest.mark.parametrize("rule", ["pixel", "block"])
def test_regions_against_loops(k, rule):
    _, visibility, seed = clip()
    visible = global_visibility(visibility)
    candidates = candidate_regions(visible, k, rule)
    rows, columns = math.ceil(48 / k), math.ceil(64 / k)
    assert candidates.shape == (3, rows, columns)
    regions = draw_regions(candidates, seed, 0.5)
    pixels = region_pixels(regions, visible, k, rule)
    for b in range(3):
        for r in range(rows):
            for c in range(columns):
                cell = (b, slice(r * k, r * k + k), slice(c * k, c * k + k))
                seen = visible[cell]
                assert candidates[b, r, c] == (seen[0, 0] if rule == "block" else seen.any())
                expected = seen if rule == "pixel" else torch.ones_like(seen)
                assert torch.equal(pixels[cell], expected & regions[b, r, c])


@pytest.mark.parametrize("rule", ["pixel", "block"])
@pytest.mark.parametrize("min_mask_ratio", [0.95, 1.0])
def test_something_is_controlled_where_anything_can_be(rule, min_mask_ratio):
    flow, visibility, _ = clip(batch=200, frames=2, height=16, width=24)
    visibility[:] = False
    visibility[:150, :, 8:, 8:16] = True  # one region of six; nothing at all in the last 50
    control = RegionWise(8, min_mask_ratio, rule)(flow, visibility, torch.arange(200))
    controlled = (control[:, 1, 0] != 0).sum((1, 2))
    assert (controlled[:150] == 64).all() and (controlled[150:] == 0).all()


def test_region_wise_is_eq_6_and_7():
    flow, visibility, seed = clip()
    control = RegionWise(8, 0.5)(flow, visibility, seed)
    visible = visibility.all(1)
    regions = draw_regions(candidate_regions(visible, 8, "pixel"), seed, 0.5)
    expected = flow * visible[:, None, None] * spread_regions(regions, 8, 48, 64)[:, None, None]
    assert torch.equal(control[:, :, :2], expected)
    assert torch.equal(control[:, :, 2], motion_mask(flow).float()[:, None].expand(-1, 4, -1, -1))
    assert not RegionWise(8, 0.5, motion_mask=False)(flow, visibility, seed)[:, :, 2].any()


# What holds for every condition


@pytest.mark.parametrize("condition", ALL, ids=repr)
def test_pure_function_of_each_sample(condition):
    flow, visibility, seed = clip(batch=4)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    control = condition(flow, visibility, seed)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert control.shape == (4, 4, 3, 48, 64) and control.dtype == torch.float32
    parts = [condition(flow[i : i + 1], visibility[i : i + 1], seed[i : i + 1]) for i in (2, 0, 3, 1)]
    assert torch.equal(torch.cat([parts[1], parts[3], parts[0], parts[2]]), control)
    assert torch.equal(condition(flow, visibility, seed, motion_of(flow)), control)
    if not isinstance(condition, DenseFlow):
        assert not torch.equal(condition(flow, visibility, seed + 1), control)


@pytest.mark.parametrize("condition", ALL, ids=repr)
def test_autocast_and_gradients_do_not_touch_it(condition):
    flow, visibility, seed = clip()
    expected = condition(flow, visibility, seed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(condition(flow.requires_grad_(), visibility, seed), expected)
    assert not condition(flow, visibility, seed).requires_grad


@pytest.mark.parametrize("condition", ALL, ids=repr)
def test_half_precision_flow(condition):
    flow, visibility, seed = clip()
    assert torch.equal(condition(flow.half(), visibility, seed), condition(flow.half().float(), visibility, seed))


@pytest.mark.parametrize("condition", [*ALL, RegionWise(8, 0.5, motion_mask=False)], ids=repr)
def test_stored_flow(condition):
    flow, visibility, seed = clip()
    step = torch.tensor([0.125, 0.0625, 0.5])
    stored = ((flow / step.view(3, 1, 1, 1, 1)).round() + 32768).to(torch.int32).to(torch.uint16)
    pixels = flow_to_pixels(stored, step)
    squared = motion_mask(pixels, "squared")
    for motion in (None, motion_of(pixels), Motion(motion_bucket(pixels), {"l2": ~squared, "squared": squared})):
        expected = condition(pixels, visibility, seed, motion)
        assert torch.equal(condition(stored, visibility, seed, motion, step), expected)
    assert torch.equal(condition(stored, visibility, seed, None, 0.5), condition(
        flow_to_pixels(stored, 0.5), visibility, seed))  # fmt: skip


@pytest.mark.parametrize("condition", ALL, ids=repr)
def test_the_memory_of_an_earlier_control_may_be_used_again(condition):
    """The control is the same whatever was in it, and of whatever shape it was; without it nothing is shared."""
    flow, visibility, seed = clip()
    stored = ((flow / 0.125).round() + 32768).to(torch.int32).to(torch.uint16)
    given = visibility, seed, motion_of(flow), 0.125
    first, second = condition(stored, *given), condition(stored, *given)
    assert first.data_ptr() != second.data_ptr()
    for out in (torch.full_like(first, 7.0), torch.ones(1, 2)):
        again = condition(stored, *given, out=out)
        assert torch.equal(again, first)
    region_wise = RegionWise(8, 0.5)
    first = region_wise(stored, *given)
    assert region_wise(stored, *given, out=first).data_ptr() == first.data_ptr()


@pytest.mark.parametrize("condition", ALL, ids=repr)
def test_record_round_trip(condition):
    record = condition.record()
    assert getattr(conditions, record["class_path"].removeprefix("conditions.")) is type(condition)
    again = Condition.from_record(record)
    assert again == condition and again.record() == record and type(again) is type(condition)


def test_records_of_others_are_refused():
    with pytest.raises(ValueError, match="class_path"):
        Condition.from_record({"class_path": "os.system", "init_args": {}})
    with pytest.raises(ValueError, match="init_args.*brightness"):
        Condition.from_record({"class_path": "conditions.RegionWise", "init_args": {"brightness": 1}})


def test_arguments_are_checked_at_construction():
    for name, values in {
        "region_size": (0, -8, 2.5),
        "min_mask_ratio": (-0.01, 1.01, math.nan),
        "visibility_rule": ("pixels",),
        "motion_norm": ("l1",),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}: "):
                RegionWise(**{name: value})
    for name, values in {"kernel_size": (98, 0, -1), "sigma": (0.0, -1.0, math.nan), "region_size": (0,)}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}: "):
                GaussianFiltered(**{name: value})
            with pytest.raises(ValueError, match=f"^{name}: "):
                DragNUWA(**{name: value})
    with pytest.raises(ValueError, match="^region_size: "):
        DenseFlow(0)


@pytest.mark.parametrize("condition", [RegionWise(49), GaussianFiltered(49), DragNUWA(49), DenseFlow(49)], ids=repr)
def test_region_larger_than_the_frame(condition):
    condition.check(49, 64)
    with pytest.raises(ValueError, match="^region_size: "):
        condition.check(48, 64)
    with pytest.raises(ValueError, match="^region_size: "):
        condition(*clip())


def test_inputs_are_checked():
    flow, visibility, seed = clip()
    for name, wrong in (
        ("flow", (flow.transpose(1, 2), visibility, seed)),
        ("flow", (flow.long(), visibility, seed)),
        ("visibility", (flow, visibility[:, 1:], seed)),
        ("visibility", (flow, visibility.float(), seed)),
        ("seed", (flow, visibility, seed[:1])),
        ("step", (flow.to(torch.int32).to(torch.uint16), visibility, seed)),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            RegionWise()(*wrong)


# Gaussian and dense


def centred(size, sigma):
    """(size, size) OpenCV's Gaussian, with the centre at one."""
    axis = cv2.getGaussianKernel(size, sigma, cv2.CV_64F)
    return axis @ axis.T / axis.max() ** 2


def chosen(visibility, seed, region_size, mask_ratio):
    """The regions of a seed, and the point of each."""
    visible = global_visibility(visibility)
    regions = draw_regions(candidate_regions(visible, region_size, "pixel"), seed, mask_ratio)
    return regions, region_points(regions, visible, region_size)


@pytest.mark.parametrize("shape", [(48, 64), (37, 121)])
def test_gaussian_is_filter2d_with_the_centre_at_one(shape):
    flow, visibility, seed = clip(height=shape[0], width=shape[1])
    condition = GaussianFiltered(5, 0.9, kernel_size=31, sigma=6.0)
    control = condition(flow, visibility, seed)
    kernel, (regions, points) = centred(31, 6.0), chosen(visibility, seed, 5, 0.9)
    assert torch.equal(points.sum((1, 2)), regions.sum((1, 2)))
    sparse = (flow * points[:, None, None]).double().numpy()
    for b in range(3):
        for i in range(4):
            for channel in range(2):
                expected = cv2.filter2D(sparse[b, i, channel], -1, kernel, borderType=cv2.BORDER_CONSTANT)
                assert_rounded(control[b, i, channel], expected)
    assert torch.equal(control[:, :, 2], RegionWise(5, 0.9)(flow, visibility, seed)[:, :, 2])


def test_dragnuwa_filters_the_steps_at_the_moving_points():
    flow, visibility, seed = clip(height=40, width=56)
    condition = DragNUWA(5, 0.9, kernel_size=31, sigma=6.0)
    control = condition(flow, visibility, seed)
    kernel, (_, points), moved = centred(31, 6.0), chosen(visibility, seed, 5, 0.9), 0
    for b in range(3):
        assert not control[b, 0].any()
        for i in range(1, 4):
            sparse = np.zeros((40, 56, 2))
            for y, x in points[b].nonzero().tolist():
                before, after = (np.array([x, y]) + flow[b, frame, :, y, x].numpy() for frame in (i - 1, i))
                column, row = np.floor(before).astype(int)
                if 0 <= column < 56 and 0 <= row < 40:
                    sparse[row, column] = after - before
                    moved += (column, row) != (x, y)
            expected = cv2.filter2D(sparse, -1, kernel, borderType=cv2.BORDER_CONSTANT)
            np.testing.assert_allclose(control[b, i, :2].permute(1, 2, 0).numpy(), expected, atol=1e-4)
    assert moved and not control[:, :, 2].any()
    with_mask = DragNUWA(5, 0.9, kernel_size=31, sigma=6.0, motion_mask=True)(flow, visibility, seed)
    assert torch.equal(with_mask[:, :, 2], RegionWise(5, 0.9)(flow, visibility, seed)[:, :, 2])


def test_gaussian_points_are_the_visible_ones_nearest_to_the_centres_of_the_same_regions():
    flow, visibility, seed = clip(frames=2)
    visible = global_visibility(visibility)
    visible[:, 20:, :40] &= torch.rand(3, 28, 40, generator=torch.Generator().manual_seed(5)) > 0.9
    regions = draw_regions(candidate_regions(visible, 7, "pixel"), seed, 0.5)
    points = region_points(regions, visible, 7)
    region_wise = region_pixels(regions, visible, 7, "pixel")
    assert (points <= region_wise).all()
    for b, r, c in regions.nonzero().tolist():
        found = points[b, r * 7 : r * 7 + 7, c * 7 : c * 7 + 7].nonzero()
        assert len(found) == 1
        all_visible = visible[b, r * 7 : r * 7 + 7, c * 7 : c * 7 + 7].nonzero()
        assert (found - 3).square().sum() == (all_visible - 3).square().sum(1).min()


def test_dense_keeps_everything():
    flow, visibility, seed = clip()
    control = DenseFlow()(flow, visibility, seed)
    assert torch.equal(control[:, :, :2], flow) and torch.equal(control[:, :, 2].bool(), visibility)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("condition", ALL, ids=repr)
def test_same_control_on_the_gpu_without_a_sync(condition):
    flow, visibility, seed = clip(batch=8, frames=16, height=50, width=90)
    batch = [x.cuda() for x in (flow, visibility, seed)]
    condition(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        control = condition(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(control.cpu(), condition(flow, visibility, seed), atol=1e-4, rtol=0)
