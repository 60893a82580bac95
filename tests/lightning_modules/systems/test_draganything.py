"""DragAnything: recorded numbers of the original, its quirks one by one, its files, what a drawing must have."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.bases.sprites.base import Sprites
from lightning_modules.bases.svd.clip import CLIP_MEAN, CLIP_STD
from lightning_modules.systems.draganything import (
    BLOB,
    ControlledEncoder,
    DragAnything,
    Quirks,
    Settings,
    blob_picture,
    drawn,
    put_blob,
    track_masks,
)
from lightning_modules.systems.encoder_copy import Joined
from lightning_modules.systems.files import WEIGHTS
from remoco.common.errors import UserError
from tests.support.systems import compared, draganything, recorded_set
from tests.support.systems.files import drawing, svd_folder, write_draganything
from tests.support.systems.svd import networks, pipeline

SMALL = Settings(size=(64, 128), frames=3, steps=2)
INPUTS = {"image", "ids", "timestep", "mask"}


@pytest.mark.parametrize(
    "name", ["control", "net_wide", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pipeline", "net_two_layers"))]
)
def test_recorded_outputs_of_the_original(shared, name):
    recorded = recorded_set(shared / "systems" / "draganything" / f"{name}.json")
    with torch.no_grad():
        found = list(compared(recorded, draganything))
    assert not [each for each in found if not each.well]
    left_out = {part for each in found if each.difference is None for part in each.name.split(".")}
    assert left_out & INPUTS and not any("out" in each.name.split("/")[1][:4] for each in found if each.reason)
    assert sum(each.difference is not None for each in found) >= 10


def test_the_full_size_is_the_released_files():
    """685 tensors, 685.0 M parameters, and the names that are the control's own."""
    with torch.device("meta"):
        copy = ControlledEncoder(Sprites("full", latents="vae").layout().unet.config)
    state = copy.state_dict()
    assert len(state) == 685 and round(sum(tensor.numel() for tensor in state.values()) / 1e5) == 6850
    assert state["controlnet_cond_embedding.blocks_feature.3.weight"].shape == (256, 160, 3, 3)
    assert state["controlnet_down_blocks.11.weight"].shape == (1280, 1280, 1, 1)


class Wide:
    """The wide set's networks and inputs, with one quirk switched."""

    def __init__(self, shared):
        self.recorded = recorded_set(shared / "systems" / "draganything" / "net_wide.json")
        self.unet, self.copy = networks(self.recorded, ControlledEncoder)
        names = ("sample", "timestep", "image_embedding", "ids")
        self.clips = [self.recorded.input(f"in.{name}") for name in names]
        heatmap, entity = (self.recorded.input(f"in.{name}").flatten(0, 1) for name in ("heatmap", "entity"))
        with torch.no_grad():
            self.maps = [self.copy.controlnet_cond_embedding.both(heatmap, entity), *[None] * 5]

    @torch.no_grad()
    def moved(self, name="out.unet", **quirks):
        """Largest difference from a recorded prediction."""
        joined = Joined(self.unet, self.copy, dataclasses.replace(Quirks(), **quirks))
        found = joined(*self.clips, self.copy(*self.clips, self.maps))
        joined.remove()
        return (found - self.recorded.recorded[name]).abs().max().item()


@pytest.fixture(scope="module")
def wide(shared):
    return Wide(shared)


@pytest.mark.slow
def test_the_order_of_the_context_moves_the_prediction_as_recorded(wide):
    fact = wide.recorded.spec["facts"]["one batch vs one by one, max abs"]
    assert wide.moved() < 1e-9
    assert wide.moved(context_order="clip_pixel") == pytest.approx(fact, abs=1e-9)
    assert wide.moved("out.unet.one_by_one", context_order="clip_pixel") < 1e-9


def test_residuals_added_once_move_the_prediction(wide):
    assert wide.moved(residual_times="once") == pytest.approx(1.65, abs=0.01)  # the other set's notes have 1.5


