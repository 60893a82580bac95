"""Varied scenes: pairs with one first frame, exact tracks, cameras and objects that move in some clips only."""

import numpy as np

from datamodules import SpritesDataModule
from datamodules.scenes.clips import scene_of
from datamodules.scenes.scene import render, tracks
from datamodules.scenes.varied import varied_scene
from datamodules.shards import ClipShape

SIZE = (8, 64, 64)


def test_a_pair_shares_the_first_frame_and_not_the_motion():
    one, other = (scene_of(ClipShape(*SIZE, 8.0), [0, 1, number], "varied") for number in (10, 11))
    assert np.array_equal(render(one)[0], render(other)[0])
    assert not np.array_equal(render(one)[-1], render(other)[-1])


def test_some_things_move_and_what_does_not_stays_on_the_background():
    cameras, objects, counts = [], [], set()
    for number in range(24):
        scene = varied_scene([1, number], [2, number], *SIZE)
        background, *things = scene.layers
        cameras.append(bool(np.ptp(background.motion.centre, axis=0).any() or np.ptp(background.motion.scale)))
        counts.add(len(things))
        own = []
        for thing in things:
            motion = thing.motion
            assert np.all((motion.centre[0] > 0) & (motion.centre[0] < 63)) and motion.scale[0] == 1
            placed = np.array([background.motion.to_layer(t, *motion.centre[t]) for t in range(8)])
            own.append(bool(np.abs(placed - placed[0]).max() > 1e-6))
            if own[-1]:
                assert 0.2 * 64 <= np.linalg.norm(motion.centre[-1] - motion.centre[0]) <= 0.6 * 64
        assert any(own)
        objects += own
    assert counts == {1, 2, 3} and 6 <= sum(cameras) <= 18 and 0.6 < np.mean(objects) < 1


def test_tracks_are_exact():
    """Where the background is seen it has the colours of frame 1, but for what rounding to pixels does to a texture."""
    scene = varied_scene([1, 3], [2, 3], *SIZE)
    video, (flow, visible) = render(scene).astype(int), tracks(scene)
    y, x = np.mgrid[:64, :64]
    for t in (3, 7):
        to_x, to_y = (
            np.rint(v[visible[t]] + flow[t, i][visible[t]]).astype(int).clip(0, 63) for i, v in enumerate((x, y))
        )
        moved, start = video[t][:, to_y, to_x], video[0][:, visible[t]]
        assert np.abs(moved - start).mean() < 0.5 * np.abs(video[t][:, visible[t]] - start).mean()


def test_the_set_has_a_folder_of_its_own(tmp_path):
    options = dict(root=str(tmp_path), clips=2, val_clips=2, frames=4, height=64, width=64, num_workers=0)
    folders = {SpritesDataModule(scene=scene, **options).folder for scene in ("plain", "textured", "varied")}
    assert len(folders) == 3
    data = SpritesDataModule(scene="varied", **options)
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.val_set[0]["first_frame"], data.val_set[1]["first_frame"])
