"""Runs over Wan 2.2 A14B: one of each expert, sampled together, and their LoRA in diffusers' pipeline."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from peft.tuners.lora import LoraLayer
from PIL import Image

from conditions import RegionWise
from datamodules.drawings.motion import SceneMotion
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.second import Second
from lightning_modules.systems.ours import ReMoCo
from remoco.common.errors import UserError
from remoco.generate import Loading, OtherSystem
from remoco.page import exchange, makers
from tests.support import wan
from tests.support.commands import remoco
from tests.support.modules import data, draw, perturb, trainer, written
from tests.support.wan_a14b import EXPERTS, SIZE, conditioned, module, pipeline, velocity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan.write(tmp_path_factory.mktemp("wan") / "tiny", SIZE)


@pytest.fixture(scope="module")
def theirs(folder):
    return pipeline(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 5 frames, and a batch of them."""
    return written(tmp_path_factory.mktemp("clips"), frames=5, clips=4, val_clips=2)


@pytest.fixture(scope="module")
def runs(clips, folder, tmp_path_factory):
    """Checkpoints of a short run of each expert over the same folder."""
    root = tmp_path_factory.mktemp("runs")
    for expert in EXPERTS:
        (root / expert).mkdir()
        trainer(root / expert, 1).fit(unbuilt(folder, expert), data(clips[0], frames=5, clips=4, val_clips=2))
    return {expert: root / expert / "last.ckpt" for expert in EXPERTS}


def unbuilt(folder, expert, lora="attention"):
    made = MotionControlModule(
        Wan(folder, expert=expert), RegionWise(min_mask_ratio=0.5), Control(["modulation"], lora, 2),
        Noise(dropout=0.5),
        Sampling(4, guidance=(3.5, 3.5), guidance_2=(2.0, 2.0), inputs={"negative_prompt": "dog"}, solver="unipc"),
    )  # fmt: skip
    made.plan = Plan(adamw(lr=1e-2))
    return made


def generated(pipe, **call):
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    pipe.set_progress_bar_config(disable=True)
    return pipe(image, [[(9, 9), (30, 9)]], height=32, width=48, num_frames=5, output_type="latent", **call).frames


def test_a_run_is_of_one_expert_and_says_which(runs, folder, clips, tmp_path):
    for expert, path in runs.items():
        saved = torch.load(path, weights_only=True)
        assert saved["remoco"]["base"]["init_args"]["expert"] == expert
        assert saved["remoco"]["run"]["model.base.boundary"] == 0.9
        assert saved["remoco"]["sampling"]["guidance_2"] == [2.0, 2.0]
        prefixes = (f"base.{EXPERTS[expert]}.", "motion_encoder.", "injections.")
        assert all(name.startswith(prefixes) for name in saved["state_dict"])
    with pytest.raises(UserError, match="trained over another base: .*'expert': 'high'.*'expert': 'low'"):
        trainer(tmp_path, 2).fit(
            unbuilt(folder, "low"), data(clips[0], frames=5), ckpt_path=str(runs["high"]), weights_only=True
        )


def test_two_runs_are_sampled_together(runs):
    """Each controls its own expert: with the other one's weights the first step stays, with its own the rest moves."""
    with pytest.warns(UserWarning, match="two experts, and one of them is controlled: the other runs bare"):
        alone = {
            expert: MotionControlPipeline.from_checkpoint(path, dtype=torch.float64) for expert, path in runs.items()
        }
    both = MotionControlPipeline.from_checkpoint(runs["high"], dtype=torch.float64, second=runs["low"])
    states = {name: [] for name in ("high", "low", "both")}
    for name, pipe in (*alone.items(), ("both", both)):
        perturb(pipe.module)
        generated(pipe, callback_on_step_end=lambda _, step, t, x, name=name: states[name].append(x["latents"]) or {})
    times = alone["high"].module.process.times(alone["high"].module.process.levels(4)[:-1])
    first = int(times.ge(900).sum())  # steps of the high-noise expert
    assert 0 < first < 4 and len(states["both"]) == 4
    for step in range(4):
        same = torch.equal(states["both"][step], states["high"][step])
        assert same == (step < first)
        assert not torch.equal(states["both"][step], states["low"][step])
    other = generated(both, guidance_scale_2=6.0)
    assert "4 steps, guidance 3.5 to 3.5, of low noise 2 to 2" in repr(both)
    assert "guidance 3.5 to 3.5, " in ReMoCo(both).protocol and "guidance_2 2 to 2" in ReMoCo(both).protocol
    assert not torch.equal(other, states["both"][-1])
    with pytest.raises(UserError, match="^save_pretrained: this pipeline is of two runs"):
        both.save_pretrained("nowhere")


