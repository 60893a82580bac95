"""The settings that the page offers: those of `Sampling` and of the base, within what the page has room for."""

from dataclasses import dataclass, fields
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules.drawings import Drawing, FrameArea
from lightning_modules.bases.base import Input
from lightning_modules.bases.grid import Grid
from lightning_modules.config import Sampling
from remoco.common.errors import UserError
from remoco.page import form
from remoco.page.makers import Checkpoint
from tests.support.page import unloaded
from tests.support.toy import Toy


class Other(Toy):
    """A base that is told something of its own."""

    def inputs(self):
        return {"wind_speed": Input(3.0, -5, 12, ("calm", "storm"))}


def asked(pipeline, **settings):
    values = form.read(settings, form.settings(pipeline))
    return SimpleNamespace(**values), form.sampling_of(values, pipeline)


def named(pipeline):
    return {each.name: each for each in form.settings(pipeline)}


def test_what_is_not_asked_is_the_checkpoints_own():
    own = Sampling(7, 99.0, (1.5, 3.0), {"motion_bucket_id": 21.5, "fps": 12.0})
    pipeline = unloaded(own)
    clip, sampling = asked(pipeline)
    assert (clip.frames, clip.fps, clip.size, clip.seed) == (8, 12.0, "64 x 64", 0)
    told = {"fps": 12.0, "motion_bucket_id": 21.5, "noise_aug_strength": 0.02}
    assert sampling == Sampling(7, 99.0, (1.5, 3.0), told)


def test_what_is_asked_reaches_sampling_and_the_base():
    clip, sampling = asked(
        unloaded(), frames=5, fps=10, size="128 x 128", seed=2**53, steps=9, sigma_max=70.5, first_guidance=0,
        last_guidance=4.25, motion_bucket_id=0, noise_aug_strength=0.5,
    )  # fmt: skip
    assert (clip.frames, clip.fps, clip.size, clip.seed) == (5, 10.0, "128 x 128", 2**53)
    told = {"fps": 10.0, "motion_bucket_id": 0.0, "noise_aug_strength": 0.5}
    assert sampling == Sampling(9, 70.5, (0.0, 4.25), told)
    assert asked(unloaded(), motion_bucket_id="drawing")[1].inputs["motion_bucket_id"] == "drawing"


@pytest.mark.parametrize(
    ("trained", "time", "least", "most"), [(81, 4, 5, 161), (9, 4, 5, 65), (49, 8, 9, 97), (8, 1, 2, 64)]
)
def test_lengths_go_by_what_one_latent_holds(trained, time, least, most):
    pipeline = unloaded()
    pipeline.sampling["num_frames"], pipeline.module.base.grid = trained, Grid(time=time)
    frames = named(pipeline)["frames"]
    assert (frames.value, frames.least, frames.most, frames.step) == (trained, least, most, time)
    assert frames.slider == (least, most)
    assert all((length - 1) % time == 0 for length in (frames.value, *frames.slider)) or time == 1


def test_the_first_size_is_the_checkpoints_own_so_that_the_page_makes_the_commands_clip():
    pipeline = unloaded()
    pipeline.trained_size = (480, 832)
    assert named(pipeline)["size"].choices[3:5] == ("320 x 512", "480 x 832")
    assert named(pipeline)["size"].value == "480 x 832" and form.sizes(pipeline)["480 x 832"] == (480, 832)
    grid = Grid(step=32)  # of Wan 2.2
    pipeline.module.base = SimpleNamespace(grid=grid, inputs=dict)
    drawing = Drawing(np.zeros((700, 1000, 3), np.uint8), [])
    framing = Checkpoint(pipeline).wanted({}).framing(drawing)
    assert framing == drawing.framing(FrameArea(480 * 832, 32)) != drawing.framing(FrameArea(480 * 832))


