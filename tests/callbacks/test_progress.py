"""One line of progress: the run's steps, short names, no wider than the terminal; a log instead where there is none."""

import contextlib
import io
import re
import sys

import pytest

from callbacks import Evaluation, Samples, progress
from callbacks.progress import StepProgress, short, table
from tests.support.callbacks_stand_in import Data, Module, trainer


class Screen(io.StringIO):
    """Stands in for a terminal's stderr."""

    def isatty(self) -> bool:
        return True


class Names(Module):
    """Logs what the small module logs, and a long name for the bar."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, prog_bar=True, logger=False)
        self.log("throughput/a_name_that_is_long_enough_to_be_broken_over_three_lines", 29.27, prog_bar=True)
        return loss


@pytest.fixture
def screen(monkeypatch) -> Screen:
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 24))
    return Screen()


def fit(folder, screen=None, callbacks=(), **options) -> None:
    """Train on a terminal: pytest puts its own streams in place between a fixture and its test."""
    with contextlib.redirect_stderr(screen or sys.stderr), contextlib.redirect_stdout(screen or sys.stdout):
        trainer(folder, [*callbacks, StepProgress()], **options).fit(Names(), datamodule=Data())


def bars(screen: Screen, name: str) -> list[str]:
    return [line.strip() for line in re.split(r"[\r\n]", screen.getvalue()) if line.startswith(f"{name}: ")]


def test_the_bar_counts_the_steps_of_the_run_in_one_line(tmp_path, screen):
    fit(tmp_path, screen, max_steps=11, limit_val_batches=0)  # an epoch has 8
    lines = bars(screen, "train")
    assert " 0/11 [" in lines[0] and " 11/11 [" in lines[-1] and "loss=" in lines[-1]
    assert max(map(len, lines)) <= 80 and "poch" not in screen.getvalue()


def test_accumulated_batches_are_one_step(tmp_path, screen):
    fit(tmp_path, screen, max_steps=3, accumulate_grad_batches=2, limit_val_batches=0)
    assert " 3/3 [" in bars(screen, "train")[-1]


def test_a_run_in_epochs_names_them_and_ends_at_all_of_their_steps(tmp_path, screen):
    fit(tmp_path, screen, max_steps=-1, max_epochs=2, limit_val_batches=0)
    assert " 16/16 [" in bars(screen, "epoch 2/2")[-1]


def test_a_validation_has_a_bar_that_leaves_nothing(tmp_path, screen):
    fit(tmp_path, screen, max_steps=4, val_check_interval=2)
    assert bars(screen, "validation") and screen.getvalue().rstrip().splitlines()[-1].lstrip("\r").startswith("train")


def test_what_is_printed_stands_above_the_bar(tmp_path, screen):
    fit(tmp_path, screen, [Evaluation(samples=Samples(clips=1))], max_steps=2, val_check_interval=2)
    before, said, _ = screen.getvalue().partition("Samples written")
    assert said and re.search(r"\r +\r(\x1b\[A)?$", before)  # at the start of a cleared line


def test_without_a_terminal_a_training_says_its_step_once_in_a_while(tmp_path, capsys, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    fit(tmp_path, max_steps=8, limit_val_batches=0)
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("train: step ")]
    assert 1 < len(lines) < 8 and re.match(r"train: step \d/8, loss=[\d.]+, ", lines[0]) and "\r" not in out + err


def test_short_names_stay_apart():
    assert short({"a/loss": 1.23456, "b/loss": 2, "c/rate": 3e-9}) == {
        "a/loss": "1.235",
        "b/loss": "2",
        "rate": "3e-09",
    }


def test_a_table_has_a_line_for_each_number():
    text = table({"val/loss": 1.5, "val/control_error_standing_still_over_all_objects": 13.654325})
    assert text.splitlines()[0] == "val/control_error_standing_still_over_all_objects  13.6543"
    assert text.splitlines()[1].split() == ["val/loss", "1.5000"]