def test_a_second_run_that_does_not_fit_is_one_line(runs, folder, tmp_path):
    other = unbuilt(folder, "low", lora="linear")
    other.configure_model()
    torch.save({"remoco": other.own_record(), "state_dict": other.stored()}, tmp_path / "linear.ckpt")
    plain = module(RandomWan(), lora="attention", dtype=torch.float32)
    torch.save({"remoco": plain.own_record(), "state_dict": plain.stored()}, tmp_path / "plain.ckpt")
    for first, second, said in (
        (
            "high",
            runs["high"],
            "second: it was trained over the high-noise expert, expected a run of the low-noise exp",
        ),
        ("low", runs["low"], "second: it was trained over the low-noise expert, expected a run of the high-noise exp"),
        ("high", tmp_path / "plain.ckpt", "second: it was trained over another base, expected a run of the low-noise"),
        ("high", tmp_path / "linear.ckpt", "second: its lora is linear, expected attention as in the first"),
        ("high", tmp_path / "none.ckpt", "no such file"),
    ):
        with pytest.raises(UserError, match=said) as error:
            MotionControlPipeline.from_checkpoint(runs[first], second=second)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="^second: this base has no second expert, expected none"):
        Second(plain, {}, {})
    with pytest.raises(UserError, match="^sampling.guidance_2: this base has no second expert"):
        generated(MotionControlPipeline(plain), guidance_scale_2=2.0)


def test_their_lora_is_read_by_diffusers_own_pipeline(runs, folder, tmp_path):
    """Each into its own expert, under diffusers' names; and ours reads them too."""
    both = MotionControlPipeline.from_checkpoint(runs["high"], dtype=torch.float64, second=runs["low"])
    perturb(both.module).double()
    both.save_lora_weights(tmp_path)
    theirs = WanImageToVideoPipeline.from_pretrained(folder)
    theirs.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    theirs.load_lora_weights(
        tmp_path, weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True, adapter_name="second"
    )
    reader = MotionControlPipeline(module(Wan(folder, expert="low"), lora=None))
    bare = module(Wan(folder, expert="low"), lora=None).base
    reader.load_lora_weights(tmp_path)
    reader.load_lora_weights(
        tmp_path, weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True, adapter_name="second"
    )
    reader.set_adapters(["default_0", "second"])
    cond, x = conditioned(both.module.base), draw(1, 3, 4, 4, 6)
    for expert, t in (("high", 0.95), ("low", 0.4)):
        network, time = getattr(theirs, EXPERTS[expert]), torch.tensor([t], dtype=torch.float64)
        torch.nn.Module.to(network, torch.float64)
        found = {name for name, m in network.named_modules() if isinstance(m, LoraLayer)}
        assert found and found >= {
            name for name, m in getattr(both.module.base, EXPERTS[expert]).named_modules() if isinstance(m, LoraLayer)
        }
        with wan.lifted(), torch.no_grad():
            both.module.release()
            ours = both.module.base.predict(x, 1000 * time, cond)
            other = velocity(network, x, time, cond, cond.parts["text"])
            read, without = (base.predict(x, 1000 * time, cond) for base in (reader.module.base, bare))
        assert (ours - without).abs().max() > 1e-3
        torch.testing.assert_close(other, ours, rtol=0, atol=1e-6)  # the file's factors are float32
        torch.testing.assert_close(read, ours, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="^load_into_transformer_2: this base has no second expert"):
        plain = module(RandomWan(), lora=None, dtype=torch.float32)
        MotionControlPipeline(plain).load_lora_weights(tmp_path, load_into_transformer_2=True)


