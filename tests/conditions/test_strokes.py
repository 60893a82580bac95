"""Strokes to control: parity with the released demo where it is sound, both behaviours where it is not, bad input."""

import cv2
import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator

from conditions import Condition, DenseFlow, DragNUWA, GaussianFiltered, RegionWise, motion_bucket
from conditions.strokes import draw_strokes, drawn_motion, interpolate_track
from tests.support.arithmetic import assert_rounded

RELEASED = RegionWise(8, visibility_rule="block", motion_norm="squared")


@pytest.fixture(scope="module")
def drag(shared):
    data = np.load(shared / "parity" / "conditions_public.npz", allow_pickle=False)

    def case(name, condition: Condition = RELEASED):
        points, lengths = data[f"drag.{name}.points"], data[f"drag.{name}.lengths"]
        tracks = np.split(points, np.cumsum(lengths)[:-1]) if len(points) else []
        released = torch.from_numpy(data[f"drag.{name}.condition"]).permute(0, 3, 1, 2)
        brush = torch.from_numpy(data[f"drag.{name}.brush"])
        return condition.draw(tracks, brush, 16, 64, 96), released, brush

    return case


@pytest.mark.parametrize("name", ["curve_and_brush", "two_overlapping_strokes", "edge_no_stroke", "edge_bottom_right"])
def test_equals_the_released_demo(drag, name):
    ours, released, _ = drag(name)
    assert torch.equal(ours, released)


def test_a_click_stays_where_the_released_demo_moves_it(drag):
    ours, released, _ = drag("static_point_plus_drag")
    click = (slice(None), slice(0, 2), slice(36, 44), slice(66, 74))
    assert torch.equal(ours[:, 2], released[:, 2]) and ours[:, 2, 36:44, 66:74].all()
    ramp = torch.linspace(0, 1, 16)[:, None, None, None].expand(-1, 2, 8, 8)
    torch.testing.assert_close(released[click], ramp)
    assert not ours[click].any()
    released[click] = 0
    assert torch.equal(ours, released)


def test_a_region_at_the_border_is_clipped_where_the_released_demo_drops_it(drag):
    ours, released, _ = drag("edge_start_near_border")
    assert not released.any()
    # Starts (2, 30) and (50, 3): 6 columns and 7 rows of the 8 x 8 regions are inside.
    expected = torch.zeros(64, 96, dtype=torch.bool)
    expected[26:34, 0:6] = True
    expected[0:7, 46:54] = True
    assert torch.equal(ours[:, 2], expected.float().expand(16, -1, -1))
    assert torch.equal(ours[-1, 0, 26:34, 0:6], torch.full((8, 6), 18.0))
    assert torch.equal(ours[-1, 1, 0:7, 46:54], torch.full((7, 8), 17.0))


