"""Clips longer than the trained ones: windows that are denoised together, and parts from the last frame on."""

import re
import shlex

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conditions import RegionWise
from datamodules.drawings import Drawing
from datamodules.drawings.cut import cut
from datamodules.drawings.motion import SceneMotion
from lightning_modules import MotionControlModule
from lightning_modules.bases import Photos, RandomCogVideoX, RandomWan
from lightning_modules.bases.grid import Grid
from lightning_modules.config import Control, Sampling
from lightning_modules.longer import planned
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.pipeline_clips import initial
from lightning_modules.process.windows import Part, average, together, windows
from remoco.common.errors import UserError
from remoco.common.videos.files import read_video
from remoco.generation import panels_of
from tests.support.commands import remoco
from tests.support.modules import perturb
from tests.support.places import REPO
from tests.support.toy import Toy

TRAINED, LONG = 5, 12
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
TRACK = [(20, 20), (36, 24), (28, 12)]
INPUTS = dict(tracks=[TRACK], height=48, width=64)


class Deaf(Toy):
    """A base that sees each latent alone: no window is in what it predicts."""

    def predict(self, noisy, time, cond):
        first = cond.kept("first")[:, None]
        return 0.3 * noisy + torch.tanh(noisy + first) + time.view(-1, 1, 1, 1, 1)

    def places(self):
        return []

    def levels(self):
        return []


def piped(base, trained=TRAINED, injection=("modulation",), **sampling) -> MotionControlPipeline:
    lora = None if isinstance(base, Toy) else "attention"
    module = MotionControlModule(
        base, RegionWise(), Control([*injection], lora), sampling=Sampling(**{"steps": 3, **sampling})
    )
    module.configure_model(torch.float64)
    pipe = MotionControlPipeline(perturb(module.double()), {"num_frames": trained, "height": 48, "width": 64})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return piped(Toy())


