"""Camera motion: closed forms of a pinhole camera over planes, occlusion, presets, and their control."""

import numpy as np
import pytest
import torch

from conditions import DenseFlow, GaussianFiltered, RegionWise
from conditions.camera import Camera, camera_paths, camera_tracks, dense_control, over, preset_camera

H, W, F = 48, 64, 60.0
IDENTITY = np.eye(3)
Y, X = np.mgrid[:H, :W].astype(float)
K = np.array([[F, 0, 31.5], [0, F, 23.5], [0, 0, 1]])


def moving(*shifts, rotation=IDENTITY) -> Camera:
    """A camera whose centre is at these places, (x, y, z), the first at the origin."""
    poses = [np.eye(3, 4)] + [np.concatenate([rotation, -rotation @ np.array([s]).T], axis=1) for s in shifts]
    return Camera(np.stack([K] * len(poses)), np.stack(poses))


def rounded(flow, x, y):
    expected = torch.stack([torch.as_tensor(one, dtype=torch.float32).expand(flow.shape[1:]) for one in (x, y)])
    torch.testing.assert_close(flow, expected, rtol=0, atol=1e-5)


def test_a_plane_that_faces_the_camera_moves_as_a_whole():
    """Sideways by t in front of a plane at depth Z: every pixel by -f t / Z."""
    flow, visible = camera_tracks(moving((0.5, -0.25, 0)), H, W, np.full((H, W), 5.0))
    rounded(flow[1], -F * 0.5 / 5, F * 0.25 / 5)
    assert not flow[0].any() and visible[0].all()
    assert torch.equal(visible[1], torch.from_numpy((X - 6 >= -0.5) & (Y + 3 < H - 0.5)))


def test_forward_is_a_scaling_about_the_principal_point():
    flow, _ = camera_tracks(moving((0, 0, 1)), H, W, np.full((H, W), 5.0))
    rounded(flow[1], (X - 31.5) * (5 / 4 - 1), (Y - 23.5) * (5 / 4 - 1))


def test_a_tilted_plane_and_a_turning_camera_are_a_homography():
    """H = K (R + t n^T / d) K^-1 for the plane n X = d, t the world's origin in the second camera."""
    normal, distance = np.array([0.2, -0.1, 0.9]), 4.0
    rays = np.stack([X, Y, np.ones_like(X)], -1) @ np.linalg.inv(K).T
    depth = distance / (rays @ normal)
    angle = 0.1
    rotation = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    camera = moving((0.3, 0.2, 0.4), rotation=rotation)
    homography = K @ (rotation + np.outer(camera.poses[1, :, 3], normal) / distance) @ np.linalg.inv(K)
    at = np.stack([X, Y, np.ones_like(X)], -1) @ homography.T
    flow, visible = camera_tracks(camera, H, W, depth)
    rounded(flow[1], at[..., 0] / at[..., 2] - X, at[..., 1] / at[..., 2] - Y)
    inside = (np.abs(at[..., 0] / at[..., 2] - 31.5) < 31) & (np.abs(at[..., 1] / at[..., 2] - 23.5) < 23)
    assert visible[1].numpy()[inside].all()  # a plane hides nothing of itself


def test_a_nearer_plane_hides_what_it_passes_over():
    """The left half is at depth 2, the rest at 6. Camera to the left by 0.4: near pixels go 12 right, far ones 4."""
    depth = np.where(X < 32, 2.0, 6.0)
    flow, visible = camera_tracks(moving((-0.4, 0, 0)), H, W, depth)
    rounded(flow[1], np.where(X < 32, 12.0, 4.0), 0.0)
    # near pixels end at columns 12..43, so of the far ones, at 36..67, those up to 43 are hidden, and those past 63 out
    expected = (X < 32) | ((X + 4 > 43) & (X + 4 < 63.5))
    assert torch.equal(visible[1], torch.from_numpy(expected))
    seen = camera_tracks(moving((0.4, 0, 0)), H, W, depth)[1][1].numpy()  # the other way the planes part
    assert np.array_equal(seen, np.where(X < 32, X - 12 > -0.5, True))


