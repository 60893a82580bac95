"""`warp`: pixels of the first frame where the control moves them, and what that conditions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conditions import DenseFlow, RegionWise
from conditions.camera import camera_tracks, dense_control, preset_camera
from lightning_modules import MotionControlModule
from lightning_modules.bases.grid import Grid
from lightning_modules.conditioning import KNOWN
from lightning_modules.config import Control
from lightning_modules.control.pixels import RIM, moved_pixels
from lightning_modules.control.rigid import layers_of
from lightning_modules.control.warp import unknown_cells
from lightning_modules.pipeline import MotionControlPipeline
from tests.support.modules import data, module, perturb, trainer
from tests.support.same import same
from tests.support.toy import Toy

SIDE, FRAMES = 48, 4
Y, X = torch.meshgrid(torch.arange(SIDE).double(), torch.arange(SIDE).double(), indexing="ij")


def noise() -> torch.Tensor:
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def ramp() -> torch.Tensor:
    return torch.stack([X / SIDE, Y / SIDE, (X - Y) / (2 * SIDE)])


def box(top: int, left: int, side: int) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def drawn(*things) -> torch.Tensor:
    """(L, 3, H, W) of (mask, place of a region of 4 x 4, (L, 2) displacement)."""
    control = torch.zeros(FRAMES, 3, SIDE, SIDE)
    for mask, (y, x), way in things:
        control[:, 2] = torch.maximum(control[:, 2], mask.float())
        control[:, :2, y : y + 4, x : x + 4] = torch.as_tensor(np.asarray(way), dtype=torch.float32)[..., None, None]
    return control


def straight(x: float, y: float) -> np.ndarray:
    return np.linspace(0, 1, FRAMES)[:, None] * (FRAMES - 1) * np.array([x, y])


def test_a_box_moved_by_whole_pixels_is_the_picture_shifted_to_the_bit():
    picture, mask = noise(), box(10, 6, 16)
    clip, unknown, _ = moved_pixels(picture, drawn((mask, (16, 12), straight(5, 3))))
    around = box(10 - RIM, 6 - RIM, 16 + 2 * RIM)
    for t in range(FRAMES):
        moved = box(10 + 3 * t, 6 + 5 * t, 16)
        shifted = torch.roll(picture, (3 * t, 5 * t), (1, 2))
        assert torch.equal(clip[t][:, moved], shifted[:, moved])
        untouched = ~moved & ~around
        assert torch.equal(clip[t][:, untouched], picture[:, untouched])
        assert unknown[t].any() == (t > 0) and (not t or unknown[t][around & ~box(10 + 3 * t, 6 + 5 * t, 16)].all())
        assert not unknown[t][box(10 + 3 * t + RIM, 6 + 5 * t + RIM, 16 - 2 * RIM)].any()


@pytest.mark.parametrize("control", [drawn(), drawn((box(4, 4, 20), (9, 9), straight(0, 0)))])
def test_where_nothing_moves_each_frame_is_the_first(control):
    clip, unknown, _ = moved_pixels(noise(), control)
    assert torch.equal(clip, noise().expand(FRAMES, -1, -1, -1)) and not unknown.any()


def test_a_brushed_part_without_a_track_stays():
    control = drawn((box(2, 2, 10), (4, 4), straight(2, 1)), (box(30, 30, 12), (32, 32), straight(0, 0)))
    clip, unknown, _ = moved_pixels(noise(), control)
    assert torch.equal(clip[:, :, 28:, 28:], noise().expand(FRAMES, -1, -1, -1)[:, :, 28:, 28:])
    assert not unknown[:, 28:, 28:].any()


def test_between_pixels_a_linear_picture_is_exact_and_a_curved_one_within_its_bound():
    mask, way = box(12, 12, 20), straight(0.3, -0.45)
    control = drawn((mask, (18, 18), way))
    exact = control[:, :2, 19, 19].double()  # as the float32 control says it
    wave = torch.stack([torch.sin(0.5 * X), torch.sin(0.4 * Y), torch.sin(0.3 * X) * torch.sin(0.3 * Y)])
    inside = box(15, 15, 14)
    clips = [moved_pixels(picture, control)[0] for picture in (ramp(), wave)]
    for t, (dx, dy) in enumerate(exact.tolist()):
        x, y = X - dx, Y - dy
        linear = torch.stack([x / SIDE, y / SIDE, (x - y) / (2 * SIDE)])
        assert (clips[0][t] - linear)[:, inside].abs().max() < 1e-12
        curved = torch.stack([torch.sin(0.5 * x), torch.sin(0.4 * y), torch.sin(0.3 * x) * torch.sin(0.3 * y)])
        # bilinear interpolation is off by at most h^2 / 8 of each axis' second derivative
        bound = torch.tensor([0.25, 0.16, 2 * 0.09]).double() / 8
        assert ((clips[1][t] - curved)[:, inside].abs().amax(1) <= bound).all()


def test_a_turn_and_growth_seen_in_one_region_carries_the_whole_thing():
    mask, centre, angle, scale = box(12, 12, 20), complex(25, 20), 0.3, 1.2
    turn = np.linspace(0, 1, FRAMES) * (scale * np.exp(1j * angle) - 1)
    points = (X + 1j * Y).numpy()
    flow = turn[:, None, None] * (points - centre)
    control = drawn((mask, (14, 14), straight(0, 0)))
    region = box(14, 14, 6)
    control[:, 0][:, region] = torch.from_numpy(flow.real)[:, region].float()
    control[:, 1][:, region] = torch.from_numpy(flow.imag)[:, region].float()
    clip, unknown, _ = moved_pixels(ramp(), control)
    source = (points - centre) / (1 + turn[-1]) + centre
    rows, columns = (part.round().astype(int) % SIDE for part in (source.imag, source.real))
    inside = mask[rows, columns]
    inside &= ~unknown[-1]
    assert inside.sum() > 250
    expected = torch.from_numpy(np.stack([source.real / SIDE, source.imag / SIDE]))
    assert (clip[-1][:2] - expected)[:, inside].abs().max() < 1e-5  # the control is float32


def test_a_camera_pan_carries_the_border_on_as_unknown():
    flow = torch.zeros(1, FRAMES, 2, SIDE, SIDE)
    flow[0, :, 0] = -4.0 * torch.arange(FRAMES).view(-1, 1, 1)
    seen = torch.ones(1, FRAMES, SIDE, SIDE, dtype=torch.bool)
    control = RegionWise(8, 0.9)(flow, seen, torch.tensor([3]))[0]
    picture = noise()
    clip, unknown, _ = moved_pixels(picture, control)
    for t in range(FRAMES):
        kept = SIDE - 4 * t
        assert torch.equal(clip[t, :, :, :kept], picture[:, :, 4 * t :])
        assert torch.equal(clip[t, :, :, kept:], picture[:, :, -1:].expand(-1, -1, 4 * t))
        assert not unknown[t, :, :kept].any() and unknown[t, :, kept:].all()


def test_a_thing_before_a_moving_camera_has_its_own_motion():
    thing = box(16, 16, 14)
    flow = torch.zeros(1, FRAMES, 2, SIDE, SIDE)
    time = torch.arange(FRAMES).view(-1, 1, 1)
    flow[0, :, 0], flow[0, :, 1] = 3.0 * time, 0.0 * time
    flow[0, :, 0][:, thing], flow[0, :, 1][:, thing] = -2.0 * time[:, 0], 2.0 * time[:, 0]
    control = RegionWise(4, 0.0).with_mask_ratio(0.0)(flow, torch.ones(1, FRAMES, SIDE, SIDE).bool(), torch.tensor([0]))
    picture = noise()
    clip, *_ = moved_pixels(picture, control[0])
    moved = box(16 + 6, 16 - 6, 14)
    assert torch.equal(clip[3][:, moved], picture[:, thing.nonzero()[:, 0].unique()][:, :, 16:30].reshape(3, -1))
    assert torch.equal(clip[3, :, :10, 9:], picture[:, :10, :-9])


def test_of_two_things_the_smaller_is_in_front_and_both_cover_what_stays():
    large, small = box(4, 4, 20), box(30, 8, 8)
    control = drawn((large, (10, 10), straight(2, 2)), (small, (32, 10), straight(1, -6)))
    picture = noise()
    clip, *_ = moved_pixels(picture, control)
    front, behind = box(12, 11, 8), box(10, 10, 20)
    assert torch.equal(clip[3][:, front], picture[:, small])
    covered = torch.zeros(3, SIDE, SIDE).double()
    covered[:, behind] = picture[:, large]
    assert torch.equal(clip[3][:, behind & ~front], covered[:, behind & ~front])


def test_tracks_that_share_no_motion_are_splatted_each_on_its_own_way():
    rng, mask = np.random.default_rng(0), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    flow = torch.zeros(FRAMES, 3, SIDE, SIDE)
    ways = {}
    for row in range(4):
        for column in range(4):
            block = box(8 + 8 * row, 8 + 8 * column, 8)
            ways[row, column] = rng.integers(-12, 12, 2) + 1j * 0
            flow[1:, :2, block] = torch.tensor(ways[row, column].real).float()[:, None]
            mask |= block
    flow[:, 2] = mask
    layers = layers_of(flow[:, 0].double().numpy() + 1j * flow[:, 1].double().numpy(), mask.numpy())
    assert any(layer.motion is None for layer in layers)
    layer = next(layer for layer in layers if layer.motion is None)
    picture = noise()
    only = flow * torch.from_numpy(layer.pixels)
    clip, *_ = moved_pixels(picture, flow)
    hits = np.zeros((SIDE, SIDE), int)
    ends = []
    for y, x in zip(*np.nonzero(mask.numpy())):
        dx, dy = flow[1, :2, y, x].long().tolist()
        if 0 <= y + dy < SIDE and 0 <= x + dx < SIDE:
            hits[y + dy, x + dx] += 1
            ends.append((y, x, y + dy, x + dx))
    alone = [(y, x, v, u) for y, x, v, u in ends if hits[v, u] == 1 and only[1, :2, y, x].any()]
    assert len(alone) > 50
    for y, x, v, u in alone:
        torch.testing.assert_close(clip[1, :, v, u], picture[:, y, x], rtol=0, atol=1e-12)


def warped(**changes):
    return module(injection=["modulation", "warp"], **{"size": "micro", **changes})


@pytest.mark.parametrize("latents", ["vae", "pca"])
def test_each_frame_of_svd_is_conditioned_on_its_own_pixels(latents):
    net = warped(latents=latents)
    net.configure_model()
    if net.base.to_fit():
        net.base.fit([noise()[None].float()])
    frame = torch.nn.functional.interpolate(noise()[None], 64).float()
    given = {"fps": torch.ones(1), "motion_bucket_id": torch.ones(1), "noise_aug_strength": torch.zeros(1)}
    cond = net.base.condition({"first_frame": frame}, given, None)
    control = torch.zeros(1, FRAMES, 3, 64, 64)
    control[:, :, 2, 8:32, 8:32] = 1
    control[:, 1:, 0, 16:20, 16:20] = 8.0
    steered = net.injections[1].steer(control, cond, net.base)
    clip, *_ = moved_pixels(frame[0], control[0])
    expected = net.base.encode(clip[None]).mean
    assert torch.equal(steered.parts["image_latent"], expected) and expected.shape[:2] == (1, FRAMES)
    known = steered.parts[KNOWN]
    assert known.shape == (1, FRAMES, 1, 8, 8) and known[:, 0].all() and not known[0, 1, 0, 1:4, 1].any()
    assert known[0, 1, 0, 5:].all() and known[0, 1, 0, 2, 3]
    both = steered.unconditional(net.base.unconditional).followed_by(steered)
    assert both.parts["image_latent"].shape[:2] == (2, FRAMES) and not both.parts["image_latent"][0].any()


def test_gradients_reach_what_is_trained_and_nothing_frozen(sprites):
    net = warped()
    net.configure_model()
    loader = data(sprites)
    loader.prepare_data(), loader.setup()
    net.log = lambda *_, **__: None
    perturb(net).training_step(next(iter(loader.train_dataloader())), 0).backward()
    trained = net.optimized()
    assert trained["injections.1.unknown.weight"].grad.abs().max() > 0
    assert all(p.grad is None for name, p in net.named_parameters() if name not in trained)


def test_a_resume_has_the_same_bits_and_the_pipeline_moves(sprites, tmp_path):
    for folder, cuts in (("whole", [2]), ("parts", [1, 2])):
        (tmp_path / folder).mkdir()
        for steps in cuts:
            path = tmp_path / folder / "last.ckpt"
            again = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
            trainer(tmp_path / folder, steps).fit(warped(), data(sprites), **again)
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert one["remoco"]["architecture"]["injection"] == ["modulation", "warp"]
    assert one["state_dict"]["injections.1.unknown.weight"].any()
    pipe = MotionControlPipeline.from_checkpoint(tmp_path / "whole" / "last.ckpt")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    brush = np.zeros((64, 64))
    brush[16:40, 16:40] = 1
    ways = ([(24, 24), (48, 24)], [(24, 24), (24, 48)])
    clips = [pipe(image, [way], brush, num_frames=3, num_inference_steps=1, output_type="pt").frames for way in ways]
    assert not torch.equal(*clips)


def test_what_cannot_be_warped_is_one_line():
    with pytest.raises(ValueError, match=r"^control\.injection: warp needs a base .*Toy has none") as caught:
        MotionControlModule(Toy(), RegionWise(), Control(["warp"], None))
    assert "\n" not in str(caught.value)
    for condition in (DenseFlow(), RegionWise(motion_mask=False)):
        with pytest.raises(ValueError, match=r"^model\.condition: warp moves pixels by tracks and a motion mask"):
            module(injection=["warp"], condition=condition)


def test_latents_of_several_frames_are_known_where_all_their_frames_are():
    unknown = torch.zeros(1, 9, 16, 16)
    unknown[0, 3, 2, 9] = 1
    cells = unknown_cells(unknown, SimpleNamespace(grid=Grid(space=8, step=16, time=4)))
    assert cells.shape == (1, 3, 1, 2, 2) and cells.sum() == 1 and cells[0, 1, 0, 0, 1] == 1


@pytest.mark.parametrize("camera", [{"pan": 0.2}, {"tilt": -0.15, "roll": 8.0}, {"pan": 0.1, "zoom": 1.3}])
def test_a_turning_camera_is_one_motion_of_the_whole_picture(camera):
    height, width = 160, 224
    flow, visible = camera_tracks(preset_camera(FRAMES, height, width, **camera), height, width, None)
    control = dense_control(RegionWise(8, 0.0), flow, visible, 0, np.ones((height, width))).double().numpy()
    (layer,) = layers_of(control[:, 0] + 1j * control[:, 1], control[:, 2].any(0))
    y, x = np.mgrid[:height, :width]
    points, true = (x + 1j * y).ravel(), np.asarray(flow, float).reshape(FRAMES, 2, -1)
    assert layer.pixels.all() and np.abs(layer.motion.displacement(points) - true[:, 0] - 1j * true[:, 1]).max() < 0.05
    for t in range(FRAMES):
        ends = points + true[t, 0] + 1j * true[t, 1]
        assert np.abs(layer.motion.source(t, ends) - points).max() < 0.05
