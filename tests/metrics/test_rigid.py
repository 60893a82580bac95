"""Layers of scenes whose layers are known."""

import numpy as np
import torch

from datamodules.scenes.scene import Scene, random_scene, render, tracks
from metrics import farthest_objects, match_turned, rigid_layers

SIZE = (8, 64, 64)


def owners(scene: Scene) -> np.ndarray:
    """(H, W): the number of the layer that is seen in frame 1."""
    y, x = np.mgrid[: scene.height, : scene.width].astype(float)
    found = np.zeros(x.shape, dtype=int)
    for number, layer in enumerate(scene.layers):
        found[layer.covers(0, x, y)] = number
    return found


def stored(flow: np.ndarray) -> torch.Tensor:
    """As it comes from a shard: in sixteenths of a pixel."""
    return torch.from_numpy(np.rint(flow * 16) / 16)


def test_layers_are_the_scenes_own():
    found_objects = 0
    for seed in range(5):
        scene = random_scene([7, seed], *SIZE)
        owner = owners(scene)
        layers = rigid_layers(stored(tracks(scene)[0]))
        numbers = [int(np.bincount(owner[layer.mask.numpy()]).argmax()) for layer in layers]
        assert numbers[0] == 0 and len(set(numbers)) == len(numbers)
        for number, (mask, turn, shift) in zip(numbers, layers):
            assert np.array_equal(mask.numpy(), owner == number)
            motion = scene.layers[number].motion
            for t in (1, 7):
                rows, columns = np.nonzero(owner == number)
                x, y = motion.to_image(t, *motion.to_layer(0, columns.astype(float), rows.astype(float)))
                sent = torch.tensor(np.stack([columns, rows], 1), dtype=torch.float64) @ turn[t].T + shift[t]
                assert np.abs(sent.numpy() - np.stack([x, y], 1)).max() < 1 / 16
        found_objects += len(layers) - 1
    assert found_objects >= 8


def test_the_object_that_goes_farthest_in_sight():
    """Two squares over a panning background; the faster one is hidden after frame 1 in the second clip."""
    flow = torch.full((2, 4, 2, 64, 64), 1.0)
    flow[:, 0] = 0
    way = torch.arange(4.0)
    flow[:, :, 0, 10:22, 10:22], flow[:, :, 1, 10:22, 10:22] = 5 * way[:, None, None], 0
    flow[:, :, 0, 40:52, 20:30], flow[:, :, 1, 40:52, 20:30] = 0, -2 * way[:, None, None]
    visibility = torch.ones(2, 4, 64, 64, dtype=torch.bool)
    visibility[1, 1:, 10:22, 10:22] = False
    masks, paths, turns = farthest_objects(flow, visibility)
    assert masks.sum((1, 2)).tolist() == [144, 120] and masks[0, 15, 15] and masks[1, 45, 25]
    expected = torch.stack([torch.stack([5 * way, 0 * way], 1), torch.stack([0 * way, -2 * way], 1)]).double()
    torch.testing.assert_close(paths, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(turns, torch.eye(2).double().expand(2, 4, 2, 2), atol=1e-9, rtol=0)


def test_nothing_moves_alone():
    masks, paths, _ = farthest_objects(torch.zeros(1, 3, 2, 32, 32), torch.ones(1, 3, 32, 32, dtype=torch.bool))
    assert not masks.any() and not paths.any()


def test_a_turning_object_is_found():
    """In real clips, to a tenth of how far it goes, which is what a clip that stands still is off by."""
    own, still = [], []
    for seed in range(12):
        scene = random_scene([7, seed], *SIZE)
        video, (flow, visibility) = torch.from_numpy(render(scene)), tracks(scene)
        masks, paths, turns = farthest_objects(stored(flow)[None], torch.from_numpy(visibility)[None])
        if not masks.any():
            continue
        for clip, errors in ((video, own), (video[:1].expand_as(video), still)):
            found = match_turned(clip, video[0], masks[0], turns[0])
            errors.append(torch.linalg.vector_norm(found - paths[0], dim=1)[1:].mean().item())
    assert len(own) >= 10 and np.mean(own) < 0.1 * np.mean(still) and np.median(own) < 1
