"""A base of one's own is one file and one YAML: it trains, resumes to the bit, and its checkpoints are sampled."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conditions import RegionWise
from datamodules.drawings import Drawing
from datamodules.drawings.motion import SceneMotion
from lightning_modules import MotionControlModule
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.said import Input
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from remoco import configs
from remoco.common.errors import UserError
from remoco.generation import panels_of
from remoco.training import Unstarted
from tests.support.commands import remoco
from tests.support.modules import data, perturb, trainer
from tests.support.same import same
from tests.support.toy import Toy

YAML = Path(__file__).parents[1] / "support" / "toy.yaml"


class Fade(nn.Module):
    """An injection that edits what the network is conditioned on: the first frame's latent, one for each frame."""

    def steer(self, control, conditioning, base):
        first = conditioning.parts["first"]
        frames = torch.linspace(1, 0.5, control.shape[1]).view(1, -1, 1, 1, 1)
        still = 1 - control[:, :, 2:].amax((2, 3, 4), keepdim=True)
        return replace(conditioning, parts={**conditioning.parts, "first": first[:, None] * frames * (0.5 + still)})


def toy(**changes):
    arguments = {
        "base": Toy(3), "condition": RegionWise(min_mask_ratio=0.5),
        "control": Control(["modulation"], "linear", 2), "noise": Noise(dropout=0.5), "sampling": Sampling(2),
    }  # fmt: skip
    module = MotionControlModule(**{**arguments, **changes})
    module.plan = Plan(adamw(lr=1e-3))
    return module


@pytest.fixture(scope="module")
def run(sprites, tmp_path_factory):
    """A run of four steps, and the same in two parts."""
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    trainer(whole, 4).fit(toy(), data(sprites))
    trainer(parts, 2).fit(toy(), data(sprites))
    trainer(parts, 4).fit(toy(), data(sprites), ckpt_path=str(parts / "last.ckpt"), weights_only=True)
    return whole / "last.ckpt", parts / "last.ckpt"


def test_it_trains_and_a_resume_has_the_same_bits(run):
    one, other = (torch.load(path, weights_only=True) for path in run)
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert one["remoco"]["base"]["class_path"] == "tests.support.toy.Toy"
    assert one["remoco"]["base"]["init_args"] == {"init_seed": 3}
    fresh = toy()
    fresh.configure_model()
    names = {name for name, value in fresh.stored().items() if not torch.equal(value, one["state_dict"][name])}
    assert any(name.startswith("injections.0.out.0.gamma") for name in names)
    assert any(".lora_B." in name for name in names) and not any("base_layer" in name for name in one["state_dict"])


def test_its_checkpoint_is_sampled(run):
    pipe = MotionControlPipeline.from_checkpoint(run[0])
    perturb(pipe.module)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    clips = [pipe(image, [[(9, 9), end]], num_frames=5, seed=1, output_type="pt").frames for end in ((50, 9), (9, 40))]
    assert clips[0].shape == (1, 5, 3, 48, 64) and not torch.equal(*clips)
    with pytest.raises(ValueError, match="^fps: "):
        pipe(image, [[(9, 9), (20, 20)]], fps=8)
    with pytest.raises(ValueError, match="height.*40.*multiple of 16"):
        pipe(image, [[(9, 9), (20, 20)]], height=40, width=64)


def test_the_command_samples_it_without_rate_and_motion(run, tmp_path, capsys):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"traj_key_points": [[[9, 9], [50, 9]]]}))
    command = ["generate", run[0], tmp_path / "a.png", "--tracks", tmp_path / "a.json", "--num-frames", 3]
    assert remoco(*command, "--out", tmp_path / "a.mp4") == 0
    assert remoco(*command, "--out", tmp_path / "b.mp4", "--motion-bucket-id", 5) == 2
    assert "motion_bucket_id: unknown, the inputs of this base are none" in capsys.readouterr().err
    assert (tmp_path / "a.mp4").is_file() and not (tmp_path / "b.mp4").exists()


class Told(Toy):
    """Keeps what it is told."""

    def inputs(self):
        return {"wind": Input(3.0, -5, 12, ("storm",)), "far": Input(1.0, 0, 99, ("drawing",))}

    def condition(self, batch, inputs, noise):
        self.heard = {name: value if isinstance(value, str) else value.tolist() for name, value in inputs.items()}
        return super().condition(batch, inputs, noise)


