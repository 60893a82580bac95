"""What `python -m lightning` shows: one line of progress, short tables, each protocol once; and `--ckpt_path last`."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import warnings

import pytest

from remoco.terminal import one_line_warnings
from tests.support.commands import quick


def state(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("checkpoints/*") if path.is_file()}


def test_last_starts_from_scratch_where_there_is_none_and_resumes_where_there_is(lightning, sprites, tmp_path):
    run = tmp_path / "runs" / "one"
    words = ("fit", *quick(sprites, run), "--ckpt_path=last")
    code, said = lightning(*words)
    assert code == 0 and f"No checkpoint in {run} yet: the run starts from scratch\n" in said, said
    code, resumed = lightning(*words, "--trainer.max_steps=3")
    assert code == 0 and "from scratch" not in resumed and "Restored all states" in resumed, resumed
    for meant in ("in eval mode", "exists and is not empty", "treespec", "not resumable", "many workers"):  # by design
        assert meant not in said + resumed
    assert [path.name for path in run.parent.iterdir()] == ["one"]


BROKEN = {
    "empty": (lambda last: last.write_bytes(b""), "last.ckpt"),
    "cut off": (lambda last: last.write_bytes(last.read_bytes()[:1000]), "last.ckpt"),
    "leads nowhere": (lambda last: (last.unlink(), last.symlink_to("elsewhere.ckpt")), "last.ckpt"),
    "a folder": (lambda last: (last.unlink(), last.mkdir()), "last.ckpt"),
    "gone, beside a best": (lambda last: last.rename(last.with_name("best.ckpt")), "holds best.ckpt, but no last.ckpt"),
}


@pytest.fixture(scope="module")
def finished(lightning, sprites, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "runs" / "one"
    code, said = lightning("fit", *quick(sprites, run), "--trainer.limit_val_batches=0")
    assert code == 0, said
    return (run / "checkpoints/last.ckpt").read_bytes()


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_last_is_one_line_and_never_skipped(lightning, sprites, finished, tmp_path, damage):
    run = tmp_path / "runs" / "one"
    (run / "checkpoints").mkdir(parents=True)
    last = run / "checkpoints/last.ckpt"
    last.write_bytes(finished)
    change, named = BROKEN[damage]
    change(last)
    before = state(run)
    code, said = lightning("fit", *quick(sprites, run), "--ckpt_path=last")
    assert code == 2 and named in said.splitlines()[-1] and "from scratch" not in said, said
    assert state(run) == before and [path.name for path in run.parent.iterdir()] == ["one"]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_only_a_fit_does_without_a_checkpoint(lightning, sprites, tmp_path, command):
    code, said = lightning(command, *quick(sprites, tmp_path / "runs" / "one"), "--ckpt_path=last")
    assert code == 2 and "there is no checkpoint" in said.splitlines()[-1], said


def on_a_terminal(words: list[str], columns: int = 80) -> str:
    """What a command writes to a terminal of so many columns."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("COLUMNS", None)
        os.execve(sys.executable, [sys.executable, "-m", "lightning", *words], os.environ | {"OMP_NUM_THREADS": "1"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written = b""
    try:
        while part := os.read(terminal, 1 << 16):
            written += part
    except OSError:  # Linux's end of a terminal
        pass
    assert os.waitpid(child, 0)[1] == 0, written.decode(errors="replace")[-3000:]
    return written.decode()


@pytest.mark.slow
def test_a_terminal_of_80_columns_shows_whole_lines(sprites, tmp_path):
    run = tmp_path / "runs" / "one"
    more = {"trainer.max_steps": 4, "trainer.enable_progress_bar": "true", "trainer.log_every_n_steps": 1}
    text = on_a_terminal(["fit", *quick(sprites, run, **more)])
    assert "poch" not in text and "-2" not in text and "site-packages" not in text and "TPU" not in text
    bars = [line for line in re.split(r"[\r\n]+", text) if re.match("train: +\\d", line)]
    assert " 4/4 [" in bars[-1] and "loss=" in bars[-1] and max(map(len, bars)) <= 80
    validations = re.findall(r"val/fvd_random_features = [\d.e-]+(.*)", text)
    assert [note.strip()[:1] for note in validations] == ["[", ""]  # the protocol is said once
    assert len(re.findall("is not comparable with published ones", text)) == 1
    text = on_a_terminal(["test", *quick(sprites, run, **more), "--ckpt_path=last"])
    assert "site-packages" not in text and "┃" not in text
    assert re.search(r"^test/loss +[\d.]+\r$", text, re.MULTILINE), text


def test_a_warning_is_one_line_once_and_none_that_developers_are_meant_by(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        one_line_warnings("python -m lightning")
        for _ in range(2):
            warnings.warn("the batch is\nsmall", UserWarning, stacklevel=1)
        warnings.warn("this function goes away", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "python -m lightning: warning: the batch is small\n"
