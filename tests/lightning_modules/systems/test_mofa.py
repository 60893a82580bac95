"""MOFA-Video: recorded numbers of the original, its quirks, splatting and control in closed form, its files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.bases.sprites.base import Sprites
from lightning_modules.systems.encoder_copy import Joined
from lightning_modules.systems.files import WEIGHTS, fit
from lightning_modules.systems.mofa import MOFAVideo
from lightning_modules.systems.mofa.cmp import CMP
from lightning_modules.systems.mofa.control import SIDE, dense_flow, group_of, sparse_of
from lightning_modules.systems.mofa.network import FlowControlledEncoder
from lightning_modules.systems.mofa.system import CMP_FILE, Settings
from lightning_modules.systems.quirks import Quirks
from lightning_modules.systems.splatting import average_splat
from remoco.common.errors import UserError
from tests.support.systems import compared, mofa, recorded_set
from tests.support.systems.files import drawing, svd_folder, write_mofa
from tests.support.systems.svd import networks

SMALL = Settings(size=(64, 128), frames=3, steps=2)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("net_two_layers", "control", "pipeline")]


@pytest.mark.parametrize("name", ["splat", "cmp", "net_wide", *SLOW])
def test_recorded_outputs_of_the_original(shared, name):
    recorded = recorded_set(shared / "systems" / "mofa" / f"{name}.json")
    with torch.no_grad():
        found = list(compared(recorded, mofa))
    assert not [each for each in found if not each.well]
    assert not [each for each in found if each.reason and "/out" in each.name]
    assert sum(each.difference is not None for each in found) >= 4


def test_the_full_sizes_are_the_released_files():
    """683 tensors and 694.3 M parameters; CMP 455 and 28.6 M."""
    with torch.device("meta"):
        copy, sparse = FlowControlledEncoder(Sprites("full", latents="vae").layout().unet.config), CMP()
    counts = [
        (len(state), sum(t.numel() for t in state.values())) for state in (copy.state_dict(), sparse.state_dict())
    ]
    assert [count for count, _ in counts] == [683, 455]
    assert [round(values / 1e5) for _, values in counts] == [6943, 286]
    assert copy.state_dict()["flow_encoder.zeroconvs.2.weight"].shape == (1280, 1280, 1, 1)


@torch.no_grad()
def test_each_quirk_of_the_network_moves_the_prediction_as_recorded(shared):
    recorded = recorded_set(shared / "systems" / "mofa" / "net_wide.json")
    unet, copy = networks(recorded, FlowControlledEncoder)
    clips = [recorded.input(f"in.{name}") for name in ("sample", "timestep", "image_embedding", "ids")]
    maps = copy.maps(recorded.input("in.first_frame"), recorded.input("in.flow"))

    def moved(name="out.unet", maps=maps, **quirks):
        joined = Joined(unet, copy, dataclasses.replace(Quirks(), **quirks))
        found = joined(*clips, copy(*clips, maps))
        joined.remove()
        return (found - recorded.recorded[name]).abs().max().item()

    fact = recorded.spec["facts"]["one batch vs one by one, max abs"]
    assert moved(context_order="clip_pixel") == pytest.approx(fact, abs=1e-9)
    assert moved("out.unet.one_by_one", context_order="clip_pixel") < 1e-9
    assert moved(residual_times="once") == pytest.approx(1.44, abs=0.01)  # the notes have up to 1.8
    assert 5e-4 < moved(maps=[*maps[:-1], None]) < 3e-3  # the last map once instead of twice: as noted


def test_what_lands_is_averaged():
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]).double()
    flow = torch.zeros(1, 2, 1, 4).double()
    assert torch.allclose(average_splat(x, flow), x, atol=1e-6)
    flow[0, 0, 0] = torch.tensor([1.0, 0.0, 0.5, 9.0])
    found = average_splat(x, flow)[0, 0, 0]
    # 1 and 2 share a pixel, 3 gives half to two places, 4 is lost, and nothing is where 1 was
    assert found.tolist() == pytest.approx([0, 1.5, 3, 3], abs=1e-5)
    flow = torch.full((1, 2, 3, 3), -0.25).double()
    found = average_splat(torch.arange(9.0).double().view(1, 1, 3, 3), flow)
    corner = (0 * 0.75 * 0.75 + 1 * 0.25 * 0.75 + 3 * 0.25 * 0.75 + 4 * 0.25 * 0.25) / (0.75 + 0.25) ** 2
    assert found[0, 0, 0, 0].item() == pytest.approx(corner, abs=1e-5)


def test_displacements_are_whole_pixels_from_the_start_and_add_up():
    points = np.array([[[10.9, 20.2], [13.2, 19.9]], [[10.0, 20.0], [10.4, 26.0]], [[5.0, 5.0], [5.9, 5.0]]])
    found = group_of(points).sparse
    assert found.shape == (1, 4, SIDE, SIDE)
    assert found[0, :, 20, 10].tolist() == [2, 6, 2, 2]
    assert found[0, :, 5, 5].tolist() == [0, 0, 1, 1]  # under a pixel it is none
    exact = group_of(points, whole_pixels=False).sparse
    assert exact[0, :2, 20, 10].tolist() == pytest.approx([2.7, 5.7])
    assert exact[0, 0, 5, 5].item() == pytest.approx(0.9)


def test_tracks_on_the_brush_are_a_group_of_their_own():
    brush = np.zeros((64, 128))
    brush[:, :64] = 255
    tracks = [np.array([[10.0, 10.0], [30.0, 10.0]]), np.array([[100.0, 40.0], [100.0, 20.0]])]
    sparse = sparse_of(tracks, brush, (64, 128), 2)
    assert sparse.inside.points[0, 0].tolist() == [30, 60] and sparse.outside.points[0, 0].tolist() == [300, 240]
    asked = []

    def densify(image, displacements):
        asked.append(displacements)
        return torch.full((1, 2, SIDE, SIDE), 3.0 * len(asked)).double()

    flow = dense_flow(sparse, torch.zeros(1, 3, 64, 128).double(), densify)
    assert flow.shape == (1, 2, 64, 128) and len(asked) == 2
    assert flow[0, :, 30, 10].tolist() == pytest.approx([3 * 128 / SIDE, 3 * 64 / SIDE])
    assert flow[0, :, 30, 100].tolist() == pytest.approx([6 * 128 / SIDE, 6 * 64 / SIDE])
    alone = sparse_of(tracks, None, (64, 128), 2)
    assert alone.inside is None and len(alone.outside.points) == 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The three things that are needed, in their released layouts."""
    folder = tmp_path_factory.mktemp("mofa")
    svd_folder(folder / "svd", frames=25)
    return write_mofa(folder)