def test_a_word_reaches_the_base_and_drawing_as_what_is_drawn():
    module = toy(base=Told(3), sampling=Sampling(1, inputs={"far": "drawing"}))
    module.configure_model()
    pipe, image = MotionControlPipeline(module), np.zeros((32, 64, 3), np.uint8)
    images, tracks = [image] * 2, [[[(9, 9), (9 + way, 9)]] for way in (8, 16)]
    pipe(images, tracks, num_frames=3, height=32, width=64)
    assert module.base.heard["wind"] == [3, 3]
    less, more = module.base.heard["far"]
    assert less > 0 and more == pytest.approx(2 * less)
    said = Sampling(1, inputs={"wind": "storm", "far": 7})
    pipe(images, tracks, num_frames=3, height=32, width=64, sampling=said)
    assert module.base.heard == {"wind": "storm", "far": [7, 7]}
    with pytest.raises(UserError, match="^far: expected a number beside a control"):
        pipe(image, control=torch.zeros(3, 3, 32, 64), num_frames=3)
    drawing = Drawing(image, [np.array([[9.0, 9.0], [17.0, 9.0]])], None)
    panels_of(pipe, drawing, SceneMotion(), 0, {"num_frames": 3, "fps": 8.0}, lambda step: None)
    assert module.base.heard == {"wind": [3], "far": [pytest.approx(less)]}


def test_a_calls_inputs_are_checked_too(run):
    pipe, image = MotionControlPipeline.from_checkpoint(run[0]), np.zeros((32, 64, 3), np.uint8)
    with pytest.raises(UserError, match="^sampling.inputs.wind: unknown, the inputs of this base are none$"):
        pipe(image, [[(9, 9), (20, 9)]], sampling=Sampling(1, inputs={"wind": 1}))


def test_another_seed_or_class_is_another_base(run, sprites, tmp_path):
    other = MotionControlModule(Toy(4), RegionWise(min_mask_ratio=0.5), Control(["modulation"], "linear", 2))
    with pytest.raises(UserError, match="trained over another base.*init_seed"):
        trainer(tmp_path, 5).fit(other, data(sprites), ckpt_path=str(run[0]), weights_only=True)


def test_an_injection_steers_what_it_is_conditioned_on(sprites):
    """Alone, and beside features at places; without a control nothing is steered."""
    plain, both = (toy(control=Control([*kinds], None)) for kinds in ([], ["modulation", f"{__name__}.Fade"]))
    assert both.architecture()["injection"] == ["modulation", f"{__name__}.Fade"]
    samples = []
    for net in (plain, both):
        net.configure_model()
        dm = data(sprites)
        dm.prepare_data()
        dm.setup("validate")
        batch = next(iter(dm.val_dataloader()))
        samples += [net.sample(batch, net.draw_control(batch)), net.sample(batch, None)]
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[0], samples[3])
    assert not torch.equal(samples[2], samples[3])
    assert plain.motion_encoder is None and len(both.injections) == 2


def test_its_yaml_over_another_configuration():
    words = ["fit", "--config", "configs/quickstart.yaml", "--config", str(YAML)]
    module = Unstarted(configs.resolved(words)).model
    assert type(module.base) is Toy and module.base.trained and module.base.init_seed == 3
    assert module.noise.spread and module.sampling.steps == 2 and module.control.flow_scale == 0.1


def test_lengths_and_sizes_on_a_grid():
    grid = Grid(space=16, step=32, time=4)
    assert [grid.latents(frames) for frames in (1, 5, 81, 121)] == [1, 2, 21, 31]
    assert grid.size(704, 1280) == (44, 80) and grid.fitting(100) == 96 and grid.fitting(5) == 32
    grid.check(81, 480, 832)
    for frames, height, said in (
        (80, 480, "nearest 77 and 81"),
        (81, 470, "height is 470, expected a multiple of 32, the nearest 448 and 480"),
        (16, 480, "13 and 17"),
    ):
        with pytest.raises(UserError, match=said) as error:
            grid.check(frames, height, 832)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-1, 1e5, float("nan"), True, None, "pan", [3]])
def test_what_may_be_said_has_a_range(value):
    bucket = Input(17.0, 0, 1e4, ("drawing",))
    bucket.check("motion", "drawing")
    bucket.check("motion", 3)
    with pytest.raises(UserError, match="^motion is .*expected a number of 0 to 10000 or 'drawing'$"):
        bucket.check("motion", value)