@pytest.fixture(scope="module")
def whole(shared):
    return recorded_set(shared / "systems" / "draganything" / "pipeline.json")


@pytest.fixture(scope="module")
def svd(whole):
    return pipeline(whole, ControlledEncoder, Quirks())


@pytest.fixture
def switched(whole, svd):
    """With some quirks switched."""

    def switch(**quirks):
        svd.quirks = dataclasses.replace(Quirks(), **quirks)
        return svd

    yield switch
    svd.quirks = Quirks()


@torch.no_grad()
def test_the_network_hears_constants_and_clip_sees_pixels_that_nobody_normalised(whole, svd, switched):
    image, noise = whole.input("in.image").numpy(), whole.input("in.augmentation_noise")
    assert torch.equal(svd.frame_conditioning(image, noise).ids, whole.recorded["out.added_time_ids"])
    svd = switched(time_ids="asked")
    svd.settings = dataclasses.replace(svd.settings, motion_bucket=180)  # as the call asked
    assert svd.frame_conditioning(image, noise).ids.tolist() == [[6, 180, 0.02]] * 2
    svd = switched(clip_normalised=True)
    pixels, recorded = svd.clip_pixels(image)[..., ::8, ::8], whole.recorded["out.clip_pixels"]
    assert recorded.min() > -0.1 and pixels.min() < -1
    mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    assert torch.allclose(pixels.double(), (recorded - mean) / std, atol=1e-4)
    moved = svd.frame_conditioning(image, noise).tokens - whole.recorded["out.image_embedding"]
    assert moved.abs().max() > 0.1


def test_an_entity_is_one_number(shared):
    recorded = recorded_set(shared / "systems" / "draganything" / "control.json")
    assert recorded.spec["cases"]["two_entities"]["all 160 channels equal"]
    masks = [recorded.recorded[f"two_entities.mask.{i}"].numpy() for i in range(2)]
    points, feature = recorded.recorded["two_entities.points"].numpy(), recorded.input("two_entities.feature")[0]
    vectors = {
        entity: drawn(points, masks, feature, Quirks(entity=entity)).vectors for entity in ("channel_0", "vector")
    }
    assert (vectors["channel_0"].std(1) == 0).all()
    assert (vectors["vector"][1:].std(1) > 0.01).all()


def test_a_vector_is_the_mean_of_neighbouring_channels():
    mask, points = np.full((64, 64), 255, np.uint8), np.full((1, 2, 2), 32.0)
    feature = torch.arange(320.0)[:, None, None].expand(-1, 8, 8)
    control = drawn(points, [mask], feature, Quirks(entity="vector"))
    assert torch.equal(control.vectors[1], torch.arange(160.0) * 2 + 0.5)
    assert not control.vectors[0].any()
    assert control.entity[0, 32, 32] == 1 and control.heatmap[0, 32, 32] > 250  # all covered: a radius of 50


def test_blobs_are_squeezed_at_the_border():
    blob = blob_picture()
    assert blob.shape == (BLOB, BLOB) and blob[100, 100] == 255 and blob[0, 99] == 0
    picture = np.zeros((64, 64), np.uint8)
    put_blob(picture, blob, 0, 32, 10)
    assert picture[:, :10].any() and not picture[:, 10:].any()
    assert 3 <= picture[32].argmax() <= 6  # the middle of what is left, not the point
    before = picture.copy()
    put_blob(picture, blob, 61, 80, 10)
    assert np.array_equal(picture, before)  # nothing of it is inside


