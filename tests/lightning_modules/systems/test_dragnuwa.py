"""DragNUWA 1.5: recorded numbers of the original, its file, its control in closed form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conditions.dragnuwa import drags, spread
from lightning_modules.released.base import read_released
from lightning_modules.systems.dragnuwa import DragNUWA, Quirks, Settings, released_drags
from remoco.common.errors import UserError
from remoco.released import convert
from tests.support.systems import compared, dragnuwa, recorded_set
from tests.support.systems.files import DRAGNUWA, dragnuwa_state, drawing, write_dragnuwa

SMALL = Settings(size=(64, 128), frames=3, steps=2)


@pytest.mark.parametrize("name", ["control", "net_wide", pytest.param("net_full_topology", marks=pytest.mark.slow)])
def test_recorded_outputs_of_the_original(shared, name):
    recorded = recorded_set(shared / "systems" / "dragnuwa" / f"{name}.json")
    with torch.no_grad():
        found = list(compared(recorded, dragnuwa))
    assert not [each for each in found if not each.well]
    assert {each.name.split("/")[1][:3] for each in found if each.difference is None} <= {"in."}
    assert sum(each.difference is not None for each in found) >= 12


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_dragnuwa(tmp_path_factory.mktemp("dragnuwa"))


@pytest.fixture(scope="module")
def system(file):
    return DragNUWA.load(str(file), settings=SMALL)


def test_a_released_file_samples_the_drawing(system):
    global_state = torch.random.get_rng_state()
    told = []
    frames = system(drawing(), 7, lambda step, x, denoised: told.append(step))
    assert frames.shape == (3, 3, 64, 128) and frames.dtype == torch.float32
    assert frames.abs().max() <= 1 and frames.isfinite().all() and told == [0, 1]
    assert torch.equal(frames, system(drawing(), 7))
    assert not torch.equal(frames, system(drawing(), 8))
    assert not torch.equal(frames, system(drawing(tracks=1), 7))  # the control counts
    assert torch.equal(global_state, torch.random.get_rng_state())
    assert "64 x 128, 3 frames, 2 steps" in system.protocol


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("model.diffusion_model.flow_blocks.1.2.weight"), "1 missing: flow_blocks.1.2.weight"),
        (lambda s: s.update(unknown=torch.zeros(1)), "1 unknown: unknown"),
        (lambda s: s.update({"guassian_filter.weight": torch.zeros(2, 1, 99, 99)}), "guassian_filter"),
        (lambda s: s.update({"guassian_filter.weight": torch.ones(2, 1, 199, 199)}), "another filter"),
        (lambda s: s.update({"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}), "NaN"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, change, said):
    state = dragnuwa_state()
    change(state)
    with pytest.raises(UserError, match=said) as caught:
        DragNUWA.load(str(write_dragnuwa(tmp_path, state)))
    assert "\n" not in str(caught.value)


def test_files_of_the_two_systems_are_told_apart(tmp_path, file):
    other = dataclasses.replace(DRAGNUWA, control_channels=3)
    path = write_dragnuwa(tmp_path, dragnuwa_state(other))
    with pytest.raises(UserError, match="has 3 channels, expected DragNUWA's 2"):
        DragNUWA.load(str(path))
    with pytest.raises(UserError, match="2 channels, expected 3"):
        read_released(str(file), DRAGNUWA.lora_rank)
    with pytest.raises(UserError, match="2 channels, expected 3"):
        convert(str(file), str(tmp_path / "converted"), head_channels=DRAGNUWA.head_channels)
    assert not (tmp_path / "converted").exists()


def test_frames_must_be_multiples_of_64(system):
    with pytest.raises(UserError, match="width is 100, expected a multiple of 64"):
        DragNUWA(system.network, system.vae, system.image_encoder, settings=Settings(size=(64, 100)))


def test_steps_lie_at_the_moving_point():
    paths = torch.tensor([[[10.0, 5.0], [13.7, 5.5], [13.7, 9.0]], [[40.0, 20.0], [70.0, 20.0], [71.0, 20.0]]])
    found = drags(paths, 32, 64)
    assert found.at[:, 0].tolist() == [[10, 5], [13, 5]]
    assert torch.allclose(found.step[:, 0], torch.tensor([[3.7, 0.5], [0.0, 3.5]]))
    assert found.at[0, 1].tolist() == [40, 20] and found.step[:, 1].tolist() == [[30, 0], [0, 0]]  # it has left


def test_a_later_track_overwrites_and_gaussians_add_up():
    same = torch.tensor([[[8.0, 8.0], [9.0, 8.0]], [[8.0, 8.0], [8.0, 12.0]], [[20.0, 8.0], [22.0, 8.0]]]).double()
    found = drags(same, 24, 32)
    assert found.step[0].tolist() == [[0, 0], [0, 4], [2, 0]]
    field = spread(found, 24, 32, 199, 5.0)
    assert field.shape == (2, 2, 24, 32) and not field[0].any()
    y, x = np.mgrid[:24, :32]
    for channel, (px, value) in enumerate([(20, 2.0), (8, 4.0)]):
        expected = value * np.exp(-((x - px) ** 2 + (y - 8) ** 2) / 50)
        np.testing.assert_allclose(field[1, channel].numpy(), expected, atol=1e-12)
    assert not spread(found, 24, 32, 5, 5.0)[1, 0, :, :17].any()  # beyond the kernel


def test_whole_pixels_are_a_quirk():
    tracks, canvas = [np.array([[250.9, 150.9]]), np.array([[100.9, 100.9], [300.0, 200.0]])], (320, 576)
    released = released_drags(tracks, canvas, (64, 64), 5)
    assert released.at[0].tolist() == [[27, 30], [11, 20]]
    assert torch.allclose(released.step[:, 0], torch.full((4, 2), 0.25))  # a click moves
    corrected = released_drags(tracks, canvas, (64, 64), 5, Quirks.corrected())
    assert not corrected.step[:, 0].any()
    assert corrected.step[:, 1].sum(0).tolist() == pytest.approx([199.1 / 9, 99.1 / 5])
    assert released.step[:, 1].sum(0).tolist() == pytest.approx([33 - 11, 40 - 20])


def test_no_tracks_is_one_line(system):
    with pytest.raises(UserError, match="at least one track"):
        system.control(dataclasses.replace(drawing(), tracks=[]))
