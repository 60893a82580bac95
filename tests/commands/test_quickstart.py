"""The recipes that learn, to their ends."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.commands import CONFIGS, command
from tests.support.same import same

REPO = CONFIGS.parent


def scalars(run: Path, tag: str) -> list[float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def check_learned(run: Path) -> None:
    """Generated objects follow their own tracks and no others, on held-out clips, and the run shows it."""
    loss = scalars(run, "val/loss")
    assert loss[-1] < loss[0] / 2
    found = json.loads((run / "metrics.json").read_text())
    assert all(result["n"] >= 32 and set(result) == {"value", "protocol", "n", "seconds"} for result in found.values())
    error, still, real, swapped, off = (
        found[f"control_error{end}"]["value"] for end in ("", "_standing_still", "_real", "_swapped", "_off")
    )
    assert error < still / 2 and real < still / 10 and min(swapped, off) > 0.8 * still
    assert scalars(run, "usage/peak_gib")[-1] < 6
    assert len(scalars(run, "val/fvd_random_features")) == 2
    strips = sorted((run / "samples").glob("step-*/clip-*.mp4"))
    assert len(strips) == 8 and all(path.stat().st_size > 1000 for path in strips)


@pytest.mark.slow
def test_what_make_fit_left_has_learned():
    """In a checkout where `make fit` has been run to its end."""
    run = REPO / "runs" / "quickstart"
    if not (run / "metrics.json").is_file():
        pytest.skip("no runs/quickstart/metrics.json: `make fit` has not been run here")
    check_learned(run)


@pytest.mark.long
def test_the_quick_start_learns(tmp_path):
    """`make fit`'s command, and again once it is done."""
    assert "-m lightning fit --config configs/quickstart.yaml" in (REPO / "Makefile").read_text()
    run = tmp_path / "runs" / "quickstart"
    words = (
        "fit",
        f"--config={CONFIGS / 'quickstart.yaml'}",
        f"--trainer.logger.init_args.save_dir={run.parent}",
        f"--data.init_args.root={tmp_path / 'sprites'}",
    )
    done = command(*words)
    for line in ("Run folder:", "Samples:", "TensorBoard:", "generated with its own control"):
        assert line in done.stdout
    check_learned(run)
    loss = scalars(run, "val/loss")
    again = command(*words, "--ckpt_path=last")
    assert "Run folder:" in again.stdout and scalars(run, "val/loss") == loss


def fit(name: str, run: Path, root: Path, *more: str) -> None:
    """A few steps of a recipe of plain sprites, with its evaluation, in this process."""
    from remoco.training import main

    few = {
        "trainer.max_steps": 4, "trainer.val_check_interval": 4, "trainer.num_sanity_val_steps": 0,
        "trainer.enable_progress_bar": "false", "trainer.logger.init_args.save_dir": run.parent,
        "trainer.logger.init_args.name": run.name, "data.init_args.root": root, "data.init_args.clips": 24,
        "data.init_args.val_clips": 4, "data.init_args.num_workers": 0,
    }  # fmt: skip
    main(["fit", f"--config={CONFIGS / name}.yaml", *(f"--{key}={value}" for key, value in few.items()), *more])


@pytest.mark.slow
def test_the_quick_start_on_a_small_wan_goes_on_with_the_same_bits(tmp_path):
    """Its first steps, whole and in two parts; it measures what the other quick start measures."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit("quickstart_wan", whole, tmp_path / "sprites")
    fit("quickstart_wan", parts, tmp_path / "sprites", "--trainer.max_steps=2")
    fit("quickstart_wan", parts, tmp_path / "sprites", "--ckpt_path=last")
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, parts))
    assert one["global_step"] == 4
    for key in ("state_dict", "optimizer_states"):
        assert same(one[key], other[key]), key
    assert same(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert {name.rpartition(".")[0] for name in one["state_dict"]} >= {"base.vae.first", "base.vae.rest"}
    found = [json.loads((run / "metrics.json").read_text()) for run in (whole, parts)]
    fit("quickstart", tmp_path / "svd", tmp_path / "sprites")
    measured = json.loads((tmp_path / "svd" / "metrics.json").read_text()).keys()
    assert found[0].keys() == found[1].keys() == measured
    assert all(found[0][name]["value"] == found[1][name]["value"] for name in measured)


@pytest.mark.long
def test_the_quick_start_on_a_small_wan_learns(tmp_path):
    run = tmp_path / "runs" / "quickstart_wan"
    command(
        "fit",
        f"--config={CONFIGS / 'quickstart_wan.yaml'}",
        f"--trainer.logger.init_args.save_dir={run.parent}",
        f"--data.init_args.root={tmp_path / 'sprites'}",
    )
    check_learned(run)


@pytest.mark.long
def test_the_recipe_in_small_learns(tmp_path):
    """LoRA, encoder and modulation on the frozen base of the package: a third of the schedule halves the error."""
    command(
        "fit",
        f"--config={CONFIGS / 'sprites_lora.yaml'}",
        f"--trainer.logger.init_args.save_dir={tmp_path}",
        f"--data.init_args.root={tmp_path / 'sprites'}",
        "--trainer.max_steps=500",
        "--trainer.val_check_interval=500",
        "--trainer.num_sanity_val_steps=0",
    )
    found = json.loads((tmp_path / "sprites_lora" / "metrics.json").read_text())
    error, stroke, still, swapped, off = (
        found[f"control_error{end}"]["value"] for end in ("", "_stroke", "_standing_still", "_swapped", "_off")
    )
    assert max(error, stroke) < still / 2 and min(swapped, off) > 0.7 * still
