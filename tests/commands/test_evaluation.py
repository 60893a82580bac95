"""The commands of docs/evaluation.md, run as they are written, and the benchmark killed and on two ranks."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodules.bench.sprites import write_sprite_bench
from datamodules.scenes.scene import random_scene, render
from metrics import shown
from remoco.common.videos.mp4 import encode_mp4
from tests.support.commands import CONFIGS, command

pytestmark = pytest.mark.slow
DOCS = CONFIGS.parent / "docs" / "evaluation.md"


def documented(section: str, block: int = 0) -> list[list[str]]:
    """The shell lines of one block under a heading, continuation lines joined."""
    text = DOCS.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"```\n(.*?)```", text, re.S)[block].splitlines()]


def call(words: list[str], folder: Path) -> str:
    """Run a line of the docs in a folder that has nothing but the checkout's configs; what it printed."""
    python = {"python": [sys.executable], "remoco": [sys.executable, "-m", "remoco"]}[words[0]]
    done = subprocess.run(
        [*python, *words[1:]],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "configs").symlink_to(CONFIGS)
    return tmp_path


def test_a_whole_evaluation_with_the_model_in_the_package(checkout):
    said = [call(words, checkout) for words in documented("All of it, on small clips")]
    bench, run = checkout / "data" / "sprite_bench", checkout / "runs" / "sprites_lora"
    tables = said[1]
    assert "Fine-grained motion control on sprite_bench (16 pairs)" in tables
    assert "Object-level motion control on sprite_bench (16 pairs)" in tables
    assert not any("quoted" in each or "Table " in each for each in said)
    ours = json.loads((run / "benchmark" / "sprite_bench" / "scores.json").read_text())
    true = json.loads((bench / "true_clips" / "scores.json").read_text())
    assert set(ours) == set(true) and all(entry["n"] == 8 for entry in ours.values())
    for level in ("fine", "object"):
        for metric in ("md_vid_lk", "md_img_random_features"):
            assert true[f"{level}/{metric}"]["value"] < 1 < ours[f"{level}/{metric}"]["value"]
    assert ours["object/md_vid_lk"]["value"] < 6  # scenes that it knows: on the textured ones it was farther off
    assert "fvd_random_features" in said[3]
    report = (checkout / "report" / "index.html").read_text()
    study = (checkout / "study" / "index.html").read_text()
    for level in ("fine", "object"):
        assert shown(ours[f"{level}/md_vid_lk"]["value"]) in report
    assert len(re.findall(r'<video[^>]* src="', report)) == 3 * 16 and "{{" not in study + report


def test_table_1_on_shards(checkout):
    """From videos through shards and a short training to the printed table, with both references."""
    videos = checkout / "videos"
    videos.mkdir()
    for number in range(3):
        (videos / f"{number}.mp4").write_bytes(encode_mp4(render(random_scene([7, number], 12, 80, 112)), 8.0))
    size = ["--height", "64", "--width", "64", "--frames", "8"]
    call(["remoco", "prepare", "videos", "data/mine", "--tracker", "dis", *size], checkout)
    options = {
        "config": ["configs/quickstart.yaml", "configs/own_videos.yaml"],
        "data.init_args.shards": ["data/mine"], "data.init_args.val_shards": ["data/mine"],
        "data.init_args.frames": [8], "data.init_args.height": [64], "data.init_args.width": [64],
        "trainer.max_steps": [2], "trainer.val_check_interval": [2], "model.init_args.sampling.steps": [2],
        "trainer.logger.init_args.name": ["mine"],
    }  # fmt: skip
    call(["python", "-m", "lightning", "fit", *(f"--{k}={v}" for k, vs in options.items() for v in vs)], checkout)
    (words,) = documented("Table 1: any shards")
    words = [word.replace("NAME", "mine") for word in words]
    said = call(words, checkout)
    assert "Validation clips, 64 x 64 clips of data/mine" in said and "quoted" not in said and "Table 1" not in said
    results = json.loads((checkout / "runs" / "mine" / "metrics.json").read_text())
    raw = {name: results[name] for name in ("fvd_random_features", "fid_random_features")}
    for result in raw.values():
        assert result["n"] == 3 and "reference: raw" in result["protocol"]
        assert "15% of the regions given" in result["protocol"]
    overlay = (CONFIGS / "eval" / "webvid.yaml").read_text()
    (checkout / "vae.yaml").write_text(overlay.replace("reference: raw", "reference: vae"))
    call([word.replace("configs/eval/webvid", "vae") for word in words], checkout)
    for name, before in raw.items():
        after = json.loads((checkout / "runs" / "mine" / "metrics.json").read_text())[name]
        assert "reference: vae" in after["protocol"] and after["value"] != before["value"]


def test_a_benchmark_killed_and_resumed_on_two_ranks(tmp_path):
    """The same videos, bit for bit, as one process that nobody killed, and none of them sampled twice."""
    write_sprite_bench(tmp_path / "bench", pairs=3, height=64, width=64, frames=4)
    configs = [f"--config={CONFIGS / name}" for name in ("sprites_lora.yaml", "eval/quickstart_bench.yaml")]
    shared = [*configs, f"--data.init_args.root={tmp_path / 'bench'}", "--ckpt_path=embedded-sprites",
              "--trainer.accelerator=cpu", f"--trainer.logger.init_args.save_dir={tmp_path}"]  # fmt: skip

    def of(run: str) -> dict[str, Path]:
        folder = tmp_path / run / "benchmark" / "bench" / "videos"
        return {path.relative_to(folder).as_posix(): path for path in folder.rglob("[!.]*.mp4")}

    def scores(run: str) -> dict[str, dict]:
        return json.loads((tmp_path / run / "benchmark" / "bench" / "scores.json").read_text())

    command("test", *shared, "--trainer.logger.init_args.name=whole")
    killed = [*shared, "--trainer.logger.init_args.name=killed"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning", "test", *killed],
        cwd=CONFIGS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(of("killed")) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {name: path.stat().st_mtime_ns for name, path in of("killed").items()}
    assert 2 <= len(before) < 6
    command("test", *killed, "--trainer.devices=2", "--trainer.strategy=ddp")
    whole, resumed = of("whole"), of("killed")
    assert len(whole) == 6 and {name: path.read_bytes() for name, path in whole.items()} == {
        name: path.read_bytes() for name, path in resumed.items()
    }
    assert before == {name: resumed[name].stat().st_mtime_ns for name in before}
    one, two = scores("whole"), scores("killed")
    assert {name: entry["n"] for name, entry in one.items()} == {name: entry["n"] for name, entry in two.items()}
    for name, entry in one.items():
        assert two[name]["value"] == pytest.approx(entry["value"], rel=1e-9, abs=1e-9)
