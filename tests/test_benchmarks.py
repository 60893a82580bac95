"""The scripts of benchmarks/ run without a GPU at a small size, and benchmarks/README.md names each of them."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch

SMALL = ("--device", "cpu", "--size", "tiny", "--height", "64", "--width", "64", "--frames", "2")
BARE = "bare network, forward and gradient"
WAN = ("--device", "cpu", "--size", "tiny", "--height", "64", "--width", "96", "--frames", "9")
COGVIDEOX = (*WAN[:6], "--width", "64", "--frames", "9")


def script(repo, name: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(repo / "benchmarks" / name), *args],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_page_of_the_benchmarks_names_each_script_and_no_other(repo):
    scripts = {path.name for path in (repo / "benchmarks").rglob("*.py")}
    assert set(re.findall(r"\w+\.py", (repo / "benchmarks/README.md").read_text())) == scripts


def test_the_benchmarks_stay_small(repo):
    assert sum(len(path.read_text().splitlines()) for path in (repo / "benchmarks").rglob("*.py")) <= 3400


def test_what_documents_and_tests_name_of_the_benchmarks_is_there(repo):
    """But for a script that left, which `COMMIT:benchmarks/...` names."""
    places = [repo / "benchmarks", repo / "configs", repo / "docs", repo / "remoco", repo / "tests"]
    files = [*repo.glob("*.md"), *(path for place in places for path in place.rglob("*"))]
    for path in (path for path in files if path.suffix in {".md", ".py", ".yaml"}):
        for commit, name in re.findall(r"(\b[0-9a-f]{7}:)?benchmarks/([a-z]\w*\.(?:py|md))", path.read_text()):
            assert commit or (repo / "benchmarks" / name).is_file(), f"{path.relative_to(repo)} names benchmarks/{name}"


@pytest.mark.slow
def test_count(repo, tmp_path):
    file = tmp_path / "counts.json"
    out = script(repo, "count.py", "--size", "tiny", "--batch", "2", "--json", str(file), "--only",
                 BARE, "default_training_step", "all levels recomputed", "nothing recomputed")  # fmt: skip
    counts = json.loads(file.read_text())
    default, all_levels, nothing = (
        counts[name] for name in ("default_training_step", "all levels recomputed", "nothing recomputed")
    )
    assert default["trained_without_gradient"] == 0 and "| default_training_step |" in out
    assert nothing["ms"] < default["ms"] < all_levels["ms"]
    assert nothing["peak_gib"] > default["peak_gib"] > all_levels["peak_gib"]
    assert default["of_bare"] == pytest.approx(default["ms"] / counts[BARE]["ms"]) and default["of_bare"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("base", ["wan14b", "wan5b", "cogvideox"])
def test_count_of_transformers(repo, tmp_path, base):
    """A step is the network's own, its control and LoRA, and one more forward of what is recomputed."""
    file = tmp_path / "counts.json"
    size = ("--height", "64", "--width", "64", "--frames", "9")
    out = script(repo, "count.py", "--base", base, "--size", "tiny", *size, "--json", str(file))
    counts = json.loads(file.read_text())
    bare, default, kept = (counts[name] for name in (BARE, "default_training_step", "nothing recomputed"))
    assert default["trained_without_gradient"] == 0 and bare["trained_m"] == 0 and "| concat |" in out
    assert bare["tflop"] < kept["tflop"] < default["tflop"] < counts["encoding the videos"]["tflop"]
    assert bare["tflop"] < counts["nothing recomputed, without LoRA"]["tflop"] < kept["tflop"]


@pytest.mark.slow
def test_memory(repo, tmp_path):
    """What is counted of each base, and what is chosen on each card."""
    file = tmp_path / "memory.json"
    bases = ("svd", "wan14b", "wan5b", "cogvideox")
    out = script(repo, "memory.py", "--size", "tiny", "--base", *bases, "--json", str(file))
    assert "| wan5b | 9 x 64 x 64 |" in out
    for base, found in json.loads(file.read_text()).items():
        need = found["rest"] + found["blocks"] + found["beside"]
        need += max(found["step"] + found["merged"], found["clip"]["None"])
        assert f"| {base} | 8 GiB | {need / 1e9:.1f}: everything on the device |" in out
        assert min(found[name] for name in ("rest", "blocks", "pair", "beside", "merged", "step")) > 0
        assert found["branch"] <= found["step"] and len(found["clip"]) >= 2


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--base", "wan14b", "--frames", "80"), "frames is 80, expected 1 plus a multiple of 4, the nearest 77"),
        (("--base", "wan5b", "--size", "small"), "--size is small, expected one of tiny, full for --base wan5b"),
        (("--base", "cogvideox", "--width", "832"), "width is 832, expected 720: this base takes clips of 49"),
        (("--base", "wan5b", "--only", "all levels recomputed"), "count.py: error: --only 'all levels rec"),
    ],
)  # fmt: skip
def test_what_a_base_does_not_take_is_one_line(repo, monkeypatch, capsys, args, error):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    count = importlib.import_module("count")
    monkeypatch.setattr(sys, "argv", ["count.py", *args])
    with pytest.raises(SystemExit) as stop:
        count.main()
    said = capsys.readouterr().err.splitlines()[-1] if stop.value.code == 2 else stop.value.code
    assert said.startswith(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("training.py", (*SMALL, "--batch", "1", "--steps", "1", "--only", "recipe", BARE, "channels_last")),
        ("training.py", (*WAN, "--base", "wan14b", "--steps", "1", "--only", "recipe", BARE, "encoding the videos")),
        ("training.py", (*COGVIDEOX, "--base", "cogvideox", "--steps", "1", "--only", "recipe", "nothing recomputed")),
        ("sampling.py", (*SMALL, "--steps", "2", "--times", "1", "--no-compile")),
        ("sampling.py", (*WAN, "--base", "wan5b", "--steps", "2", "--times", "1", "--no-compile")),
        ("sampling.py", (*COGVIDEOX, "--base", "cogvideox", "--steps", "2", "--times", "1", "--no-compile")),
    ],
)  # fmt: skip
def test_runs_small(repo, name, args):
    out = script(repo, name, *args)
    assert "bf16 TFLOP/s" in out and "| --- |" in out


