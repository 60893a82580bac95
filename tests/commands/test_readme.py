"""The README's commands, run as they are written."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from datamodules.bench.sprites import write_sprite_bench
from datamodules.scenes.scene import random_scene, render
from remoco.common.videos.mp4 import encode_mp4
from tests.support.places import REPO
from tests.support.systems.files import svd_folder

README = (REPO / "README.md").read_text()
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
ACTIVATE = [".", ".venv/bin/activate"]


def blocks() -> list[list[list[str]]]:
    """The commands of each block of shell lines, comments left out."""
    found = re.findall(r"^```\n(.*?)^```", README, re.S | re.M)
    return [[shlex.split(line, comments=True) for line in block.splitlines()] for block in found]


def python(words: list[str]) -> list[str]:
    """A line as this environment runs it."""
    module = {"remoco": "remoco", "tensorboard": "tensorboard.main"}.get(Path(words[0]).name)
    return [sys.executable, "-m", module, *words[1:]] if module else [sys.executable, *words[1:]]


def call(words: list[str], folder: Path) -> str:
    """Run a line in a folder that has nothing of ours; what it printed."""
    done = subprocess.run(python(words), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
    return done.stdout


def page_of(words: list[str], folder: Path) -> str:
    """What a line that serves answers at `/`; it is stopped then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        python([*words, "--port", str(port)]), cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    try:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    return answer.read().decode()
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{shlex.join(words)}: ended with {server.returncode}")
    finally:
        server.terminate()
        server.wait()


def swapped(words: list[str], paths: dict[str, Path]) -> list[str]:
    """A line with a reader's own files in the places of the README's names."""
    return [str(paths.get(word, word)) for word in words]


def test_readme_has_only_commands_that_are_run_here():
    start, draw, train, recipe = blocks()
    assert [words[:2] for words in start] == [["git", "clone"], ["make", "demo"], [".venv/bin/remoco", "page"]]
    assert [words[:2] for words in draw] == [ACTIVATE, ["remoco", "demo"], ["remoco", "generate"], ["remoco", "page"]]
    assert [words[:2] for words in train] == [
        ACTIVATE, ["remoco", "prepare"], ["python", "-m"], ["tensorboard", "--logdir"]
    ]  # fmt: skip
    assert [words[:3] for words in recipe] == [ACTIVATE, *3 * [["python", "-m", "lightning"]]]
    assert len(README.splitlines()) <= 120
    rest = re.sub(r"^```.*?^```", "", README, flags=re.S | re.M)
    inline = {text for text in re.findall(r"`([^`\n]+)`", rest) if re.match(r"(make|python|remoco|git) ", text)}
    picture = "python docs/moving_picture.py runs/demo docs/demo.webp"  # tests/test_docs.py runs it and `make docs`
    assert inline <= {"make demo", "make fit", "make test", "make docs", "remoco generate", picture}


@pytest.mark.slow
def test_the_first_commands(tmp_path):
    """A clone, and what `make demo` and the second line call, from its folder."""
    (clone, _, demo), page = blocks()[0][0][:3], blocks()[0][2]
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout")
    subprocess.run([clone, _, "--quiet", str(REPO), "remoco"], cwd=tmp_path, check=True)
    recipe = (tmp_path / "remoco" / "Makefile").read_text().split("\ndemo: ")[1].splitlines()[1]
    assert demo == "REPOSITORY" and recipe == "\t$(BIN)/remoco demo"
    assert "<title>" in page_of(page, tmp_path)


@pytest.mark.slow
def test_drawing(tmp_path):
    _, demo, generate, page = blocks()[1]
    assert "runs/demo/clip.mp4" in call(demo, tmp_path)
    call(generate, tmp_path)
    assert (tmp_path / "runs" / "clip.mp4").stat().st_size > 1000 and (tmp_path / "runs" / "clip-strip.mp4").is_file()
    assert page[1:] == blocks()[0][2][1:]  # which the first commands have


@pytest.mark.slow
def test_your_own_videos(tmp_path):
    """From a folder of videos to a checkpoint that resumes."""
    videos = tmp_path / "my videos"
    videos.mkdir()
    for number in range(3):
        frames = render(random_scene([7, number], 20, 144, 208))
        (videos / f"video {number}.mp4").write_bytes(encode_mp4(frames, 8.0))
    _, prepare, fit, look = blocks()[2]
    call(swapped(prepare, {"VIDEOS": videos}), tmp_path)
    call([*fit, "--trainer.max_steps=2"], tmp_path)
    call([*fit, "--trainer.max_steps=3", "--ckpt_path=last"], tmp_path)
    assert (tmp_path / "runs" / "quickstart-own_videos" / "checkpoints" / "last.ckpt").is_file()
    assert "TensorBoard" in page_of(look, tmp_path)


@pytest.mark.slow
def test_the_papers_recipe_and_tables(tmp_path):
    """Over random weights in SVD's layout, at a small size."""
    videos, bench = tmp_path / "videos", tmp_path / "bench"
    videos.mkdir()
    for number in range(2):
        (videos / f"{number}.mp4").write_bytes(encode_mp4(render(random_scene([7, number], 12, 80, 112)), 8.0))
    write_sprite_bench(bench, pairs=1, height=64, width=64, frames=4)
    size = ["--height", "64", "--width", "64", "--frames", "4"]
    call(["remoco", "prepare", "videos", "data/train", "--tracker", "dis", *size], tmp_path)
    (tmp_path / "data" / "val").symlink_to("train")
    _, fit, table_1, table_2 = blocks()[3]
    small = {
        "trainer.max_steps": 2, "trainer.val_check_interval": 2, "trainer.devices": 1, "trainer.strategy": "auto",
        "trainer.accelerator": "cpu", "trainer.logger.init_args.name": "remoco_svd", "data.init_args.frames": 4,
        "data.init_args.height": 64, "data.init_args.width": 64, "data.init_args.batch_size": 1,
        "data.init_args.num_workers": 0, "model.init_args.sampling.steps": 2,
    }  # fmt: skip
    paths = {"SVD_FOLDER": svd_folder(tmp_path / "svd"), "BENCH": bench}
    call([*swapped(fit, paths), *(f"--{key}={value}" for key, value in small.items())], tmp_path)
    assert "Validation clips, 64 x 64 clips of data/val" in call(table_1, tmp_path)  # table 1 is for the paper's set
    said = call([*swapped(table_2, paths), "--data.init_args.height=64", "--data.init_args.width=64"], tmp_path)
    assert "Fine-grained motion control on " in said and "Object-level motion control on " in said
