"""Plain scenes: pairs with one first frame, exact tracks, objects that stand out."""

import numpy as np
import pytest

from datamodules import SpritesDataModule
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import render, tracks
from remoco.common.errors import UserError

SIZE = (8, 64, 64)


@pytest.mark.parametrize("number", range(12))
def test_tracks_are_exact_and_objects_stay(number):
    """A pixel keeps its colour along its track; the path is as long as promised and ends inside the frame."""
    scene = plain_scene([0, number], [1, number], *SIZE)
    video, (flow, visible) = render(scene), tracks(scene)
    thing = scene.layers[1]
    y, x = np.mgrid[:64, :64]
    inside = thing.outline(*thing.motion.to_layer(0, x, y)) < -1.5
    path = thing.motion.centre - thing.motion.centre[:1]
    assert 0.25 * 64 <= np.linalg.norm(path[-1]) <= 0.6 * 64
    assert np.all((thing.motion.centre[-1] > 0) & (thing.motion.centre[-1] < 63))
    assert np.allclose(flow[:, :, inside], path[:, :, None], atol=1e-4)
    assert not flow[:, :, thing.outline(*thing.motion.to_layer(0, x, y)) > 0].any()
    for t in range(1, 8):
        seen = inside & visible[t]
        to_x, to_y = (np.rint(v[seen] + flow[t, i][seen]).astype(int) for i, v in enumerate((x, y)))
        moved = video[t][:, np.clip(to_y, 0, 63), np.clip(to_x, 0, 63)].astype(int)
        assert np.abs(moved - video[0][:, seen]).max() < 12  # a pixel's rounding along the shading


def test_a_pair_shares_the_first_frame_and_not_the_motion():
    one, other = plain_scene([0, 5], [0, 10, 1], *SIZE), plain_scene([0, 5], [0, 11, 1], *SIZE)
    assert np.array_equal(render(one)[0], render(other)[0])
    assert not np.array_equal(render(one)[-1], render(other)[-1])
    assert not np.array_equal(render(one)[0], render(plain_scene([0, 6], [0, 10, 1], *SIZE))[0])


def test_the_set_has_pairs_and_a_folder_of_its_own(tmp_path):
    options = dict(root=str(tmp_path), clips=4, val_clips=4, frames=4, height=64, width=64, num_workers=0)
    data = SpritesDataModule(scene="plain", **options)
    assert data.folder != SpritesDataModule(**options).folder
    data.prepare_data()
    data.setup()
    first = [data.val_set[number]["first_frame"].numpy() for number in range(4)]
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[2], first[3])
    assert not np.array_equal(first[0], first[2])
    with pytest.raises(UserError, match="data.scene=flat: expected one of textured, plain"):
        SpritesDataModule(scene="flat", **options)
