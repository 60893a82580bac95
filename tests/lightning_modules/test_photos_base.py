"""The base of photographs: it corrects what was filled in the lowest layer, in all frames alike."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_modules.bases import Photos, VideoBase
from lightning_modules.conditioning import Conditioning
from lightning_modules.control.fill import filled
from lightning_modules.control.pixels import moved_pixels
from lightning_modules.control.warp import Warp
from lightning_modules.process.base import Denoiser
from remoco.common.errors import UserError

SIDE, FRAMES = 64, 3


@pytest.fixture(scope="module")
def base():
    made = Photos(components=70, corrected=5)
    made.build(torch.float64)
    made.fit([draw(4, 3, SIDE, SIDE).cumsum(2).tanh() for _ in range(2)])
    with torch.no_grad():
        for parameter in made.unet.conv_out.parameters():
            assert not parameter.any()  # a model that was not trained gives its condition
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(3))
    return made


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(added):
    """A change of pixels (3, SIDE, SIDE) whose means of 8 x 8 pixels are interpolated between their middles."""
    cells = SIDE // 8
    means = added.unflatten(1, (cells, 8)).unflatten(3, (cells, 8)).mean((2, 4)).numpy()
    between = partial(np.interp, np.arange(SIDE), 8 * np.arange(cells) + 3.5)
    fine = np.apply_along_axis(between, 1, np.apply_along_axis(between, 2, means))
    return added + torch.from_numpy(fine - means.repeat(8, 1).repeat(8, 2))


def steered(base, camera=0.0, fps=8.0):
    """Conditioning of a picture in which a box goes 6 px a frame to the right, and the rest `camera` px to the left."""
    control = torch.zeros(1, FRAMES, 3, SIDE, SIDE, dtype=torch.float64)
    time = torch.arange(FRAMES)
    control[0, :, 0] = -camera * time.view(-1, 1, 1)
    control[0, :, 2] = float(camera > 0)
    control[0, :, 0, 20:40, 8:28] = 6.0 * time.view(-1, 1, 1)
    control[0, :, 2, 20:40, 8:28] = 1
    frame = draw(1, 3, SIDE, SIDE, seed=4).tanh()
    given = {"fps": torch.tensor([fps]), "motion_bucket_id": torch.tensor([3.0])}
    cond = base.condition({"first_frame": frame}, given, None)
    return Warp(base.channels).double().steer(control, cond, base), frame, control


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_coarse_components_of_what_is_unknown_are_corrected_whatever_the_noise(base, sigma):
    cond, frame, control = steered(base)
    lowest = moved_pixels(frame[0], control[0]).lowest
    latent = base.encode(lowest.plate[None, None]).mean
    noisy, level = latent + sigma * draw(1, FRAMES, *latent.shape[2:]), torch.tensor([sigma]).double()
    denoised = Denoiser(base, base.process())(noisy, level, cond)
    # the network sees the plate, and in the place of noise which pixels are its hole
    pixels = F.pad(F.pixel_unshuffle(lowest.hole[None, None], 8), (0, 0, 0, 0, 0, 6))[None]
    plain = replace(cond, parts={**cond.parts, "image_latent": latent})
    change = 0.5 * base.network.predict(pixels[0][:, None], torch.zeros(1).double(), plain)
    deviations = base.pca.encode(torch.cat([draw(4, 3, SIDE, SIDE).cumsum(2).tanh()] * 2)).std((0, 2, 3), correction=0)
    change = change * deviations[:, None, None]
    change[:, :, 5:] = 0
    change = change * F.max_pool2d(lowest.hole[None, None], 8)[:, :, None]
    torch.testing.assert_close(denoised, (latent + change).expand_as(noisy), rtol=0, atol=1e-3)
    assert (denoised - latent).abs().max() > 0.1 and torch.equal(lowest.hole.bool().any(), torch.tensor(True))


def test_what_a_picture_is_said_to_be_of_changes_nothing(base):
    """Frames per second and amount of motion are not what is in a hole, and no training shows the network others."""
    one, other = steered(base)[0], steered(base, fps=30.0)[0]
    noisy, level = draw(1, FRAMES, base.channels, 8, 8), torch.ones(1).double()
    made = [Denoiser(base, base.process())(noisy, level, cond) for cond in (one, other)]
    assert torch.equal(*made)


@pytest.mark.parametrize("camera", [0.0, 4.0])
def test_a_finished_clip_is_the_corrected_picture_moved(base, camera):
    cond, frame, control = steered(base, camera)
    corrected = base.encode(cond.lowest[0].plate[None, None]).mean + draw(1, 1, base.channels, 8, 8)
    made = base.finished(base.decode(corrected).expand(-1, FRAMES, -1, -1, -1), cond)
    before = base.decode(base.encode(cond.lowest[0].plate[None, None]).mean)[0, 0]
    added = smooth(base.decode(corrected)[0, 0] - before)  # the codec is linear: as in the latent, so in pixels

    def fill(picture, hole):
        """What fills the hole, and the correction: colours of 0 to 255."""
        return filled(picture, hole) + 127.5 * added.permute(1, 2, 0).numpy()

    expected = moved_pixels(frame[0], control[0], fill).clip
    torch.testing.assert_close(made[0], expected, rtol=0, atol=1e-5)
    assert (made[0] - cond.moved[0]).abs().amax((1, 2, 3))[1:].min() > 0.3
    assert torch.equal(made[:, 0], frame)
    assert torch.equal(base.finished(made, Conditioning({})), made)


def test_the_loss_is_the_pixels_error_over_the_fills(base):
    hole = torch.zeros(2, SIDE, SIDE, dtype=torch.float64)
    hole[0, 10:30, 12:40] = hole[1, :8, :8] = 1
    plate, true = draw(2, 3, SIDE, SIDE, seed=5).tanh(), draw(2, 2, 3, SIDE, SIDE, seed=6).tanh()
    batch = {"first_frame": plate, "plate": plate, "hole": hole.bool(), "frames": 2}
    cond = base.condition(batch, {"fps": torch.ones(2), "motion_bucket_id": torch.ones(2)}, None)
    clean, latent = base.encode(true).mean, base.encode(plate[:, None]).mean
    change, sigma = draw(2, 1, base.channels, 8, 8, seed=7), torch.ones(2).double()
    process = base.process()
    fill = latent.expand_as(clean)
    nothing, half = (base.loss(process, fill + part, clean, sigma, cond) for part in (0, 0.5 * change))
    torch.testing.assert_close(nothing, torch.ones(2, 2).double())
    added = [smooth(each[0]) for each in base.decode(latent + 0.5 * change) - base.decode(latent)]
    for clip in range(2):
        inside = hole[clip].bool()
        own, made = ((plate[clip] + more - base.decode(clean)[clip])[..., inside] for more in (0, added[clip]))
        expected = (made.square().mean((1, 2)) + 8e-4) / (own.square().mean((1, 2)) + 8e-4)
        torch.testing.assert_close(half[clip], expected)
    outside = draw(2, 1, 3, SIDE, SIDE, seed=8) * (1 - hole[:, None, None])
    shifted = clean + base.encode(outside).mean - base.encode(torch.zeros_like(outside)).mean
    assert torch.equal(nothing, base.loss(process, latent.expand_as(clean), shifted, sigma, cond).round(decimals=9))


def test_it_names_itself_and_takes_no_noise_on_the_first_frame(base):
    assert base.record() == {
        "class_path": "lightning_modules.bases.Photos",
        "init_args": {"init_seed": 0, "components": 70, "corrected": 5},
    }
    assert "noise_aug_strength" not in base.inputs() and base.usual() == (8, 128, 128)
    again = type(base).from_record(base.record())
    assert again.components == 70 and again.size == "photo"


def test_a_run_may_go_on_with_another_number_of_corrected_components():
    record = Photos(components=70, corrected=16).record()
    assert Photos(components=70, corrected=3).same_name(record)
    assert not Photos(components=71, corrected=16).same_name(record)
    assert not Photos(init_seed=1, components=70, corrected=16).same_name(record)


@pytest.mark.parametrize("corrected", ["x", -3, 1.5, 193, True])
def test_a_record_of_another_kind_of_number_is_one_line(base, corrected):
    """A file names it: what a slice does not take would end a sample half way."""
    record = base.record()
    record["init_args"]["corrected"] = corrected
    for made in (lambda: VideoBase.from_record(record), lambda: Photos(corrected=corrected)):
        with pytest.raises(UserError, match="corrected is .*, expected a whole number of 0 to 192") as error:
            made()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("components", [63, 193, "x"])
def test_a_hole_of_eight_by_eight_pixels_needs_as_many_components(components):
    with pytest.raises(UserError, match="components is .*, expected"):
        Photos(components=components)
