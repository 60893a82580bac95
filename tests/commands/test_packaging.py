"""What the source distribution and the wheel hold, and what is found where."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from datamodules.errors import UsageError
from remoco import configs, rooms

REPO = Path(__file__).resolve().parents[2]
ROOMS = {*rooms.ROOMS, "remoco"}


def build(kind: str, source: Path, out: Path) -> Path:
    """A distribution by the build backend, in a process of its own; no network."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source distribution of this checkout, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    shutil.unpack_archive(build("sdist", REPO, out), out)  # Python 3.11.2, Debian's, knows no filter of tarfile
    return next(path for path in out.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def installed(unpacked, tmp_path_factory):
    """A folder with what the wheel of that distribution installs."""
    out, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(build("wheel", unpacked, out)) as wheel:
        wheel.extractall(target)
    return target


@pytest.mark.slow
def test_the_source_distribution_holds_all_that_its_tests_and_documents_need(unpacked):
    made = {"build", "runs", "data", "dist"}
    for path in REPO.rglob("*"):
        name = path.relative_to(REPO)
        hidden = any(part.startswith(".") or part.endswith((".egg-info", "__pycache__")) for part in name.parts)
        if path.is_file() and not hidden and name.parts[0] not in made and len(name.parts) > 1:
            assert (unpacked / name).is_file(), name
    for name in ("Makefile", "constraints.txt", "README.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"):
        assert (unpacked / name).read_bytes() == (REPO / name).read_bytes()


@pytest.mark.slow
def test_the_source_distribution_passes_its_own_tests(unpacked):
    """Some of them; `tests/pythons.py` runs all, on every Python it finds."""
    some = ["tests/conditions/test_picture.py", "tests/commands/test_packaging.py"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *some]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_wheel_holds_the_rooms_the_configs_and_one_file_for_lightning(installed):
    names = [path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()]
    assert [name for name in names if name.startswith("lightning/")] == ["lightning/__main__.py"]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == ROOMS | {"lightning"}
    for room in ROOMS:
        assert {path.relative_to(REPO).as_posix() for path in (REPO / room).rglob("*.py")} <= set(names)
    found = {path.relative_to(REPO / "configs").as_posix() for path in (REPO / "configs").rglob("*.yaml")}
    assert found == {name.removeprefix("remoco/packaged/") for name in names if name.endswith(".yaml")}


def run(target: Path, cwd: Path, *arguments) -> subprocess.CompletedProcess:
    """`python -m lightning ARGUMENTS`, with the packages of `target` before any others."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(target / "lightning/__main__.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_an_installed_package_finds_its_configs_in_any_folder(installed, tmp_path):
    arguments = ["fit", "--config", "configs/quickstart.yaml", "--print_config"]
    done = run(installed, tmp_path, *arguments)
    assert done.returncode == 0 and "random_init: micro" in done.stdout, done.stderr[-2000:]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("seed_everything: 12345\n")  # the user's own comes first
    assert "seed_everything: 12345" in run(installed, tmp_path, *arguments).stdout


@pytest.mark.parametrize("name", ["callbacks/__init__.py", "metrics/__init__.py", "conditions.py"])
def test_a_folder_of_the_users_that_hides_ours_is_one_line(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    room = name.split("/")[0].removesuffix(".py")
    find = f"import importlib.util; print(importlib.util.find_spec({room!r}).origin)"  # here, or where a wheel put it
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ours = Path(subprocess.check_output([sys.executable, "-c", find], cwd=elsewhere, text=True).strip()).parent
    for door, code in (("lightning", 2), ("remoco", 1)):
        done = subprocess.run([sys.executable, "-m", door, "fit"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code and done.stderr.count("\n") == 1, done.stderr
        assert str(tmp_path / room) in done.stderr and str(ours) in done.stderr


def test_configs_come_from_the_working_folder_then_from_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = str(REPO / "configs/quickstart.yaml")
    assert configs.resolved(["fit", "--config", "configs/quickstart.yaml"]) == ["fit", "--config", ours]
    assert configs.resolved(["fit", "-c=configs/quickstart.yaml", "--x"]) == ["fit", f"-c={ours}", "--x"]
    for other in ("configs/none.yaml", "quickstart.yaml", "configs/../setup.cfg"):
        assert configs.resolved(["--config", other]) == ["--config", other]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("seed_everything: 1\n")
    found = configs.resolved(["--config", "configs/quickstart.yaml"])[1]
    assert Path(found).resolve() == (tmp_path / "configs/quickstart.yaml").resolve()


BOMB = "\n".join(["a0: &a0 x", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    "text, reason",
    [
        (BOMB, "its aliases stand for"),
        ("a: " + "[" * 50_000 + "]" * 50_000, "nested too deeply"),
        ("a: &a [*a]", "an alias holds itself"),
        ('a:\n- "b\\0c"', "line 2: .* holds a zero byte"),
        ("x: " + "y" * (configs.MAX_BYTES + 1), "bytes, more than"),
        ("a: [", "expected"),
        (b"a: \xff\xfe", "decode"),
        (None, "not a regular file"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, text, reason):
    path = tmp_path / "c.yaml"
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError, match=reason) as raised:
        configs.resolved(["fit", "--config", str(path)])
    assert "c.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_shipped_configs_are_within_the_limits():
    for path in (REPO / "configs").rglob("*.yaml"):
        configs.load(path)
    json.dumps([str(path) for path in (REPO / "configs").rglob("*.yaml")])


def test_the_door_opens_without_the_networks_libraries():
    """They take seconds, and `--help` and a mistake in a YAML have no need of them."""
    loaded = "print(sorted({'diffusers', 'peft'} & set(sys.modules)))"
    code = f"import sys, callbacks, datamodules, lightning_modules, remoco.training; {loaded}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