@pytest.fixture(scope="module")
def system(files):
    return MOFAVideo.load(str(files / "controlnet"), str(files), str(files / "svd"), settings=SMALL)


@pytest.mark.slow
def test_the_released_files_sample_the_drawing(system):
    state, told = torch.random.get_rng_state(), []
    flow = system.control(drawing())
    assert flow.shape == (2, 2, 64, 128) and flow.isfinite().all() and flow.abs().max() > 0
    system.control = lambda own: flow  # CMP is slow on a CPU
    frames = system(drawing(), 3, lambda step, x, denoised: told.append(step))
    assert frames.shape == (3, 3, 64, 128) and frames.isfinite().all() and frames.abs().max() <= 1 and told == [0, 1]
    assert torch.equal(frames, system(drawing(), 3)) and not torch.equal(frames, system(drawing(), 4))
    system.control = lambda own: torch.zeros_like(flow)
    assert not torch.equal(frames, system(drawing(), 3))
    assert torch.equal(state, torch.random.get_rng_state())
    assert "MOFA-Video: 64 x 128" in system.protocol and "context_order pixel_clip" in system.protocol


def test_other_files_are_one_line(tmp_path, files):
    controlnet, svd = str(files / "controlnet"), str(files / "svd")
    state = load_file(files / "controlnet" / WEIGHTS)
    state.pop("flow_encoder.zeroconvs.2.weight")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"not the weights of MOFA-Video, nothing loaded: 1 missing \(flow_encoder"):
        MOFAVideo.load(str(tmp_path), str(files), svd, settings=SMALL)
    with pytest.raises(UserError, match=r"not the weights of CMP, .* missing .* unknown"):
        MOFAVideo.load(controlnet, str(tmp_path / WEIGHTS), svd, settings=SMALL)
    with pytest.raises(UserError, match=r"for 14 frames \(SVD\), MOFA-Video needs one for 25 \(SVD-XT\)"):
        MOFAVideo.load(controlnet, str(files), str(svd_folder(tmp_path / "svd")), settings=SMALL)
    with pytest.raises(UserError, match="MOFA-Video: width is 120, expected a multiple of 64"):
        MOFAVideo.load(controlnet, str(files), svd, settings=Settings(size=(64, 120), frames=25))
    (tmp_path / CMP_FILE).write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read .* as weights"):
        MOFAVideo.load(controlnet, str(tmp_path), svd, settings=SMALL)


def test_a_network_of_another_shape_does_not_fit():
    network = CMP()
    state = network.state_dict() | {"flow_decoder.head.bias": torch.zeros(200)}
    with pytest.raises(UserError, match=r"1 misshapen \(flow_decoder.head.bias\)"):
        fit(network, state, "x.pth", "CMP")
