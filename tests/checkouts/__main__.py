"""Run two checkouts on this machine and compare what they compute, by bits and at 1e-12 of each tensor's largest value.

    python -m tests.checkouts OLD NEW
    git worktree add ../old REVISION && python -m tests.checkouts ../old .

Compared are 20 training steps after a resume, drawings of the page up to the control tensor, a generated clip, and the
numbers of `remoco score`. Each checkout runs in processes of its own, with its folder as the working folder and one
thread. What is called otherwise in one of them is in `names.py`. Prints a table. Ends with 0 where no difference is
larger than 1e-12, 1 where one is, 2 where something does not run. Inputs, results and logs stay in runs/checkouts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from PIL import Image, ImageSequence

from remoco.common.videos.files import read_video
from tests.checkouts.compare import MOST, compare, table
from tests.checkouts.drawings import drawings, write_stroke
from tests.checkouts.names import CONFIGS, NAMES, intended, spelled
from tests.support.scalars import points

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "checkouts"
SHARED = FOLDER / "shared"
STEPS = (10, 30)  # at which the run ends, is resumed, and ends again
SETTINGS = {
    "trainer.accelerator": "cpu",
    "trainer.val_check_interval": 10,
    "trainer.num_sanity_val_steps": 0,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "model.init_args.sample_steps": 2,
    "data.init_args.root": SHARED / "sprites",
    "data.init_args.clips": 24,
    "data.init_args.val_clips": 4,
    "data.init_args.batch_size": 4,
    "data.init_args.val_batch_size": 4,
    "data.init_args.num_workers": 0,
}
BENCH = ("--pairs", "2", "--height", "64", "--width", "96", "--frames", "6")


@dataclass(frozen=True)
class Side:
    """One of the two: its folder, its interpreter, and where its results go."""

    name: str
    checkout: Path
    python: Path
    out: Path

    def run(self, log: str, *command: str | Path) -> None:
        """Run its interpreter; what does not end with 0 ends all."""
        path = self.out / f"{log}.log"
        print(f"{self.name}: {log}", flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.checkout)}
        arguments = [str(self.python), *map(str, command)]
        with open(path, "w") as file:
            code = subprocess.run(arguments, cwd=self.checkout, env=environment, stdout=file, stderr=file).returncode
        if code:
            last = (path.read_text("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
            stop(f"{self.name}: {' '.join(arguments[1:])} ended with {code}, see {path}: {last}")


def stop(line: str) -> NoReturn:
    """Say why nothing can be compared, and end with 2."""
    print(line, file=sys.stderr)
    sys.exit(2)


def inputs() -> None:
    """Write what both are given, but for the sprites and the benchmark, which the first run writes."""
    SHARED.mkdir(parents=True)
    write_stroke(SHARED)
    request = {"names": NAMES, "drawings": drawings(SHARED)}
    (SHARED / "request.json").write_text(json.dumps(request))


def fit(side: Side, name: str) -> None:
    """A run that ends, is resumed and goes on."""
    there = [files for files in CONFIGS[name] if all((side.checkout / file).is_file() for file in files)]
    if not there:
        stop(f"{side.checkout}: has none of {CONFIGS[name]}: add its files to CONFIGS in tests/checkouts/names.py")
    files = there[-1]
    configs = [config for file in files for config in _layers(side.checkout / file)]
    settings = SETTINGS | {"trainer.logger.init_args.save_dir": side.out, "trainer.logger.init_args.name": name}
    flags = [flag for file in files for flag in ("--config", file)]
    flags += [f"--{spelled(key, configs)}={value}" for key, value in settings.items()]
    for steps in STEPS:
        resumed = ["--ckpt_path", "last"] if steps != STEPS[0] else []
        log = f"fit {name} to step {steps}"
        side.run(log, "-m", "lightning", "fit", *flags, f"--trainer.max_steps={steps}", *resumed)


def _layers(file: Path) -> list[dict[str, Any]]:
    """A configuration and those below it, where it names one."""
    config = yaml.safe_load(file.read_text())
    return [config, *(_layers(file.parent / config["config"]) if "config" in config else [])]


def use(side: Side) -> None:
    """Drawings, a generated clip and scores."""
    probe = Path(__file__).with_name("probe.py")
    side.run("drawings", "-P", probe, SHARED / "request.json", side.out / "drawings.npz")
    stroke = ("--tracks", SHARED / "tracks.json", "--brush", SHARED / "brush.png", "--out", side.out / "clip.mp4")
    side.run(
        "generate", "-m", "remoco", "generate", "embedded-sprites", SHARED / "image.png", *stroke, "--device", "cpu"
    )
    for number in range(2):  # the second has videos of the same names as the first's, which show other things
        if not (root := SHARED / f"bench-{number}").exists():
            side.run(f"sprite-bench {number}", "-m", "remoco", "sprite-bench", root, *BENCH, "--seed", str(number))
    judged = (SHARED / "bench-1" / "true_clips", "--frames", "6", "--device", "cpu")
    for kind, place in (("bench", SHARED / "bench-0"), ("reference", SHARED / "bench-0" / "true_clips")):
        options = (*judged, f"--{kind}", place, "--json", side.out / f"{kind}.json")
        side.run(f"score --{kind}", "-m", "remoco", "score", *options)


def results(side: Side) -> dict[str, Any]:
    """What is compared -> nested values."""
    found: dict[str, Any] = {}
    for name in CONFIGS:
        saved = torch.load(side.out / name / "checkpoints" / "last.ckpt", weights_only=True)
        found[f"{name}: trained tensors"] = saved["state_dict"]
        found[f"{name}: optimizer"] = saved["optimizer_states"]
        found[f"{name}: average"] = saved["callbacks"]["EMA"]
        data = {key: part for key, part in saved.items() if isinstance(part, Mapping) and "position" in part}
        found[f"{name}: position"] = {"global_step": saved["global_step"]} | data
        numbers, pictures = _logged(side.out / name)
        found[f"{name}: log"], found[f"{name}: samples"] = numbers, pictures
    with np.load(side.out / "drawings.npz") as arrays:
        for path, array in ((json.loads(path), arrays[path]) for path in arrays.files):
            found.setdefault(f"drawing, {path[0]}: {path[1]}", {})["/".join(path[2:])] = array
    strip = _frames((side.out / "clip-strip.png").read_bytes())
    found["generate"] = {"clip.mp4": read_video(side.out / "clip.mp4")[0], "clip-strip.png": strip}
    for kind in ("bench", "reference"):
        scores = json.loads((side.out / f"{kind}.json").read_text())
        found[f"score --{kind}"] = {name: {"value": each["value"], "n": each["n"]} for name, each in scores.items()}
    return found


def _logged(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tag -> step -> values of a run's log: the numbers, and the pictures as pixels."""
    numbers: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    for tag, pairs in points(run).items():
        for step, value in sorted(pairs):
            kind, shown = (pictures, _frames(value)) if isinstance(value, bytes) else (numbers, value)
            kind.setdefault(tag, {}).setdefault(f"step {step}", []).append(shown)
    return numbers, pictures