@pytest.mark.slow
def test_longer_measures_each_way(repo):
    out = script(repo, "longer.py", "--clips", "1", "--times", "1", "2", "--overlaps", "0")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")][2:]
    ways = ["whole", "whole", "windows", "continue", "windows, overlap 0"]
    assert [row[:2] for row in rows] == [[frames, way] for frames, way in zip(["8"] + 4 * ["16"], ways)]
    assert all(0 < float(row[2]) < 64 and 0 < float(row[3]) < 10 for row in rows[1:])


@pytest.mark.slow
def test_real_run_small(repo, tmp_path):
    out = script(repo, "real_run.py", str(tmp_path), "--small", "--precision", "bf16-mixed", "--steps", "2", "3")
    assert "| bf16-mixed | 3 |" in out and "trainer.precision is bf16-true, expected bf16-mixed" in out
    assert (tmp_path / "tiny/unet/diffusion_pytorch_model.fp16.safetensors").is_file()


@pytest.mark.slow
def test_against_measures_each_side(repo):
    few = ("--rounds", "1", "--steps", "1", "--dtypes", "float32", "--lora", "attention")
    out = script(repo, "against.py", "--size", "tiny", "--frames", "2", "--height", "64", "--width", "64", *few)
    same, *tables = out.split("float32:\n")
    assert [line.split("|")[3].strip() for line in same.splitlines() if line.startswith("| wan")] == [
        "diffusers + peft", "ours, all recomputed",
    ]  # fmt: skip
    assert len(tables) == 3
    for each in tables:
        rows = [line.split("|")[1:-1] for line in each.splitlines() if line.startswith("| ")][2:]
        sides, ratios = rows[:4], rows[6:]  # between them the second table's head
        assert [row[0].strip() for row in sides] == ["bare", "diffusers + peft", "ours", "ours, all recomputed"]
        assert [row[0].strip() for row in ratios] == ["ours over bare", "ours over diffusers + peft"]
        assert all(float(cell.split()[0]) > 0 for row in sides + ratios for cell in row[1:])
        assert ratios[0][1:] == sides[2][2::2]


@pytest.mark.slow
def test_against_ends_with_1_where_a_side_computes_another_thing(repo, monkeypatch):
    """Here diffusers' own eps, which shows in float64 alone."""
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    against = importlib.import_module("against")
    monkeypatch.setattr(against.sides, "set_res_block_eps", lambda unet: 0)
    monkeypatch.setattr(sys, "argv", ["against.py", "--size", "tiny", "--bases", "svd", "--lora", "attention"])
    with pytest.raises(SystemExit, match="outputs differ by more than 1e-09, nothing was timed"):
        against.main()