def test_a_closed_loop_keeps_its_mask_where_the_released_demo_loses_it(drag):
    ours, released, _ = drag("edge_closed_loop")
    assert torch.equal(ours[:, :2], released[:, :2]) and not ours[-1, :2].any() and ours[8, :2].any()
    assert not released[:, 2].any()
    expected = torch.zeros(64, 96)
    expected[26:34, 36:44] = 1
    assert torch.equal(ours[:, 2], expected.expand(16, -1, -1))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_region_around_the_start(k):
    control = RegionWise(k).draw([[(20.9, 12.2), (30.9, 2.2)]], None, 4, 32, 48)
    rows, columns = control[0, 2].nonzero().T
    assert rows.unique().tolist() == list(range(12 - k // 2, 12 - k // 2 + k))
    assert columns.unique().tolist() == list(range(20 - k // 2, 20 - k // 2 + k))
    moving = control[:, :2, rows, columns]
    straight = torch.linspace(0, 1, 4)[:, None, None] * torch.tensor([10.0, -10.0])[:, None]
    assert_rounded(moving, straight.double().expand(-1, -1, k * k))


@pytest.mark.parametrize("start", [(0, 0), (47, 0), (0, 31), (47, 31)])
def test_corners(start):
    control = RegionWise(8).draw([[start, (24, 16)]], None, 16, 32, 48)
    inside = (4 if start[0] == 0 else 5) * (4 if start[1] == 0 else 5)
    assert control[0, 2].sum() == inside and (control[-1, 0] != 0).sum() == inside
    assert control[-1, 0, start[1], start[0]] == 24 - start[0]


def test_pchip_passes_through_key_points_without_overshoot():
    points = np.array([[4.0, 4], [10, 9], [10, 9], [20, 30]])
    path = interpolate_track(points, 16)
    np.testing.assert_allclose(path[::5], points)
    assert (np.diff(path, axis=0) >= 0).all()
    np.testing.assert_allclose(path[:, 1], PchipInterpolator(np.linspace(0, 1, 4), points[:, 1])(np.linspace(0, 1, 16)))
    assert interpolate_track(points, 1).tolist() == [[4.0, 4.0]]


def test_later_tracks_win_and_the_mask_is_a_union():
    brush = np.zeros((32, 48), np.uint8)
    brush[20:, 40:] = 255
    first, second = [(20, 12), (30, 12)], [(23, 13)]
    control = RegionWise(8).draw([first, second], brush, 16, 32, 48)
    assert control[-1, 0, 9:17, 19:27].sum() == 0  # the click stopped what it covers ...
    assert (control[-1, 0] == 10).sum() == 64 - 7 * 5  # ... and only that
    assert control[0, 2].sum() == 64 + 64 - 7 * 5 + 12 * 8
    assert (RegionWise(8).draw([second, first], brush, 16, 32, 48)[-1, 0] == 10).sum() == 64
    assert not RegionWise(8, motion_mask=False).draw([first], brush, 16, 32, 48)[:, 2].any()


def test_gaussian_strokes():
    tracks = [[(20, 12), (30, 8), (34, 20)], [(2, 30), (5, 28)], [(40, 5)]]
    brush = torch.zeros(32, 48, dtype=torch.bool)
    brush[:4] = True
    condition = GaussianFiltered(8, kernel_size=15, sigma=4.0)
    control = condition.draw(tracks, brush, 16, 32, 48)
    axis = cv2.getGaussianKernel(15, 4.0, cv2.CV_64F)
    points = np.zeros((32, 48, 2))
    points[12, 20], points[30, 2] = (14, 8), (3, -2)
    expected = cv2.filter2D(points, -1, axis @ axis.T / axis.max() ** 2, borderType=cv2.BORDER_CONSTANT)
    assert_rounded(control[-1, :2].permute(1, 2, 0), expected)
    assert torch.equal(control[:, 2], RegionWise(8).draw(tracks, brush, 16, 32, 48)[:, 2])


def test_dense_strokes_say_what_is_known():
    brush = np.zeros((32, 48), bool)
    brush[:, :30] = True
    control = DenseFlow(8).draw([[(20, 12), (30, 12)]], brush, 16, 32, 48)
    assert torch.equal(control[:, :2], draw_strokes([[(20, 12), (30, 12)]], brush, 16, 32, 48, 8).flow)
    assert control[0, 2].all()
    assert control[5, 2, :, 30:].all() and control[5, 2, 8:16, 16:24].all() and control[5, 2].sum() == 32 * 18 + 64


@pytest.mark.parametrize("condition", [RegionWise(), GaussianFiltered(), DragNUWA(), DenseFlow()], ids=repr)
def test_no_track_and_no_brush(condition):
    control = condition.draw([], None, 3, 32, 48)
    assert control.shape == (3, 3, 32, 48) and not control[:, :2].any()
    assert bool(control[:, 2].any()) == isinstance(condition, DenseFlow)


@pytest.mark.parametrize("condition", [RegionWise(), GaussianFiltered(), DragNUWA(), DenseFlow()], ids=repr)
@pytest.mark.parametrize(
    "track, message",
    [
        ([], "at least one point"),
        ([(1, 2, 3)], r"shape \(n, 2\)"),
        ([1, 2], r"shape \(n, 2\)"),
        ([(1, 2), (3,)], "numbers"),
        ([("a", "b")], "numbers"),
        ([(5, 5), (np.nan, 3)], "finite"),
        ([(np.inf, 5)], "finite"),
        ([(48, 5), (2, 2)], "inside the 32 x 48 frame"),
        ([(5, 32)], "inside the 32 x 48 frame"),
        ([(-0.5, 5)], "inside the 32 x 48 frame"),
    ],
)
def test_bad_tracks_are_named(condition, track, message):
    with pytest.raises(ValueError, match=f"^track 1: .*{message}") as error:
        condition.draw([[(3, 3)], track], None, 16, 32, 48)
    assert "\n" not in str(error.value)


def test_bad_brush_frames_and_size():
    with pytest.raises(ValueError, match=r"^brush: .*\(32, 48\)"):
        RegionWise().draw([], np.zeros((48, 32)), 16, 32, 48)
    with pytest.raises(ValueError, match="^frames: "):
        RegionWise().draw([], None, 0, 32, 48)
    with pytest.raises(ValueError, match="^region_size: "):
        RegionWise(33).draw([], None, 16, 32, 48)


def test_a_brush_for_each_track():
    """Two objects with a track each and a third that is asked to stay."""
    brushes = np.zeros((3, 32, 48), bool)
    brushes[0, 4:14, 4:14], brushes[1, 4:14, 20:30], brushes[2, 18:30, 4:40] = True, True, True
    tracks = [[(10, 8), (14, 8)], [(21, 12), (21, 2)]]
    control = RegionWise(8).draw(tracks, brushes, 16, 32, 48)
    last = control[-1]
    assert torch.equal(last[:, 4:14, 4:14], torch.tensor([4.0, 0, 1])[:, None, None].expand(-1, 10, 10))
    assert torch.equal(last[:, 4:14, 20:30], torch.tensor([0.0, -10, 1])[:, None, None].expand(-1, 10, 10))
    assert not last[:, 18:30, 4:40].any()
    # of the second one's region, rows 8..15 and columns 17..24, what is not brushed moves too
    outside = ~torch.from_numpy(brushes.any(0))
    assert (last[1][outside] == -10).sum() == 8 * 3 + 2 * 5 and last[2][outside].sum() == 8 * 3 + 2 * 5
    dense = DenseFlow(8).draw(tracks, brushes, 16, 32, 48)
    assert torch.equal(dense[:, :2], control[:, :2]) and dense[:, 2].all()
    gaussian = GaussianFiltered(8, kernel_size=15, sigma=4.0)
    points, union = gaussian.draw(tracks, brushes, 16, 32, 48), gaussian.draw(tracks, brushes.any(0), 16, 32, 48)
    assert torch.equal(points[:, :2], union[:, :2])
    assert not points[:, 2, 18:30, 4:40].any() and union[:, 2, 18:30, 4:40].all()


def test_a_brush_shared_by_two_tracks_goes_with_the_nearer_start():
    brush = np.ones((32, 48), bool)
    control = RegionWise(8).draw([[(10, 16), (12, 16)], [(40, 16), (37, 16)]], np.stack([brush] * 2), 4, 32, 48)
    assert (control[-1, 0, :, :25] == 2).all() and (control[-1, 0, :, 26:] == -3).all() and control[:, 2].all()


def test_the_motion_of_a_whole_drawing():
    """One brush goes with the nearer start, a click keeps its share of it at rest; without one the regions move."""
    brush = np.zeros((32, 48), bool)
    brush[8:24, 8:40] = True
    tracks, size = [[(12, 16), (16, 16)], [(36, 16)]], (4, 32, 48)
    moved = drawn_motion(tracks, brush, *size, 4)
    assert torch.equal(moved.filled, torch.from_numpy(brush)) and not moved.held.any()
    assert (moved.flow[-1, 0, 8:24, 8:24] == 4).all() and not moved.flow[-1, 0, 8:24, 25:].any()
    mean = moved.flow[:, 0, 16, 12].double().mean()
    assert motion_bucket(moved.flow[None]).item() == pytest.approx(float(mean) * 16 * 17 / (32 * 48), rel=1e-6)
    each = np.stack([brush & (np.arange(48) < 20), brush & (np.arange(48) >= 20)])
    assert (drawn_motion(tracks, each, *size, 4).flow[-1, 0] == 4).sum() == 16 * 12
    alone = drawn_motion(tracks[:1], None, *size, 4)
    assert (alone.flow[-1, 0] == 4).sum() == 16 and alone.filled.sum() == 16
    stays = drawn_motion([], brush[None], *size, 4)
    assert not stays.flow.any() and torch.equal(stays.held, torch.from_numpy(brush))
    assert not drawn_motion([], brush, *size, 4).filled.any()


def test_brushes_of_no_track():
    brushes = np.ones((1, 32, 48), bool)
    assert not RegionWise(8).draw([], brushes, 4, 32, 48).any()  # asked to stay
    assert not RegionWise(8).draw([], brushes[:0], 4, 32, 48).any()
    with pytest.raises(ValueError, match="^brush: expected one for each of 2 tracks, got 1"):
        RegionWise(8).draw([[(3, 3)], [(9, 9)]], brushes, 4, 32, 48)
