"""The README's commands, run as they are written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.commands import CONFIGS, command

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


def readme_commands(section: str) -> list[list[str]]:
    """The shell lines of the first block under a heading of the README, continuation lines joined."""
    text = (REPO / "README.md").read_text().split(f"## {section}\n")[1]
    block = re.search(r"```\n(.*?)```", text, re.S)[1].replace("\\\n", " ")
    return [shlex.split(line) for line in block.splitlines()]


@pytest.mark.slow
def test_your_own_videos(tmp_path):
    """The README's lines, from a folder of videos to a checkpoint that resumes."""
    from datamodules.scenes.scene import random_scene, render
    from remoco.common.videos.mp4 import encode_mp4

    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        frames = render(random_scene([7, number], 20, 144, 208))
        (videos / f"video {number}.mp4").write_bytes(encode_mp4(frames, 8.0))
    activate, prepare, fit = readme_commands("Your own videos")
    assert activate == [".", ".venv/bin/activate"]
    swap = {"VIDEOS": str(videos), "data/mine": str(tmp_path / "mine")}
    prepare, fit = ([swap.get(word, word) for word in words] for words in (prepare, fit))
    assert prepare[0] == "remoco" and fit[:2] == ["python", "-m"]
    prepare = ["python", "-m", *prepare]
    fit += [f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}", "--trainer.max_steps=2"]
    for words in (prepare, fit, [*fit[:-1], "--trainer.max_steps=3", "--ckpt_path=last"]):
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "own_videos" / "checkpoints" / "last.ckpt").is_file()
