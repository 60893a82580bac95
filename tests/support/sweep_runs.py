"""Runs that stand in for those of a sweep: they do at once what a run may meet."""

from pathlib import Path

from remoco.common.whole_files import write_json
from remoco.sweep.plan import Trial
from remoco.sweep.trial import new_record, record_file

RUN = """
import os, signal, sys, time
from pathlib import Path

options = dict(word[2:].split("=", 1) for word in sys.argv[2:])
folder = Path(options["out"], "seen")
own = folder / options["name"]

def save(number, frame):
    own.with_suffix(".saved").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
with own.open("a") as file:
    print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), sys.argv[1], file=file)

def first():
    return len(own.read_text().splitlines()) == 1

what = options.get("what")
if what == "fail":
    sys.exit("ValueError: no such thing")
if what == "die" or what == "die once" and first():
    os.kill(os.getpid(), signal.SIGKILL)
if what == "lose the worker" and first():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
if what == "wait" and first():
    time.sleep(600)
if what == "wait in its test" and sys.argv[1] == "test" and len(own.read_text().splitlines()) == 2:
    time.sleep(600)
if what == "meet":  # the run beside this one
    ours = own.with_suffix(".meets")
    ours.touch()
    end = time.monotonic() + 100
    while len(list(folder.glob("*.meets"))) != 2:
        if time.monotonic() > end:
            sys.exit("RuntimeError: alone")
        time.sleep(0.05)
    time.sleep(2)  # a third would be seen
    if len(list(folder.glob("*.meets"))) > 2:
        sys.exit("RuntimeError: three at once")
if what == "last":
    for path in folder.glob("*.meets"):
        path.unlink()
"""


def of(out: Path, **what: str) -> list[Trial]:
    """Trials whose fit does something, or whose test where it says so, with their records."""
    (out / "seen").mkdir(parents=True, exist_ok=True)
    record_file(out, "").parent.mkdir(exist_ok=True)
    trials = []
    for name, each in what.items():
        common = [f"--out={out}", f"--name={name}"]
        test = [*common, *([f"--what={each}"] if each.endswith("test") else [])]
        trials.append(Trial(name, {"a": name}, 0, [*common, f"--what={each}"], test))
        if not record_file(out, name).exists():
            write_json(record_file(out, name), new_record(trials[-1]))
    return trials
