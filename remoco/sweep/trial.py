"""One trial: fit and test as processes of their own, gone on with after a kill, and a record of how far it came.

Imported by Ray's workers: without torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remoco.common.errors import UserError
from remoco.common.whole_files import naming, read_object, write_json
from remoco.result_files import is_label, is_number
from remoco.sweep.plan import Trial

STOPPED = (130, 143)  # exit codes of a run that a signal stopped and that saved
STATES = ("waiting", "started", "finished", "failed")
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "point": (lambda value: isinstance(value, dict) and all(map(is_label, (*value, *value.values()))), "texts"),
    "seed": (lambda value: type(value) is int and 0 <= value < 2**63, "a whole number"),
    "state": (lambda value: value in STATES, f"one of {', '.join(STATES)}"),
    "error": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "fitted": (lambda value: isinstance(value, bool), "true or false"),
    "attempts": (lambda value: type(value) is int and 0 <= value < 2**63, "a whole number"),
    "seconds": (is_number, "a number"),
}
"""Field of a trial's record -> whether a value can be, and what it should be."""
PATIENCE = 120  # seconds that a run may take to end after its driver was killed or a signal stopped it
POLL = 0.1  # seconds


class Killed(Exception):
    """A process of the trial was killed or stopped; it can resume from its last checkpoint."""


def perform(trial: Trial, out: Path, cwd: Path) -> dict[str, Any]:
    """Fit and test unless it is done; returns the trial's record, `state` is `finished` or `failed`.

    Args:
        trial: what to run.
        out: the sweep's folder.
        cwd: where relative paths of the configuration begin.

    Raises:
        Killed: another attempt resumes from here.
        KeyboardInterrupt: a signal stopped the sweep; the run has saved.
    """
    record = read_record(out, trial.name) or new_record(trial)
    if record["state"] == "finished":
        return record
    folder = out / trial.name
    _wait_for(folder / ".lock")
    if record["attempts"] and not record["fitted"] and not (folder / "checkpoints" / "last.ckpt").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # nothing to resume from; the run would keep it under another name
    start, before = time.monotonic(), record["seconds"]

    def note(state: str, error: str | None = None, **more: Any) -> dict[str, Any]:
        record.update(more, state=state, error=error, seconds=round(before + time.monotonic() - start, 1))
        write_json(record_file(out, trial.name), record)
        return record

    note("started", attempts=record["attempts"] + 1)
    for stage in ("fit", "test"):
        if stage == "fit" and record["fitted"]:
            continue
        options = trial.fit if stage == "fit" else [f"--config={folder / 'config.yaml'}", *trial.test]
        if stage == "test" or (folder / "checkpoints" / "last.ckpt").is_file():
            options = [*options, "--ckpt_path=last"]
        try:
            code, error = _run([sys.executable, "-m", "lightning", stage, *options], log_file(out, trial.name), cwd)
        except KeyboardInterrupt:
            note("waiting")
            raise
        if code < 0 or code in STOPPED:
            note("failed", f"{stage} was killed by signal {-code}" if code < 0 else f"{stage} was told to stop")
            raise Killed(record["error"])
        if code:
            return note("failed", f"{stage}: {error}")
        note("started", fitted=True)
    return note("finished")


def new_record(trial: Trial) -> dict[str, Any]:
    """The record of a trial that has not begun."""
    return {**asdict(trial), "state": "waiting", "error": None, "fitted": False, "attempts": 0, "seconds": 0.0}


def record_file(out: Path, name: str) -> Path:
    """Where a trial's record is; beside the run folders, which belong to the runs."""
    return out / "trials" / f"{name}.json"


def log_file(out: Path, name: str) -> Path:
    """Where everything that a trial prints goes."""
    return out / "logs" / f"{name}.log"


def read_record(out: Path, name: str) -> dict[str, Any] | None:
    """The record of a trial; None where there is none.

    Raises:
        UserError: one line that names the file and the field that cannot be.
    """
    path = record_file(out, name)
    if not os.path.lexists(path):
        return None
    record = read_object(path)
    for field, (fits, expected) in FIELDS.items():
        if field not in record or not fits(record[field]):
            raise UserError(f"{path}: {field}: expected {expected}")
    return record


def last_line(log: Path, failed: bool = False) -> str:
    """What a log says last; if it `failed`, the last line that names an error, where one does."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = [line.strip() for line in re.split(r"[\r\n]+", file.read().decode(errors="replace"))]
    except OSError:
        return ""
    lines = [line for line in lines if line]
    begun = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=0)  # not of an attempt before
    named = [line for line in lines[begun:] if re.match(r"[\w.]*(Error|Exception)\b|.*: error: ", line)]
    return (named if failed and named else lines or [""])[-1]


def _run(command: list[str], log: Path, cwd: Path) -> tuple[int, str]:
    """Exit code, and what was said last."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with naming(log), open(log, "ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, cwd=cwd, stdout=file, stderr=file, start_new_session=True, preexec_fn=_die_with_parent()
        )
        try:
            while (code := process.poll()) is None:
                time.sleep(POLL)
        except KeyboardInterrupt:  # a signal stops the sweep: Ray raises it between two lines, not in a system call
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            raise
        finally:  # ranks that outlive the first would keep their GPUs
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, last_line(log, failed=code != 0)


def _die_with_parent() -> Any:
    """On Linux the kernel kills the run when this process is killed: nobody else would end it, or take its results."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def before_exec() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return before_exec


def _wait_for(lock: Path) -> None:
    """Wait until no other process holds a run folder's lock; the run itself refuses where one still does."""
    for _ in range(PATIENCE):
        try:
            with open(lock, "r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(1)
