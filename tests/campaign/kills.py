"""Runs killed at random moments and resumed, against runs that were not."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import yaml

from tests.campaign.table import CONFIG, Attempt, Box

LIMIT = 900.0  # seconds after which a run counts as hung; it takes some, on a machine that is not busy
MOST = 4  # kills of one run


class Kills:
    """Attempts share the runs that were never killed, one for each schedule."""

    def __init__(self, box: Box, videos: Path) -> None:
        self.box, self.videos = box, videos
        self._whole: dict[tuple, tuple[Path, float]] = {}

    def attempt(self, rng: random.Random, kills: int) -> tuple[str, int, Attempt]:
        """(what was killed, how often, how it ended) of a run that is killed at most so many times."""
        if rng.random() < 0.2:
            return "kills of prepare", *self._prepare(rng, min(kills, MOST))
        return "kills of fit", *self._fit(rng, min(kills, MOST))

    def _fit(self, rng: random.Random, kills: int) -> tuple[int, Attempt]:
        schedule = (rng.choice([1, 2]), rng.choice([2, 3]), rng.choice([0, 4]))
        whole, seconds = self._reference(schedule)
        with self.box.attempt() as attempt:
            done = 0
            for _ in range(rng.randint(1, kills)):
                code = self._run(attempt, schedule, rng.choice([0, 0, 0, 1]), rng.uniform(0.1, 1.0) * seconds)
                done += code == -9
                if code != -9:
                    break
            else:
                code = self._run(attempt, schedule, rng.choice([0, 0, 0, 1]))
            attempt.survived = code == 0
            if code == 0:
                attempt.survived = attempt.run("compare", str(whole), str(attempt.out / "run")) == 0
                attempt.differing = attempt.answer() + files_differ(whole / "samples", attempt.out / "run/samples")
        return done, attempt

    def _run(self, attempt: Attempt, schedule: tuple, workers: int, kill_after: float = 0.0) -> int:
        accumulate, validate, sample = schedule
        config = yaml.safe_load(CONFIG.read_text())
        trainer = config["trainer"]
        trainer["logger"]["init_args"]["save_dir"] = str(attempt.out)
        trainer |= {"accumulate_grad_batches": accumulate, "val_check_interval": validate * accumulate}
        evaluation = next(each for each in trainer["callbacks"] if each["class_path"].endswith("Evaluation"))
        evaluation["init_args"]["samples"]["every_n_steps"] = sample
        config["data"]["init_args"] |= {"root": str(self.box.sprites), "num_workers": workers}
        (attempt.inputs / "config.yaml").write_text(yaml.safe_dump(config))
        arguments = ["--config", str(attempt.inputs / "config.yaml")]
        if (attempt.out / "run/checkpoints/last.ckpt").exists():
            arguments += ["--ckpt_path", "last"]
        return attempt.run("fit", arguments, limit=LIMIT, kill_after=kill_after)

    def _reference(self, schedule: tuple) -> tuple[Path, float]:
        if schedule not in self._whole:
            begin = time.monotonic()
            with self.box.attempt() as attempt:
                code = self._run(attempt, schedule, 0)
                if code:
                    raise SystemExit(f"a run that nobody killed ended with {code}:\n{attempt.said[-3000:]}")
                kept = self.box.root / f"whole-{len(self._whole)}"
                shutil.copytree(attempt.out / "run", kept)
            self._whole[schedule] = kept, time.monotonic() - begin
        return self._whole[schedule]

    def _prepare(self, rng: random.Random, kills: int) -> tuple[int, Attempt]:
        if "prepare" not in self._whole:
            begin = time.monotonic()
            with self.box.attempt() as attempt:
                if attempt.run("prepare", str(self.videos), str(attempt.out / "set"), limit=LIMIT):
                    raise SystemExit(f"a preparation that nobody killed failed:\n{attempt.said[-3000:]}")
                kept = self.box.root / "whole-prepare"
                shutil.copytree(attempt.out / "set", kept)
            self._whole["prepare"] = kept, time.monotonic() - begin
        whole, seconds = self._whole["prepare"]
        with self.box.attempt() as attempt:
            done, code, out = 0, -9, str(attempt.out / "set")
            for _ in range(rng.randint(1, kills)):
                code = attempt.run(
                    "prepare", str(self.videos), out, limit=LIMIT, kill_after=rng.uniform(0.1, 1) * seconds
                )
                done += code == -9
            code = attempt.run("prepare", str(self.videos), out, limit=LIMIT)
            attempt.survived = code == 0
            attempt.differing = files_differ(whole, attempt.out / "set")
        return done, attempt


def files_differ(a: Path, b: Path) -> int:
    """How many files of two folders differ."""
    names = {str(path.relative_to(root)) for root in (a, b) for path in root.rglob("*") if path.is_file()}
    return sum(
        not (a / n).is_file() or not (b / n).is_file() or (a / n).read_bytes() != (b / n).read_bytes() for n in names
    )
