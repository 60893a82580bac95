"""A drawing cut at a frame: its control is the whole one's from there on, counted from that frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conditions import DenseFlow, GaussianFiltered, RegionWise
from conditions.camera import preset_camera, seen_depth
from datamodules.drawings import Drawing
from datamodules.drawings.cut import cut
from datamodules.drawings.motion import SceneMotion
from remoco.common.errors import UserError

FRAMES, START, STOP = 13, 5, 11
HEIGHT, WIDTH = 48, 64
IMAGE = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
TRACKS = [np.array([[20.3, 20.7], [30.0, 24.0], [26.0, 33.0]]), np.array([[44.0, 12.0]])]
STILL = SceneMotion()


def block(top, left, side=8):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def control(drawing, frames, condition=RegionWise(), motion=STILL):  # noqa: B008
    return motion.control(condition, drawing, frames, 8.0, 0)[0]


def rebased(whole, drawing, index, pixels):
    """The whole clip's control of what a track moves, where that is at START and counted from there."""
    path = drawing.paths(FRAMES)[index]
    across, down = (np.floor(path[START]) - np.floor(path[0])).astype(int)
    expected = torch.zeros(STOP - START, 3, HEIGHT, WIDTH)
    y, x = np.nonzero(pixels)
    expected[:, :2, y + down, x + across] = whole[START:STOP, :2, y, x] - whole[START, :2, y, x]
    expected[:, 2, y + down, x + across] = whole[START:STOP, 2, y, x]
    return expected


@pytest.mark.parametrize("speed", [
    {}, {"times": [np.array([0.1, 0.5, 0.8]), None]}, {"eases": ["in and out", None]},
])  # fmt: skip
@pytest.mark.parametrize("brushed", ["none", "own", "ids"])
def test_a_cut_control_is_the_slice_counted_from_its_first_frame(speed, brushed):
    masks = [block(14, 16, 12), block(6, 40, 9)]
    brush = {"none": None, "own": np.stack(masks), "ids": (3 * masks[0] + 7 * masks[1]).astype(np.uint8)}[brushed]
    ids = [3, 7] if brushed == "ids" else None
    drawing = Drawing(IMAGE, TRACKS, brush, brush_ids=ids, **speed)
    whole = control(drawing, FRAMES)
    part, motion = cut(drawing, STILL, FRAMES, START, STOP)
    found = control(part, STOP - START, motion=motion)
    regions = [block(16, 16), block(8, 40)]
    regions = regions if brush is None else [mask | region for mask, region in zip(masks, regions)]
    expected = sum(rebased(whole, drawing, index, pixels) for index, pixels in enumerate(regions))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert found[:, :2].abs().max() > 5 and not found[0, :2].any()
    assert np.array_equal(part.image, IMAGE) and len(part.tracks[0]) == STOP - START


@pytest.mark.parametrize("condition", [RegionWise(16), GaussianFiltered(8, kernel_size=9, sigma=2.0), DenseFlow(8)])
def test_of_any_condition_that_is_local_in_time(condition):
    """Along whole pixels a shift of the picture is a shift of the control."""
    drawing = Drawing(IMAGE, [np.array([[20.0, 20.0], [32.0, 20.0]])])  # a pixel a frame
    whole = control(drawing, FRAMES, condition)
    found = control(cut(drawing, STILL, FRAMES, START, STOP)[0], STOP - START, condition)
    shifted = torch.roll(whole[: STOP - START], START, dims=3)  # even motion: the same from any frame on
    torch.testing.assert_close(found, shifted, rtol=0, atol=1e-4)
    assert found[-1, 0].max() > 4


def test_a_cut_at_the_start_and_a_drawing_at_rest_stay():
    drawing = Drawing(IMAGE, [*TRACKS], block(14, 16, 12))
    part, motion = cut(drawing, STILL, FRAMES, 0, FRAMES)
    torch.testing.assert_close(control(part, FRAMES, motion=motion), control(drawing, FRAMES), rtol=0, atol=1e-5)
    rest = Drawing(IMAGE, [TRACKS[1]], block(6, 40, 9))
    part, _ = cut(rest, STILL, FRAMES, START, STOP)
    assert torch.equal(control(part, STOP - START), control(rest, STOP - START))
    assert np.array_equal(part.brush, rest.brush)


def test_a_brush_goes_with_the_nearest_track_and_holds_to_the_border():
    right, down = np.array([[12.0, 12.0], [36.0, 12.0]]), np.array([[50.0, 30.0], [50.0, 42.0]])
    brush = block(8, 8) + block(26, 46) + block(40, 0)
    part, _ = cut(Drawing(IMAGE, [right, down], brush), STILL, FRAMES, 6, FRAMES)
    assert part.brush[8:16, 20:28].all() and part.brush[32:40, 46:54].all()  # 12 and 6 px on
    assert not part.brush[8:16, 8:16].any()
    everywhere = Drawing(IMAGE, [right], np.ones((HEIGHT, WIDTH), np.uint8))
    assert cut(everywhere, STILL, FRAMES, 6, FRAMES)[0].brush.all()
    alone = Drawing(IMAGE, [], brush)
    assert np.array_equal(cut(alone, STILL, FRAMES, 6, FRAMES)[0].brush, alone.brush)