def test_a_base_of_one_clip_is_asked_for_that_alone():
    """As CogVideoX: it would refuse a frame of another shape than 480 x 720, also one of as many pixels."""
    pipeline = unloaded()
    pipeline.trained_size, pipeline.sampling["num_frames"] = (480, 720), 49
    grid = Grid(step=16, time=4, only=(49, 480, 720))
    pipeline.module.base = SimpleNamespace(grid=grid, inputs=dict)
    known, drawing = named(pipeline), Drawing(np.zeros((700, 700, 3), np.uint8), [])
    assert known["size"].choices == ("480 x 720",) and (known["frames"].least, known["frames"].most) == (49, 49)
    assert Checkpoint(pipeline).wanted({}).framing(drawing).frame == (480, 720)


def test_every_setting_of_sampling_is_in_the_form_also_one_that_the_page_does_not_know():
    @dataclass(frozen=True)
    class More(Sampling):
        eta: float = 0.25
        churn: int = 2

    pipeline = unloaded(More())
    known = named(pipeline)
    for each in fields(More):
        value = getattr(pipeline.module.sampling, each.name)
        if value is None:  # left open, as the guidance of a second expert that there is not
            continue
        own = {"guidance": {"first_guidance", "last_guidance"}, "inputs": {"fps", "motion_bucket_id"}}
        for name in own.get(each.name, {each.name}):
            assert name in known, name
        assert isinstance(value, (tuple, dict)) or known[each.name].value == value
    assert known["eta"].label == "Eta" and known["churn"].whole and not known["eta"].whole
    sampling = asked(unloaded(More()), eta=0.75, churn=3)[1]
    assert (sampling.eta, sampling.churn) == (0.75, 3)
    with pytest.raises(UserError, match="churn: expected a whole number"):
        asked(unloaded(More()), churn=0.5)


def test_a_base_of_ones_own_is_asked_for_what_it_is_told():
    known = named(unloaded(Sampling(), Other()))
    assert "motion_bucket_id" not in known and known["fps"].value == 8.0  # of the video
    wind = known["wind_speed"]
    assert (wind.label, wind.value, wind.least, wind.most) == ("Wind speed", 3.0, -5, 12)
    assert wind.words == ("calm", "storm")
    for value in (-5.0, 12.0, "storm"):
        assert asked(unloaded(Sampling(), Other()), wind_speed=value)[1].inputs == {"wind_speed": value}
    for value in (-5.1, 13, "breeze", None, True, [1]):
        with pytest.raises(UserError, match="wind_speed: expected a number from -5 to 12"):
            asked(unloaded(Sampling(), Other()), wind_speed=value)
    with pytest.raises(UserError, match="to 12, or calm or storm, got 'breeze'"):
        asked(unloaded(Sampling(), Other()), wind_speed="breeze")
    assert asked(unloaded(Sampling(), Toy()))[1].inputs == {}


def test_a_checkpoints_own_value_is_never_refused():
    own = Sampling(400, 700.0, (0.0, 35.0), {"motion_bucket_id": 800.0, "fps": 90.0})
    pipeline = unloaded(own)
    for each in form.settings(pipeline):
        assert each.choices or each.least <= each.value <= each.most, each
    assert named(pipeline)["steps"].most == 400 and named(pipeline)["motion_bucket_id"].slider[1] == 800


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0), ("steps", 101), ("steps", 2.5), ("steps", True), ("steps", "drawing"), ("frames", 10**9),
        ("seed", -1), ("seed", None), ("fps", "8"), ("fps", 0.5), ("size", "9 x 9"), ("size", []), ("size", 7),
        ("first_guidance", -1), ("last_guidance", 1e9), ("motion_bucket_id", float("inf")),
        ("motion_bucket_id", "drawn"), ("noise_aug_strength", float("nan")), ("sigma_max", 0), ("nonsense", 1),
        ("inputs", {}), ("guidance", [1, 2]), ("a\nb", 1),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line_that_names_it(name, value):
    with pytest.raises(UserError, match=name if name.isidentifier() else "settings: ") as caught:
        asked(unloaded(), **{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