def test_more_entities_than_a_byte_counts_have_their_own_vectors():
    size, count = (320, 576), 300
    at = np.array([(20.0 + 18 * (i % 30), 12.0 + 30 * (i // 30)) for i in range(count)])
    masks = []
    for x, y in at.astype(int):
        masks.append(np.zeros(size, np.uint8))
        masks[-1][y - 6 : y + 7, x - 6 : x + 7] = 255
    feature = torch.rand(320, 40, 72, generator=torch.Generator().manual_seed(0))
    control = drawn(at[:, None].repeat(2, 1), masks, feature)
    assert [control.entity[0, int(y), int(x)].item() for x, y in at] == list(range(1, count + 1))
    assert len(control.vectors) == count + 1


def test_a_mask_that_vanishes_is_one_line():
    mask = np.zeros((64, 64), np.uint8)
    mask[1, 1] = 255
    with pytest.raises(UserError, match="mask of track 0"):
        drawn(np.full((1, 2, 2), 9.0), [mask], torch.zeros(320, 8, 8))


def features(image):
    return image.float().mean() / 255 + torch.arange(320.0)[:, None, None].expand(
        -1, image.shape[1] // 8, image.shape[2] // 8
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return svd_folder(tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_draganything(tmp_path_factory.mktemp("draganything"))


@pytest.fixture(scope="module")
def system(base, weights):
    return DragAnything.load(str(weights), str(base), features, settings=SMALL)


def brushed(tracks=1):
    return drawing(tracks=tracks)


@pytest.mark.slow
def test_a_released_folder_samples_the_drawing(system):
    state, told = torch.random.get_rng_state(), []
    frames = system(brushed(), 3, lambda step, x, denoised: told.append(step))
    assert frames.shape == (3, 3, 64, 128) and frames.isfinite().all() and frames.abs().max() <= 1 and told == [0, 1]
    assert torch.equal(frames, system(brushed(), 3)) and not torch.equal(frames, system(brushed(), 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert "DragAnything: 64 x 128" in system.protocol and "entity channel_0" in system.protocol


def test_each_track_needs_a_mask(system):
    with pytest.raises(UserError, match="track 1 starts at .* where nothing is brushed, expected .* the 2 tracks"):
        system.control(brushed(tracks=2))
    asked = []

    def segment(image, start):
        asked.append(start.tolist())
        return np.ones(image.shape[:2])

    own = brushed(tracks=2)
    masks = track_masks(own, own.tracks, segment)
    assert asked == [[70.0, 60.0]] and masks[1].all() and 0 < (masks[0] > 0).sum() < masks[0].size


def test_a_brush_of_each_track_goes_before_what_is_connected():
    own = brushed()
    own.brush[20:30, 10:40], own.brush_ids = 7, [7]
    assert set(np.argwhere(track_masks(own, own.tracks, None)[0])[:, 0]) == set(range(20, 30))
    own.brush_ids = None
    assert set(np.argwhere(track_masks(own, own.tracks, None)[0])[:, 0]) == set(range(20, 45))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("controlnet_mid_block.bias"), r"1 missing \(controlnet_mid_block.bias\)"),
        (lambda s: s.update({"flow_encoder.zeroconvs.0.bias": torch.zeros(2)}), r"1 unknown \(flow_encoder"),
        (lambda s: s.update(conv_in=torch.zeros(2)), "1 unknown"),
        (lambda s: s.update({"conv_in.bias": torch.zeros(2)}), r"1 misshapen \(conv_in.bias\)"),
        (lambda s: s["conv_in.bias"].fill_(torch.inf), "conv_in.bias holds NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, base, weights, change, said):
    state = load_file(weights / WEIGHTS)
    change(state)
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=said) as caught:
        DragAnything.load(str(tmp_path), str(base), features)
    assert "\n" not in str(caught.value)


def test_svd_xt_is_refused_and_so_is_no_file(tmp_path, weights):
    other = svd_folder(tmp_path / "xt", frames=25)
    with pytest.raises(UserError, match=r"for 25 frames \(SVD-XT\), DragAnything needs one for 14"):
        DragAnything.load(str(weights), str(other), features)
    with pytest.raises(UserError, match="not found, expected diffusion_pytorch_model.safetensors"):
        DragAnything.load(str(tmp_path), str(other), features)