@pytest.mark.parametrize(
    "total, length, overlap", [(5, 5, 2), (6, 5, 0), (12, 5, 2), (23, 8, 6), (40, 8, 3), (9, 3, 1)]
)
def test_windows_begin_with_the_first_latent_and_weigh_one_together(total, length, overlap):
    parts, sums = windows(total, length, overlap), torch.zeros(total, dtype=torch.float64)
    for part in parts:
        assert part.at.tolist() == [0, *range(int(part.at[1]), int(part.at[1]) + length - 1)]
        sums[part.at] += part.weights
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-15)
    assert parts[0].at.tolist() == list(range(length)) and int(parts[-1].at[-1]) == total - 1
    assert parts[0].weights[0] == 1 and not any(part.weights[0] for part in parts[1:])
    shared = [length - 1 - int(after.at[1] - part.at[1]) for part, after in zip(parts, parts[1:])]
    assert all(each >= overlap for each in shared)
    fewest = 1 if total == length else -(-(total - length) // (length - 1 - overlap)) + 1
    assert len(parts) == fewest
    clip = torch.randn(2, total, 3, dtype=torch.float64)
    torch.testing.assert_close(average([(part, clip[:, part.at]) for part in parts], total), clip, rtol=0, atol=1e-14)


def test_a_step_neither_copies_windows_nor_reads_a_number():
    """A CUDA graph could not record it. Of float32 latents, whose weights are not those of the windows."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    called, clip = [], torch.randn(1, 12, 3)
    parts = [(Part(window, None, lambda: None), lambda x, sigma: 2 * x) for window in windows(12, 5, 2)]
    denoise = together(parts, clip)
    with Seen():
        made = denoise(clip, torch.ones(1))
    torch.testing.assert_close(made, 2 * clip)
    assert "aten::mul" in called and not {"aten::_to_copy", "aten::_local_scalar_dense"} & set(called)


def test_weights_are_ramped_over_the_overlap():
    first, second = windows(10, 7, 3)
    assert first.at.tolist() == [0, 1, 2, 3, 4, 5, 6] and second.at.tolist() == [0, 4, 5, 6, 7, 8, 9]
    torch.testing.assert_close(first.weights, torch.tensor([4, 4, 4, 4, 3, 2, 1]).double() / 4)
    torch.testing.assert_close(second.weights, torch.tensor([0, 1, 2, 3, 4, 4, 4]).double() / 4)


def test_a_window_in_latents_is_one_in_frames():
    """The first latent is one frame, each other one four."""
    window = windows(7, 3, 1)[2].frames(4)
    assert window.at.tolist() == [0, *range(9, 17)]
    assert window.weights.tolist() == [0] + [0.5] * 8


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (1.0, 3.0)])
def test_a_network_without_a_view_of_its_window_makes_the_clip_of_one_window(guidance):
    pipe = piped(Deaf(), injection=[], guidance=guidance)
    noise = torch.randn(1, LONG, 12, 6, 8, dtype=torch.float64)
    call = dict(INPUTS, num_frames=LONG, latents=noise, output_type="latent")
    whole = pipe(IMAGE, **call).frames
    for overlap in (0, 1, 3):
        made = pipe(IMAGE, **call, longer="windows", overlap=overlap).frames
        torch.testing.assert_close(made, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("longer", ["windows", "continue"])
def test_a_clip_of_the_trained_length_has_the_bits_of_before(pipe, longer):
    plain, made = (pipe(IMAGE, **INPUTS, output_type="pt", longer=way).frames for way in (None, longer))
    assert plain.shape[1] == TRAINED and torch.equal(made, plain)


@pytest.mark.parametrize("longer", ["windows", "continue"])
def test_a_clip_is_its_seeds_whatever_is_beside_it(pipe, longer):
    call = dict(num_frames=LONG, height=48, width=64, output_type="pt", longer=longer)
    images, tracks = [IMAGE, IMAGE[::-1].copy()], [[TRACK], [TRACK[::-1]]]
    both = pipe(images, tracks, seed=[3, 4], **call).frames
    assert both.shape == (2, LONG, 3, 48, 64)
    for index in (0, 1):
        alone = pipe(images[index], tracks[index], seed=3 + index, **call).frames
        torch.testing.assert_close(both[index], alone[0], rtol=0, atol=1e-9)
        assert torch.equal(alone, pipe(images[index], tracks[index], seed=3 + index, **call).frames)
    other = pipe(IMAGE, [TRACK], seed=4, **call).frames
    assert not torch.allclose(other[0], both[0])
    moved = pipe(IMAGE, [[*TRACK[:2], (8, 40)]], seed=3, **call).frames[0]  # the last third of the way alone
    assert not torch.allclose(moved[-1], both[0, -1], rtol=0, atol=1e-6)


def test_noise_is_a_function_of_seed_and_block():
    shape = (4, 3, 2, 2)
    one = initial([7], 0, (10, *shape[1:]), 4, "cpu")
    assert one.shape == (1, 10, *shape[1:]) and torch.equal(one[:, :4], initial([7], 0, shape, 4, "cpu"))
    for block in (0, 1):
        assert torch.equal(one[:, 4 * block : 4 * block + 4], initial([7], block, shape, 4, "cpu"))
    assert torch.equal(one, initial([1, 7], 0, (10, *shape[1:]), 4, "cpu")[1:])
    assert not torch.equal(one[:, :4], one[:, 4:8])


def test_windows_show_the_network_the_slices_of_the_whole_control(pipe, monkeypatch):
    """Each the first frame, then its part of the clip; and as many passes a step as there are windows."""
    seen, passes = [], []
    encoder = pipe.module.motion_encoder
    monkeypatch.setattr(encoder, "forward", lambda x, run=encoder.forward: (seen.append(x), run(x))[1])
    predict = pipe.module.base.predict
    monkeypatch.setattr(pipe.module.base, "predict", lambda *args: (passes.append(args[0].shape), predict(*args))[1])
    pipe(IMAGE, **INPUTS, num_frames=LONG, longer="windows", overlap=1, output_type="latent")
    whole = pipe.module.condition.draw([TRACK], None, LONG, 48, 64)
    places = [window.at for window in windows(LONG, TRAINED, 1)]
    assert len(seen) == len(places) == 4
    for control, at in zip(seen, places):
        assert torch.equal(control[0].float(), whole[at])
    assert len(passes) == 3 * len(places) and {shape[1] for shape in passes} == {TRAINED}


def test_each_window_sees_its_own_motion(pipe, monkeypatch):
    """What is encoded once is given again in every step: as if it were encoded anew for each pass."""
    call = dict(INPUTS, num_frames=LONG, longer="windows", output_type="latent", seed=2)
    made, controller = pipe(IMAGE, **call).frames, pipe.module.controller
    kept, used, features = [], [], controller.held

    def held():
        kept.append(features())
        return len(kept) - 1

    def again(index):
        used.append(index)
        controller.injections[0].set([kept[index][0][0][0]])

    monkeypatch.setattr(controller, "held", held)
    monkeypatch.setattr(controller, "hold", again)
    torch.testing.assert_close(pipe(IMAGE, **call).frames, made, rtol=0, atol=1e-12)
    count = len(windows(LONG, TRAINED, 2))
    assert len(kept) == count and used == [*range(count)] * 3  # in each of three steps
    monkeypatch.setattr(controller, "hold", lambda index: again(0))
    assert not torch.allclose(pipe(IMAGE, **call).frames, made, rtol=0, atol=1e-6)


def test_a_part_is_a_clip_of_the_cut_drawing_from_the_frame_before(pipe):
    """Without noise that differs: the same latents to start from."""
    call = dict(height=48, width=64, output_type="pt")
    made = pipe(IMAGE, [TRACK], num_frames=LONG, longer="continue", seed=6, **call).frames
    plan = planned(pipe.module.base, TRAINED, LONG, "continue", None)
    assert plan.starts == (0, 4, 7) and made.shape == (1, LONG, 3, 48, 64)
    drawing, expected = Drawing(IMAGE, [np.array(TRACK, float)]), None
    for number, start in enumerate(plan.starts):
        part, _ = cut(drawing, SceneMotion(), LONG, start, start + TRAINED)
        frame = IMAGE if number == 0 else (expected[0, start] * 255).round().byte().permute(1, 2, 0).numpy()
        noise = initial([6], number, (TRAINED, 12, 6, 8), TRAINED, "cpu").double()
        following = pipe(frame, part.tracks, latents=noise, **call).frames
        expected = following if number == 0 else torch.cat([expected[:, : start + 1], following[:, 1:]], 1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("longer", ["windows", "continue"])
def test_the_command_draws_a_scene_as_python_does(pipe, longer):
    """A camera behind tracks, as `remoco generate` gives them; and what is drawn alone."""
    options = {"num_frames": LONG, "fps": 8.0, "longer": longer}
    drawing = Drawing(IMAGE, [np.array(TRACK, float)])
    alone = panels_of(pipe, drawing, SceneMotion(), 1, options, lambda step: None)["generated"]
    own = pipe(IMAGE, **INPUTS, num_frames=LONG, longer=longer, seed=1, output_type="pt").frames[0]
    assert np.array_equal(alone, (own * 255).round().byte().permute(0, 2, 3, 1).numpy())
    steps = []
    camera = SceneMotion({"pan": 0.4, "zoom": 1.2})
    panned = panels_of(pipe, drawing, camera, 1, options, steps.append)["generated"]
    assert panned.shape == alone.shape and not np.array_equal(panned, alone)
    assert steps == [0, 1, 2] * (3 if longer == "continue" else 1)


def test_the_word_drawing_is_measured_over_each_window():
    from lightning_modules.bases.said import Input

    class Far(Toy):
        heard: list = []

        def inputs(self):
            return {"far": Input(1.0, 0, 99, ("drawing",))}

        def condition(self, batch, inputs, noise):
            self.heard.append(inputs["far"].tolist())
            return super().condition(batch, inputs, noise)

    pipe = piped(Far(), inputs={"far": "drawing"}, steps=1)
    straight = dict(tracks=[[(16, 16), (16 + LONG - 1, 16)]], height=48, width=64)  # a pixel a frame
    pipe(IMAGE, **straight, num_frames=LONG, longer="windows", overlap=0, output_type="latent")
    share = 64 / (48 * 64)
    places = [window.at.double() for window in windows(LONG, TRAINED, 0)]
    assert Far.heard == [[pytest.approx(float(at.mean()) * share, rel=1e-6)] for at in places]


@pytest.mark.parametrize("size", ["tiny_i2v", "tiny_ti2v"])
def test_wan_in_windows_of_latents(size, monkeypatch):
    """Four frames a latent behind the first: for a network without a view of its window the clip of one window."""
    pipe = piped(RandomWan(size), 9, solver="unipc")
    call = dict(tracks=[TRACK], height=64, width=64, num_frames=17, output_type="latent", seed=1)
    noise = torch.randn(1, 5, pipe.module.base.channels, *pipe.module.base.grid.size(64, 64), dtype=torch.float64)
    made = pipe(IMAGE, **call, longer="windows", overlap=4).frames
    assert made.shape == noise.shape and torch.equal(made, pipe(IMAGE, **call, longer="windows", overlap=4).frames)
    assert pipe(IMAGE, **{**call, "output_type": "pt"}, longer="windows").frames.shape == (1, 17, 3, 64, 64)
    assert pipe(IMAGE, **{**call, "output_type": "pt"}, longer="continue").frames.shape == (1, 17, 3, 64, 64)
    monkeypatch.setattr(pipe.module.base, "predict", lambda noisy, time, cond: 0.3 * noisy + torch.tanh(noisy))
    whole, parts = (pipe(IMAGE, **call, latents=noise, longer=way).frames for way in (None, "windows"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="^frames is 16, expected 1 plus a multiple of 4, the nearest 13 and 17$"):
        pipe(IMAGE, **{**call, "num_frames": 16}, longer="windows")


def test_cogvideox_has_windows_of_its_one_length():
    pipe = piped(RandomCogVideoX(), 9, steps=1)
    call = dict(tracks=[TRACK], height=64, width=64, num_frames=17, output_type="pt")
    assert pipe(IMAGE, **call, longer="continue").frames.shape == (1, 17, 3, 64, 64)
    made = pipe(IMAGE, **{**call, "output_type": "latent"}, longer="windows").frames
    assert made.shape[:2] == (1, 5) and made.isfinite().all()
    with pytest.raises(UserError, match="frames is 17, expected 9"):
        pipe(IMAGE, **call)


class Causal(Toy):
    grid = Grid(space=8, step=16, time=4)


@pytest.mark.parametrize("changes, said", [
    (dict(longer="chunks"), "longer is 'chunks', expected one of windows, continue"),
    (dict(overlap=2), "overlap is 2, expected none without longer 'windows'"),
    (dict(longer="continue", overlap=2), "overlap is 2, expected none without longer 'windows'"),
    (dict(longer="windows", overlap=4), "overlap is 4, expected 0 to 3: a window has 5 frames"),
    (dict(longer="windows", overlap=-1), "overlap is -1, expected 0 to 3: a window has 5 frames"),
    (dict(longer="continue", output_type="latent"), "output_type: expected no latents with longer 'continue'"),
    (dict(longer="continue", latents=torch.zeros(1)), "latents: expected no latents with longer 'continue'"),
    (dict(longer="continue", tracks=[], control=torch.zeros(LONG, 3, 48, 64)),
     "control: expected tracks and brush beside longer 'continue': a tensor cannot be cut"),
])  # fmt: skip
def test_a_mistake_is_one_line_before_the_work(pipe, monkeypatch, changes, said):
    monkeypatch.setattr(pipe.module, "denoised", lambda *args: pytest.fail("sampled"))
    with pytest.raises(UserError) as error:
        pipe(IMAGE, **{**INPUTS, "num_frames": LONG, **changes})
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_base_of_one_picture_needs_no_windows():
    with pytest.raises(UserError, match="^longer is 'windows', expected none: Photos sees one picture"):
        planned(Photos(), 16, 32, "windows", None)
    assert planned(Photos(), 16, 32, "continue", None).starts == (0, 8, 16)


def test_the_documents_commands(tmp_path, monkeypatch, capsys):
    """As they stand in docs/inference.md, with fewer steps; and two mistakes."""
    text = (REPO / "docs/inference.md").read_text().split("## Longer than the trained clips")[1].split("\n## ")[0]
    commands = [shlex.split(each) for each in re.findall(r"^remoco (.*)$", text.replace("\\\n", ""), re.M)]
    monkeypatch.chdir(tmp_path)
    assert [words[0] for words in commands] == ["demo", "generate", "generate"]
    for words in commands:
        assert remoco(*words, *(["--steps", "1"] if words[0] == "generate" else [])) == 0
    clips = [read_video(f"{name}.mp4")[0] for name in ("windows", "continue")]
    assert all(len(clip) == 16 for clip in clips) and np.abs(clips[0].astype(float) - clips[1]).mean() > 0.1
    assert "3/3" in capsys.readouterr().err  # one step of each of three parts
    for flags, said in (
        (["--longer", "windows", "--overlap", "7"], "--longer windows: overlap is 7, expected 0 to 6"),
        (["--overlap", "2"], "--overlap is 2, expected --longer windows beside it"),
    ):
        given = [word for word in commands[1] if word not in ("--longer", "windows")]
        assert remoco(*given, *flags) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
