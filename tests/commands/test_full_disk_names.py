"""A disk that is full when a command writes: its one line names the file."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from remoco.common.whole_files import atomic_file, atomic_path, naming, new_folder
from tests.support.commands import remoco
from tests.support.disk import full


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench") / "b"
    assert remoco("sprite-bench", root, "--pairs", 1, "--height", 64, "--width", 64, "--frames", 4) == 0
    return root


def torch_saves(path):
    with atomic_file(path) as file:
        torch.save({"a": torch.zeros(9999)}, file)


def pillow_saves(path):
    with atomic_path(path) as part:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(part, "PNG")


def safetensors_saves(path):
    with new_folder(path.parent / "new") as folder, naming(folder / path.name) as file:
        save_file({"a": torch.zeros(9999)}, file)


def bytes_are_written(path):
    with atomic_file(path) as file:
        file.write(bytes(9999))


def inside_a_folder(path):
    with new_folder(path.parent / "new") as folder:
        (folder / "deep").mkdir()
        bytes_are_written(folder / "deep" / path.name)


def unnamed_in_a_folder(path):
    with new_folder(path) as folder:
        (folder / "x").write_bytes(bytes(9999))


@pytest.mark.parametrize(
    "write, name",
    [(torch_saves, "a"), (pillow_saves, "a"), (bytes_are_written, "a"), (safetensors_saves, "new/a"),
     (inside_a_folder, "new/deep/a"), (unnamed_in_a_folder, "a")],
)  # fmt: skip
def test_whatever_writes_is_named(tmp_path, write, name):
    with full(2048), pytest.raises(OSError) as caught:
        write(tmp_path / "a")
    assert caught.value.filename == str(tmp_path / name) and caught.value.strerror == "File too large"
    assert not list(tmp_path.iterdir())


def test_what_is_no_fault_of_the_disk_passes_through(tmp_path):
    for error in (ValueError("os error 28"), OSError(5, "Input/output error"), RuntimeError("(os error 5)")):
        with pytest.raises(type(error)) as caught, new_folder(tmp_path / "a"):
            raise error
        assert caught.value is error


def refused(capsys, size, *words):
    with full(size):
        assert remoco(*words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(": File too large") and "Error" not in said, said
    return said


def test_sprite_bench(capsys, tmp_path):
    words = "sprite-bench", tmp_path / "b", "--pairs", 1, "--height", 64, "--width", 64, "--frames", 4
    assert f"error: {tmp_path}/b/Fine_grained_control/sprite-000/first_frame.png: " in refused(capsys, 500, *words)
    assert not list(tmp_path.iterdir())


def test_study_and_report(capsys, tmp_path, bench):
    systems = [tmp_path / "one", tmp_path / "two"]
    for system in systems:
        shutil.copytree(bench / "true_clips", system)
    words = "study", "pages", *systems, "--out", tmp_path / "study", "--bench", bench
    assert f"error: {tmp_path}/study/" in refused(capsys, 500, *words)
    assert f"error: {tmp_path}/report/" in refused(capsys, 500, "report", *systems, "--out", tmp_path / "report")
    assert not (tmp_path / "study").exists() and not (tmp_path / "report").exists()


def test_generate_and_demo(capsys, tmp_path, bench):
    words = (
        "generate",
        "embedded-sprites",
        bench / "Fine_grained_control" / "sprite-000",
        "--out",
        tmp_path / "g.mp4",
        "--steps",
        1,
    )
    assert f"error: {tmp_path}/g.mp4: " in refused(capsys, 500, *words)
    assert f"error: {tmp_path}/d/inputs/" in refused(capsys, 500, "demo", "--out", tmp_path / "d")


def test_pack(capsys, tmp_path):
    assert f"error: {tmp_path}/a.safetensors: " in refused(
        capsys, 500, "pack", "embedded-sprites", tmp_path / "a.safetensors"
    )


def test_sweep(capsys, tmp_path, finished):  # noqa: F811
    for path in finished.glob("*.csv"):
        path.unlink()
    assert f"error: {finished}/trials.csv: " in refused(capsys, 10, "sweep", "table", finished)
    pytest.importorskip("matplotlib", reason="needs the extra `sweep`")
    assert f"error: {finished}/figure.png: " in refused(capsys, 500, "sweep", "plot", finished)


def test_score(capsys, tmp_path, bench):
    metrics = tmp_path / "metrics.yaml"
    metrics.write_text(json.dumps([{"class_path": "metrics.MotionControlError"}]))
    words = "score", bench / "true_clips", "--bench", bench, "--frames", 4, "--json", tmp_path / "s.json"
    assert f"error: {tmp_path}/s.json: " in refused(capsys, 10, *words)