def test_a_track_that_is_outside_is_left_out_with_its_brush_and_comes_back():
    away = np.array([[50.0, 20.0], [90.0, 20.0], [40.0, 20.0]])
    drawing = Drawing(IMAGE, [away, TRACKS[0]], np.stack([block(16, 46), block(16, 16), block(40, 40)]))
    part, _ = cut(drawing, STILL, FRAMES, 6, STOP)
    assert len(part.tracks) == 1 and part.brush.shape == (2, HEIGHT, WIDTH)
    assert np.array_equal(part.brush[1], block(40, 40))  # held, and still is
    assert len(cut(drawing, STILL, FRAMES, 12, FRAMES)[0].tracks) == 2


@pytest.mark.parametrize("preset", [{"pan": 0.3, "zoom": 1.3}, {"roll": 20.0, "tilt": -0.2}])
def test_a_camera_continues_from_the_frame(preset):
    """What it shows of a scene does not depend on where it was cut, nor do objects on their paths."""
    motion = SceneMotion(preset)
    whole = preset_camera(FRAMES, HEIGHT, WIDTH, **preset)
    drawing = Drawing(IMAGE, [TRACKS[0]])
    part, moving = cut(drawing, motion, FRAMES, START, STOP)
    camera = moving.camera(STOP - START, HEIGHT, WIDTH)
    points, depth = np.random.default_rng(2).uniform(10, 40, (20, 2)), np.ones(20)
    at_start = whole.seen(START, points, depth)[0]
    path = drawing.paths(FRAMES)[0]
    for index, frame in enumerate(range(START, STOP)):
        np.testing.assert_allclose(
            camera.seen(index, at_start, depth)[0], whole.seen(frame, points, depth)[0], atol=1e-9
        )
        seen = camera.seen(index, part.paths(STOP - START)[0][index : index + 1], depth[:1])[0]
        np.testing.assert_allclose(seen, whole.seen(frame, path[frame : frame + 1], depth[:1])[0], atol=1e-9)
    twice = cut(part, moving, STOP - START, 2, 4)[1].camera(2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(twice.poses, whole.poses[START + 2 : START + 4])


def travelling(step: float) -> SceneMotion:
    """A camera that goes to the right by so much a frame, with a lens as wide as the picture."""
    poses = np.tile(np.eye(3, 4), (FRAMES, 1, 1))
    poses[:, 0, 3] = -step * np.arange(FRAMES)
    return SceneMotion(poses=(np.tile([1.0, 4 / 3, 0.5, 0.5], (FRAMES, 1)), poses), depth=np.full((HEIGHT, WIDTH), 4.0))


def test_a_depth_is_that_of_the_frame():
    motion = travelling(0.25)  # 64 / 4 * 0.25 = 4 px a frame
    motion.depth[20:28, 20:28] = 2.0  # and 8
    part, moving = cut(Drawing(IMAGE, []), motion, FRAMES, 2, 6)
    near = moving.depth == 2
    assert near[20:28, 4:12].all() and near.sum() == 64 and (moving.depth[~near] == 4).all()
    assert moving.camera(4, HEIGHT, WIDTH).seen(1, np.array([[30.0, 9.0]]), np.array([4.0]))[0] == pytest.approx(
        np.array([[26.0, 9.0]])
    )
    still = replace(motion, poses=(motion.poses[0], motion.poses[1][[0] * FRAMES]))
    assert np.array_equal(cut(part, still, FRAMES, 5, 9)[1].depth, motion.depth)


def test_what_cannot_be_cut_is_one_line():
    with pytest.raises(UserError, match="^poses: a drawing over them keeps the first frame's depth"):
        cut(Drawing(IMAGE, TRACKS), travelling(0.1), FRAMES, 2, 6)
    motion = travelling(2.0)
    with pytest.raises(UserError, match="^poses: frame 7 shows nothing of the first one"):
        seen_depth(motion.camera(FRAMES, HEIGHT, WIDTH), 6, motion.depth)


def test_a_driving_video_is_followed_from_the_frame(monkeypatch):
    video = np.random.default_rng(3).integers(0, 255, (FRAMES, 3, HEIGHT, WIDTH), np.uint8)
    asked = []
    monkeypatch.setattr(
        "datamodules.drawings.motion.first_frames",
        lambda source, frames, *rest: (asked.append(frames), video[:frames])[1],
    )
    motion = SceneMotion(driving="video.mp4", tracker=lambda frames: frames)
    _, moving = cut(Drawing(IMAGE, []), motion, FRAMES, START, STOP)
    assert np.array_equal(moving.followed(STOP - START, 8.0, HEIGHT, WIDTH), video[START:STOP]) and asked == [STOP]
