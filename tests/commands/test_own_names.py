"""Files and folders in the working folder that are called as our packages are: ours are imported, a line says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import quick
from tests.support.installed import need
from tests.support.videos import write_video

REPO = Path(__file__).resolve().parents[2]
THEIRS = ["callbacks/__init__.py", "conditions/notes.txt", "datamodules.py", "lightning_modules/x.py", "metrics.py"]

MINE = """
from conditions import RegionWise

class Mine(RegionWise):
    pass

def places(names):
    from importlib import import_module
    return [import_module(name).__file__ for name in names]
"""

CHILDREN = """
import multiprocessing, os, sys
import mine
from datamodules import forking
from remoco.common import rooms
if __name__ == "__main__":
    theirs, contexts = rooms.hidden(), [multiprocessing.get_context(kind) for kind in ("fork", "spawn")]
    rooms.keep("test")
    for context in (*contexts, forking.context("remoco.common.errors", "conditions")):
        with context.Pool(1) as pool:
            print(*pool.apply(mine.places, [["conditions", "metrics.frechet", "remoco.cli"]]), sep="\\n")
"""


@pytest.fixture
def folder(tmp_path):
    """A working folder with `mine.py` and something in the way of each of our packages; importing a module fails."""
    for name in (*THEIRS, "remoco/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('the user's')\n")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def call(folder: Path, *command, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def said(done: subprocess.CompletedProcess, folder: Path) -> bool:
    """Whether one line, and no second one, names what was not imported."""
    lines = [line for line in done.stderr.splitlines() if "not imported" in line]
    return len(lines) == 1 and all(f"{folder / name.split('/')[0]}" in lines[0] for name in THEIRS)


@pytest.mark.slow
def test_ours_are_imported_and_so_is_a_module_of_the_users_with_another_name(folder):
    arguments = ["fit", "--config", "configs/quickstart.yaml", "--model.init_args.condition", "mine.Mine"]
    done = call(folder, "-m", "lightning", *arguments, "--print_config")
    assert said(done, folder) and "class_path: mine.Mine" in done.stdout
    assert str(folder / "remoco") in done.stderr


def test_a_folder_without_such_names_is_as_it_was(tmp_path):
    code = "import os, sys; from remoco.common import rooms; path = list(sys.path); rooms.keep('test'); "
    done = call(tmp_path, "-c", code + "assert sys.path == path and rooms.Ours not in sys.meta_path")
    assert not done.stderr


@pytest.mark.slow
def test_the_other_door_does_the_same(folder):
    for name in ("datamodules.py", "lightning_modules/x.py", "remoco/notes.txt"):  # -m would find these itself
        (folder / name).unlink()
    (folder / "lightning_modules").rmdir()
    (folder / "remoco").rmdir()
    done = call(folder, "-m", "remoco", "prepare", "--help")
    assert "usage: remoco" in done.stdout
    assert done.stderr.count("\n") == 1 and str(folder / "metrics.py") in done.stderr, done.stderr
    done = subprocess.run(
        [Path(sys.executable).with_name("remoco"), "verify", "--help"], cwd=folder, capture_output=True
    )
    assert done.returncode == 0 and not done.stderr  # a console script does not look into the working folder


@pytest.mark.slow
def test_processes_by_fork_spawn_and_forkserver_import_ours(folder):
    (folder / "remoco/notes.txt").unlink()
    (folder / "remoco").rmdir()
    (folder / "children.py").write_text(
        CHILDREN.replace("import mine", "from remoco.common import rooms\nrooms.first()\nimport mine", 1)
    )
    done = call(folder, "children.py")
    found = [Path(line) for line in done.stdout.split()]
    assert len(found) == 9 and not any(path.is_relative_to(folder) for path in found), found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_a_fit_of_two_ranks_with_workers(sprites, folder, strategy):
    more = {"trainer.devices": 2, "trainer.strategy": strategy, "data.init_args.num_workers": 1}
    more |= {"trainer.limit_val_batches": 0}
    options = quick(sprites, folder / "runs" / "one", **more, **{"model.init_args.condition": "mine.Mine"})
    done = call(folder, "-m", "lightning", "fit", *options, PYTHONPATH=".")
    assert said(done, folder) and (folder / "runs/one/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_workers_of_a_pool_and_of_ray(folder):
    need("ray", "ray")
    (folder / "videos").mkdir()
    write_video(folder / "videos/a.mp4", seed=0)
    size = ["--height", 64, "--width", 64, "--frames", 4]
    for out, more in (("pool", []), ("ray", ["--ray", "local"])):
        call(folder, Path(sys.executable).with_name("remoco"), "prepare", "videos", out, *size, *more)
        assert list((folder / out).glob("*.tar"))
