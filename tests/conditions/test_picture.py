"""Pictures of a control, and the conditions as a YAML makes them."""

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from conditions import Condition, DenseFlow, DragNUWA, GaussianFiltered, RegionWise, control_picture, control_video
from conditions.picture import flow_colours

TRACKS = [[(20, 30), (50, 34)], [(70, 10), (72, 40)]]


def frame(height=64, width=96):
    return torch.from_numpy(np.random.default_rng(0).integers(60, 200, (3, height, width), dtype=np.uint8))


@pytest.mark.parametrize(
    "condition", [RegionWise(), GaussianFiltered(8, 0.95, 31, 4.0), DragNUWA(), DenseFlow()], ids=repr
)
@pytest.mark.parametrize("size", [(64, 96), (320, 512), (61, 97), (8, 8)])
def test_any_control_at_any_size(condition, size):
    image = frame(*size)
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(1, 1, 2, *size, generator=generator) * torch.linspace(0, 9, 3).view(1, 3, 1, 1, 1)
    control = condition(flow, torch.ones(1, 3, *size, dtype=torch.bool), torch.tensor([5]))[0]
    picture = control_picture(control, image)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, control_picture(control, image.float() / 127.5 - 1))


def test_the_strokes_show_where_they_are_and_nothing_elsewhere():
    image = frame()
    nothing = control_picture(RegionWise().draw([], None, 16, 64, 96), image)
    control = RegionWise().draw(TRACKS, None, 16, 64, 96)
    changed = (control_picture(control, image) != nothing).any(axis=2)
    assert changed[26:34, 16:24].mean() > 0.9  # the region around the first start
    assert changed[32:35, 47:50].mean() > 0.6 and changed[37:40, 71:74].mean() > 0.6  # heads of both paths
    assert changed[28:36, 30:45].any(axis=0).all()  # the first path, all along
    assert not changed[50:].any() and not changed[:, :14].any() and not changed[:, 80:].any()


def test_the_mask_shows():
    brush = np.zeros((64, 96), bool)
    brush[10:30, 10:40] = True
    image = torch.full((3, 64, 96), 128, dtype=torch.uint8)
    picture = control_picture(RegionWise().draw([], brush, 16, 64, 96), image).astype(int)
    assert (picture[12:28, 12:38].sum(2) > picture[40:, :].sum(2).max()).all()


def test_video_grows_into_the_picture():
    control, image = RegionWise().draw(TRACKS, None, 16, 64, 96), frame()
    video = control_video(control, image)
    assert video.shape == (16, 64, 96, 3)
    assert np.array_equal(video[-1], control_picture(control, image))
    lengths = [(video[i] != video[0]).any(axis=2).sum() for i in (1, 5, 10, 15)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_colours_turn_with_the_direction():
    flow = np.array([[[4.0, 0], [0, 4.0], [-4.0, 0], [0, -4.0]]])
    right, down, left, up = flow_colours(flow, 4.0)[0].round().astype(int).tolist()
    assert right == [255, 0, 0] and left == [0, 255, 255]
    assert down[1] == 255 and down[2] == 0 and up[2] == 255 and up[1] == 0


def test_wrong_shapes_are_named():
    control = torch.zeros(16, 3, 64, 96)
    with pytest.raises(ValueError, match="^control: "):
        control_picture(control[:, :2], frame())
    with pytest.raises(ValueError, match="^frame: "):
        control_picture(control, frame(32, 96))


def test_a_yaml_makes_a_condition_and_help_explains_it(capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--condition", type=Condition)
    arguments = ["--condition=conditions.RegionWise", "--condition.region_size=4", "--condition.visibility_rule=block"]
    made = parser.instantiate_classes(parser.parse_args(arguments)).condition
    assert made == RegionWise(4, visibility_rule="block")
    written = parser.parse_object({"condition": made.record()})
    assert parser.instantiate_classes(written).condition == made
    with pytest.raises(SystemExit):
        parser.parse_args(["--condition.help=conditions.GaussianFiltered"])
    text = " ".join(capsys.readouterr().out.split())
    assert "standard deviation of the Gaussian" in text and "r_min in [0, 1]" in text


def test_what_storage_rounds_off_is_not_drawn():
    """Where nothing was chosen but still background, its sixteenths of a pixel are not scaled up to a motion."""
    control = torch.zeros(4, 3, 32, 32)
    nothing = control_picture(control, frame(32, 32))
    control[1:, :2, 4:12, 4:12] = 1 / 16
    assert np.array_equal(control_picture(control, frame(32, 32)), nothing)
    control[1:, :2, 4:12, 4:12] = 1
    assert not np.array_equal(control_picture(control, frame(32, 32)), nothing)