def test_what_is_behind_the_camera_is_not_seen():
    flow, visible = camera_tracks(moving((0, 0, 3)), H, W, np.where(X < 20, 2.0, 9.0))
    assert not visible[1, :, :20].any() and not flow[1, :, :, :20].any() and flow.isfinite().all()


def test_presets():
    flow, visible = camera_tracks(preset_camera(5, H, W + 1, pan=0.25), H, W + 1)
    assert torch.allclose(flow[:, 0, :, 32].mean(1), -0.25 * 65 * torch.linspace(0, 1, 5), atol=0.5)
    middle, _ = preset_camera(5, 49, 65, pan=0.25).seen(4, np.array([[32.0, 24.0]]), np.ones(1))
    assert np.allclose(middle, [[32 - 0.25 * 65, 24]])
    middle, _ = preset_camera(5, 49, 65, tilt=0.5).seen(2, np.array([[32.0, 24.0]]), np.ones(1))
    assert np.allclose(middle, [[32, 24 + 0.25 * 49]])
    flow, _ = camera_tracks(preset_camera(3, H, W, zoom=4.0), H, W)
    rounded(flow[2], (X - 31.5) * 3, (Y - 23.5) * 3)
    rounded(flow[1], X - 31.5, Y - 23.5)
    flow, _ = camera_tracks(preset_camera(2, H, W, roll=90), H, W)
    rounded(flow[1], (Y - 23.5) - (X - 31.5), -(X - 31.5) - (Y - 23.5))  # right goes up
    assert visible[0].all() and not visible[4].all()
    still, visible = camera_tracks(preset_camera(3, H, W), H, W)
    assert still.abs().max() < 1e-5 and visible.all()
    for wrong in (dict(pan=2), dict(tilt=float("nan")), dict(zoom=0), dict(roll=1e9)):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected a number from"):
            preset_camera(3, H, W, **wrong)


def test_object_and_camera_together():
    """An object that moves by (6, 0) in the first picture, under a camera that moves it by -4: it is seen going 2."""
    depth = np.full((H, W), 6.0)
    camera = moving((0.2, 0, 0), (0.4, 0, 0))
    path = np.array([[20.0, 20], [23, 20], [26, 20]])
    (seen,) = camera_paths(camera, [path], depth)
    assert np.allclose(seen, [[20, 20], [21, 20], [22, 20]])
    with pytest.raises(ValueError, match="track 0: expected"):
        camera_paths(camera, [path[:2]], depth)
    condition = RegionWise(8, min_mask_ratio=0.0)
    flow, visible = camera_tracks(camera, H, W, depth)
    below = dense_control(condition, flow, visible, seed=1, brush=np.ones((H, W)))
    brush = np.zeros((H, W), bool)
    brush[14:28, 14:28] = True
    control = over(condition.draw([seen], brush, 3, H, W), below, brush)
    assert control[:, 2].all()
    assert torch.equal(control[-1, 0, 16:24, 16:24], torch.full((8, 8), 2.0))
    outside = ~torch.from_numpy(brush)
    assert torch.equal(control[:, :, outside], below[:, :, outside])
    kept = (below[-1, 0] != 0).float().mean()
    assert 0.05 < kept < 0.3 and below[-1, 0].unique().numel() == 2  # 15 % of the regions, at the true flow


@pytest.mark.parametrize("condition", [RegionWise(), GaussianFiltered(), DenseFlow()], ids=repr)
def test_any_condition_takes_dense_tracks(condition):
    flow, visible = camera_tracks(preset_camera(4, H, W, pan=0.2), H, W)
    control = dense_control(condition, flow, visible, 3, np.ones((H, W)))
    assert control.shape == (4, 3, H, W) and control[1:, :2].any() and control.isfinite().all()
    assert torch.equal(control, dense_control(condition, flow, visible, 3, np.ones((H, W))))
    if isinstance(condition, DenseFlow):
        assert torch.equal(control[:, :2], flow) and torch.equal(control[:, 2], visible.float())
    else:
        assert control[:, 2].all() and not torch.equal(control, dense_control(condition, flow, visible, 4))
    part = np.zeros((H, W))
    part[10:20] = 1
    part = dense_control(condition, flow, visible, 3, part)
    if not isinstance(condition, GaussianFiltered):
        assert not part[:, :2, 20:].any()