@pytest.mark.slow
def test_its_command_samples_two_runs(runs, tmp_path, capsys):
    """`remoco generate` on the tiny folder, with a prompt, offloaded or not; save_pretrained's folder is a run too."""
    with pytest.warns(UserWarning, match="the other runs bare"):
        MotionControlPipeline.from_checkpoint(runs["low"]).save_pretrained(tmp_path / "low")
    Image.new("RGB", (48, 32), "red").save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"traj_key_points": [[[9, 9], [30, 9]]]}))
    words = ["generate", runs["high"], tmp_path / "a.png", "--tracks", tmp_path / "a.json", "--num-frames", 5]
    words += ["--height", 32, "--width", 48, "--fps", 16, "--prompt", "red dog", "--guidance-scale-2", 2.5]
    second, clips = ["--second", tmp_path / "low"], []
    for more in (second, [*second, "--offload"], ["--second", runs["low"]]):
        out = tmp_path / f"{len(clips)}.mp4"
        assert remoco(*words, *more, "--device", "cpu", "--out", out) == 0, capsys.readouterr().err
        clips.append(out.read_bytes())
    assert clips[0] == clips[2]
    assert remoco(*words, "--second", runs["high"], "--out", tmp_path / "3.mp4") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "second: it was trained over the high-noise expert, expected a run of the low-noise expert" in error


def test_the_page_samples_two_runs(runs, capsys):
    """With the guidance of the low-noise expert among its settings; the other expert bare where no run is named."""

    def panels(**settings):
        drawing, wanted = makers.generation(
            {"drawing": exchange.examples()[0]["drawing"], "settings": {"steps": 2, **settings}}, maker
        )
        framing = wanted.framing(drawing)
        return wanted.panels(drawing.framed(framing, (255, 255, 255)), SceneMotion(), lambda step: None)["generated"]

    clips = {}
    for name, second in (("both", str(runs["low"])), ("bare", None)):
        with nullcontext() if second else pytest.warns(UserWarning, match="the other runs bare"):
            loading = Loading(device="cpu", second=second, offload=True)
            maker = makers.loaded(str(runs["high"]), OtherSystem(), loading, "crop", "embedded")
        settings = {each.name: each for each in maker.settings()}
        assert settings["first_guidance_2"].value == 2.0 and settings["last_guidance_2"].most == 20
        clips[name] = panels(), panels(prompt="red dog", first_guidance_2=20, last_guidance_2=20)
    assert not np.array_equal(clips["both"][0], clips["both"][1])
    assert not np.array_equal(clips["both"][0], clips["bare"][0])
    pipe = MotionControlPipeline.from_checkpoint(runs["high"], second=runs["low"])
    drawing = exchange.parsed(exchange.examples()[0]["drawing"])
    framed = drawing.framed(drawing.framing(pipe.grid), (255, 255, 255))
    own = pipe(framed, num_frames=5, num_inference_steps=2, seed=0, prompt="red dog", guidance_scale_2=20.0).frames[0]
    far = {name: [np.abs(np.stack(own).astype(int) - clip).max() for clip in each] for name, each in clips.items()}
    assert far["both"][1] <= 1 < min(far["both"][0], far["bare"][1]), far
    assert remoco("page", runs["high"], "--second", runs["high"], "--port", "0", "--device", "cpu") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "second: it was trained over the high-noise expert, expected a run of the low-noise expert" in error
