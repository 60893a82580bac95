"""The scripts of speed run without a GPU at a small size: what they import, build and print is there."""

import json
import os
import subprocess
import sys

import pytest

SMALL = ("--device", "cpu", "--size", "tiny", "--height", "64", "--width", "64", "--frames", "2")
BARE = "bare UNet, forward and gradient"


def script(repo, name: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(repo / "benchmarks" / name), *args],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_count(repo, tmp_path):
    file = tmp_path / "counts.json"
    out = script(repo, "count.py", "--size", "tiny", "--batch", "2", "--json", str(file), "--only",
                 "default_training_step", "all levels recomputed", "nothing recomputed")  # fmt: skip
    counts = json.loads(file.read_text())
    default, all_levels, nothing = (
        counts[name] for name in ("default_training_step", "all levels recomputed", "nothing recomputed")
    )
    assert default["trained_without_gradient"] == 0 and "| default_training_step |" in out
    assert nothing["ms"] < default["ms"] < all_levels["ms"]
    assert nothing["peak_gib"] > default["peak_gib"] > all_levels["peak_gib"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("training.py", (*SMALL, "--batch", "1", "--steps", "1", "--only", "recipe", BARE, "channels_last")),
        ("vae.py", (*SMALL, "--steps", "1", "--chunks", "1")),
        ("sampling.py", (*SMALL, "--steps", "2", "--times", "1", "--no-compile")),
        ("kernels.py", ("--device", "cpu", "--batch", "1", "--channels", "64", "--height", "2", "--width", "2",
                        "--steps", "1")),
    ],
)  # fmt: skip
def test_runs_small(repo, name, args):
    out = script(repo, name, *args)
    assert "bf16 TFLOP/s" in out and "| --- |" in out


@pytest.mark.slow
def test_vae_errors_are_those_of_the_precisions(repo):
    out = script(repo, "vae.py", *SMALL, "--steps", "1", "--chunks", "2")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")][2:]
    errors = {row[0]: float(row[-1]) for row in rows if row[1] == ""}
    for suffix in ("", ", decoding"):
        float32, tf32, bfloat16 = (errors[name + suffix] for name in ("float32", "tf32", "bfloat16"))
        assert float32 < 1e-4 < tf32 < 4e-3 < bfloat16 < 0.1


@pytest.mark.slow
def test_real_run_small(repo, tmp_path):
    out = script(repo, "real_run.py", str(tmp_path), "--small", "--precision", "bf16-mixed", "--steps", "2", "3")
    assert "| bf16-mixed | 3 |" in out and "trainer.precision is bf16-true, expected bf16-mixed" in out
    assert (tmp_path / "tiny/unet/diffusion_pytorch_model.fp16.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("scene, groups", [("plain", 1), ("varied", 3)])
def test_motion_bucket(repo, scene, groups):
    out = script(repo, "motion_bucket.py", "--scene", scene, "--clips", "12")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["the drawing's", "the true clip's", "1.2", "17"]
    assert all(len(row) == 2 + groups for row in rows)
    if scene == "plain":  # which the embedded model knows; the one object is all that moves
        assert abs(float(rows[2][2]) - float(rows[3][2])) < 0.2 and float(rows[2][2]) < float(rows[5][2])


@pytest.mark.slow
def test_startup(repo):
    out = script(repo, "startup.py", "--rounds", "1", "--only", "fit --help")
    assert "| fit --help | python -m lightning |" in out and "| fit --help | times |" in out


@pytest.mark.slow
def test_object_storage(repo):
    rows = [line for line in script(repo, "object_storage.py", "--seconds", "1").splitlines() if line.startswith("| ")]
    assert [row.split("|")[1:3] for row in rows[1:]] == [
        [f" {where} ", f" {workers} "] for where in ("disk", "store") for workers in (0, 1, 2)
    ]


@pytest.mark.slow
def test_loader_of_no_checkout_is_one_line(repo, tmp_path):
    done = subprocess.run(
        [sys.executable, str(repo / "benchmarks" / "loader.py"), "--released", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    expected = f"--released {tmp_path}: configs/train_debug_from_tar.yaml is missing there"
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(expected)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_bare_svd_tells_each_difference(repo):
    out = script(repo, "bare_svd.py", "--height", "64", "--width", "64", "--frames", "2", "--steps", "2")
    changes = {row.split("|")[1].strip(): float(row.split("|")[4]) for row in out.splitlines()[2:]}
    names = {"max_guidance_scale", "fps", "fps_offset", "motion_bucket_id", "stock_eps", "squash", "embed_picture"}
    assert set(changes) == names and all(change > 0 for change in changes.values())


@pytest.mark.slow
def test_sgi2v_memory(repo):
    rows = script(repo, "sgi2v_memory.py").splitlines()
    whole, recomputed, block = (float(row.split("GiB")[0].split()[-1]) for row in rows[:3])
    assert whole > recomputed + block