def _frames(data: bytes) -> np.ndarray:
    """(L, H, W, 3) uint8 of a PNG or GIF."""
    with Image.open(BytesIO(data)) as picture:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])


def side(name: str, checkout: Path, python: Path | None) -> Side:
    """A side of its folder; the interpreter is that of its `.venv`, or without one this one."""
    checkout = checkout.resolve()
    if not (checkout / "remoco" / "__init__.py").is_file():
        stop(f"{name} {checkout}: expected a checkout of this project, found no remoco/__init__.py")
    own = checkout / ".venv" / "bin" / "python"
    out = FOLDER / name
    out.mkdir(parents=True)
    return Side(name, checkout, (python or (own if own.exists() else Path(sys.executable))).absolute(), out)


def main() -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.checkouts", description="Compare what two checkouts compute."
    )
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, help=f"Folder of the {name} checkout.")
        parser.add_argument(
            f"--{name}-python", type=Path, help="Its interpreter. Default: .venv/bin/python in its folder."
        )
    given = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    both = side("old", given.old, given.old_python), side("new", given.new, given.new_python)
    inputs()
    for each in both:
        for name in CONFIGS:
            fit(each, name)
        use(each)
    old, new = map(results, both)
    purposes = intended(*(each.checkout for each in both))
    rows = [compare(what, old.get(what, {}), new.get(what, {}), purposes.get(what, "")) for what in old | new]
    print(f"\n{table(rows)}\n")
    failed = [row.what for row in rows if not row.passed]
    print(f"more than {MOST:g} apart: {', '.join(failed)}" if failed else f"no difference above {MOST:g}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
