"""The base of photographs: it adds to the per-frame latent, where that is not known."""

import pytest
import torch

from lightning_modules.bases import Photos, VideoBase
from lightning_modules.conditioning import KNOWN, Conditioning
from lightning_modules.process.base import Denoiser
from remoco.common.errors import UserError


@pytest.fixture(scope="module")
def base():
    made = Photos(components=8, corrected=5)
    made.build(torch.float64)
    made.fit([torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1])
    with torch.no_grad():
        for parameter in made.unet.conv_out.parameters():
            assert not parameter.any()  # a model that was not trained gives its condition
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(3))
    return made


def conditioned(base, known):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    given = {"fps": torch.tensor([8.0]), "motion_bucket_id": torch.tensor([3.0])}
    cond = base.condition({"first_frame": draw(1, 3, 64, 64).tanh()}, given, None)
    latent = draw(1, 3, base.channels, 8, 8)
    return Conditioning({**cond.parts, "image_latent": latent, KNOWN: known}), draw(*latent.shape)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_what_is_known_is_kept_and_the_rest_is_the_residual_of_edm(base, sigma):
    known = torch.ones(1, 3, 1, 8, 8, dtype=torch.float64)
    known[0, 1:, :, 2:5, 2:5] = 0
    cond, noise = conditioned(base, known)
    latent, level = cond.parts["image_latent"], torch.tensor([sigma], dtype=torch.float64)
    noisy = latent + sigma * noise
    denoised = Denoiser(base, base.process())(noisy, level, cond)
    kept = known.bool() | (torch.arange(8) >= 5).view(-1, 1, 1)
    torch.testing.assert_close(denoised[kept], latent[kept], rtol=0, atol=1e-9)
    # EDM (table 1) with sigma_data 0.5, for the difference
    size = (sigma**2 + 0.25) ** 0.5
    output = base.network.predict((noisy - latent) / size, 0.25 * level.log(), cond)
    expected = latent + 0.25 / size**2 * (noisy - latent) - 0.5 * sigma / size * output
    torch.testing.assert_close(denoised[~kept], expected[~kept], rtol=0, atol=1e-9)


def test_a_finished_clip_has_the_moved_pixels_and_the_change_of_the_network_where_they_are_guesses(base):
    draw = torch.Generator().manual_seed(2)
    moved = torch.rand(1, 3, 3, 64, 64, generator=draw, dtype=torch.float64) * 2 - 1
    guessed = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    guessed[0, 1:, 10:30, 12:40] = 1
    change = torch.randn(1, 3, base.channels, 8, 8, generator=draw, dtype=torch.float64)
    latent = base.normalise(base.encode(moved).mean)
    made = base.finished(base.decode(latent + change), Conditioning({}, moved=moved, filled=guessed))
    places = guessed[:, :, None].bool().expand_as(moved)
    assert torch.equal(made[~places], moved[~places])
    # the codec is linear: what is added to the latent is added to the pixels
    added = base.decode(change) - base.decode(torch.zeros_like(change))
    torch.testing.assert_close(made[places], (moved + added)[places], rtol=0, atol=1e-9)
    assert torch.equal(base.finished(moved, Conditioning({})), moved)


def test_it_names_itself_and_takes_no_noise_on_the_first_frame(base):
    assert base.record() == {
        "class_path": "lightning_modules.bases.Photos",
        "init_args": {"init_seed": 0, "components": 8, "corrected": 5},
    }
    assert "noise_aug_strength" not in base.inputs() and base.usual() == (8, 128, 128)
    again = type(base).from_record(base.record())
    assert again.components == 8 and again.size == "photo"


@pytest.mark.parametrize("corrected", ["x", -3, 1.5, 193, True])
def test_a_record_of_another_kind_of_number_is_one_line(base, corrected):
    """A file names it: what a slice does not take would end a sample half way."""
    record = base.record()
    record["init_args"]["corrected"] = corrected
    for made in (lambda: VideoBase.from_record(record), lambda: Photos(corrected=corrected)):
        with pytest.raises(UserError, match="corrected is .*, expected a whole number of 0 to 192") as error:
            made()
        assert "\n" not in str(error.value)