@pytest.mark.slow
def test_against_takes_no_nan_for_the_same(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    apart = importlib.import_module("against").apart
    mine = {"loss": torch.tensor(4.0), "gradient.a": torch.tensor([1.0, -2.0]), "gradient.b": torch.tensor([0.5])}
    assert apart(mine, mine | {"gradient.b": torch.tensor([0.25])}) == 0.125
    assert apart(mine, {name: value for name, value in mine.items() if name != "gradient.b"}) == 0.25
    for name, value in mine.items():
        assert apart(mine, mine | {name: value * torch.nan}) == apart(mine | {name: value / 0}, mine) == torch.inf


@pytest.mark.slow
def test_against_no_checkout_is_one_line(repo, tmp_path):
    done = subprocess.run(
        [sys.executable, str(repo / "benchmarks/against.py"), "--released", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "video_model_flow.py is missing there" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_gpu_dry(repo, tmp_path):
    """All that a GPU would run, at size tiny; what needs one says so. A part that fails makes it end with 1."""
    out = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(repo / "benchmarks/gpu.sh"), "60", "--dry"], capture_output=True, text=True, env=out, timeout=3600
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== )", done.stdout, re.M | re.S))
    skipped = {name for name, text in parts.items() if text.startswith("skipped: needs CUDA")}
    assert skipped == {"svd_step_compiled", "sampling_graph"} and "SKIPPED" in parts["tests"]
    for name in parts.keys() - skipped - {"tests"}:
        assert "| --- |" in (tmp_path / f"{name}.md").read_text(), name


def test_gpu_ends_with_1_where_a_part_fails_and_says_what_a_machine_lacks(repo, tmp_path):
    python = tmp_path / "python"  # finds no package; then has all of them, and every part fails
    for content, code, said in (("echo diffusers peft", 2, "missing: diffusers peft."), ("exit 3", 1, "failed with 3")):
        ask = "if [[ $1 == - ]]; then {}; else exit 3; fi".format(content if code == 2 else "true")
        python.write_text(f"#!/usr/bin/env bash\n{ask}\n")
        python.chmod(0o755)
        done = subprocess.run(
            [str(repo / "benchmarks/gpu.sh"), "9", "--dry"], capture_output=True, text=True,
            env={**os.environ, "OUT": str(tmp_path), "PYTHON": str(python)},
        )  # fmt: skip
        assert done.returncode == code and said in done.stdout + done.stderr
    assert "failed: tests svd_step svd_step_all" in done.stdout
    done = subprocess.run(
        [str(repo / "benchmarks/gpu.sh"), "0", "--dry"], capture_output=True, text=True,
        env={**os.environ, "OUT": str(tmp_path), "PYTHON": str(python)},
    )  # fmt: skip
    assert done.returncode == 0 and "failed" not in done.stdout  # no time is no limit to `timeout`
    assert len(re.findall(r"^skipped: -?\d+ s left", done.stdout, re.M)) == 7


def test_gpu_names_packages_at_the_versions_of_the_tests(repo):
    found = subprocess.run([str(repo / "benchmarks/gpu.sh"), "--packages"], capture_output=True, text=True, check=True)
    lines = found.stdout.split()
    assert len(lines) == len((repo / "benchmarks/gpu.txt").read_text().split())
    assert {line.partition("==")[0] for line in lines} >= {"diffusers", "peft", "lightning", "jsonargparse"}
    assert set(lines) <= set((repo / "constraints.txt").read_text().splitlines())


@pytest.mark.slow
def test_startup(repo):
    out = script(repo, "startup.py", "--rounds", "1", "--only", "fit --help")
    assert "| fit --help | python -m lightning |" in out and "| fit --help | times |" in out


@pytest.mark.slow
def test_help(repo):
    out = script(repo, "help.py", "--rounds", "1", "--only", "sweep", "table", "--other", str(repo))
    assert "| `--help` of | other checkout | this one |" in out and "| `remoco sweep table` | 0." in out


@pytest.mark.slow
def test_ranks_send_what_is_trained_and_see_the_same_samples(repo):
    """A ring moves 2 (n - 1) / n of what is trained; the kernel's count has beside it what Lightning agrees upon."""
    out = script(repo, "ranks.py", "--ranks", "1", "2", "--steps", "2", "--recipes", "lora")
    one, two = ([cell.strip() for cell in row.split("|")[1:-1]] for row in out.splitlines()[2:])
    assert (one[1], two[1]) == ("1", "2") and one[2:4] == two[2:4] and float(two[3]) < float(two[2]) / 5
    assert float(one[4]) == 0 and float(one[5].split("..")[-1]) < 0.02
    counted = float(two[3])
    for cell in two[5].split(".."):
        assert counted <= float(cell) < 1.02 * counted
    assert one[7] == two[7] == "yes" and 0 < float(two[8]) < 1e-3


@pytest.mark.slow
def test_ranks_end_with_1_where_samples_are_others(repo, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    ranks = importlib.import_module("ranks")

    def run(recipe, number, steps, folder):
        torch.save({"a": torch.zeros(1)}, folder / "weights.pt")
        each = {"received": 1.0, "waited": 0.1, "trained": 4, "parameters": 8}
        return [each | {"drawn": {str(position): f"{min(number, 2)}"}} for position in range(number)]

    monkeypatch.setattr(ranks, "run", run)
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--ranks", "1", "2", "--recipes", "base"])
    with pytest.raises(SystemExit, match="samples, regions or noise are others"):
        ranks.main()
    assert "| **no** |" in capsys.readouterr().out


@pytest.mark.slow
def test_object_storage(repo):
    rows = [line for line in script(repo, "object_storage.py", "--seconds", "1").splitlines() if line.startswith("| ")]
    assert [row.split("|")[1:3] for row in rows[2:]] == [
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
