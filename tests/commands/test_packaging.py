"""What the source distribution and the wheel hold, and what is found where."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from remoco import __version__, configs
from remoco.common import rooms
from remoco.common.errors import UserError

REPO = Path(__file__).resolve().parents[2]
ROOMS = set(rooms.ROOMS)


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
    made = {"build", "runs", "data", "dist", "site"}
    for path in REPO.rglob("*"):
        name = path.relative_to(REPO)
        hidden = any(part.startswith(".") or part.endswith((".egg-info", "__pycache__")) for part in name.parts)
        if path.is_file() and not hidden and not made & set(name.parts) and len(name.parts) > 1:
            assert (unpacked / name).is_file(), name
    for name in ("Makefile", "constraints.txt", "README.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"):
        assert (unpacked / name).read_bytes() == (REPO / name).read_bytes()


@pytest.mark.slow
def test_the_source_distribution_passes_its_own_tests(unpacked):
    """Some of them; `tests/pythons.py` runs all, on every Python it finds."""
    some = ["tests/conditions/test_picture.py", "tests/commands/test_packaging.py"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not long", *some]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_wheel_holds_the_rooms_the_configs_and_one_file_for_lightning(installed):
    names = [path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()]
    assert [name for name in names if name.startswith("lightning/")] == ["lightning/__main__.py"]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == ROOMS | {"lightning"}
    for room in ROOMS:
        assert {path.relative_to(REPO).as_posix() for path in (REPO / room).rglob("*.py")} <= set(names)
        assert f"{room}/py.typed" in names
    assert {path.relative_to(REPO).as_posix() for path in (REPO / "remoco/page/static").iterdir()} <= set(names)
    found = {path.relative_to(REPO / "configs").as_posix() for path in (REPO / "configs").rglob("*.yaml")}
    assert found == {name.removeprefix("remoco/packaged/") for name in names if name.endswith(".yaml")}


def run(target: Path, cwd: Path, *arguments) -> subprocess.CompletedProcess:
    """`python -m lightning ARGUMENTS`, with the packages of `target` before any others."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(target / "lightning/__main__.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkout", "sdist", "wheel"])
def test_the_demo_runs_from_an_empty_folder(kind, unpacked, installed, tmp_path):
    home = {"checkout": REPO, "sdist": unpacked, "wheel": installed}[kind]
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    where = "import lightning_modules, remoco; print(lightning_modules.__file__, remoco.__file__, sep='\\n')"

    def run(*words) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert all(Path(line).is_relative_to(home) for line in run("-c", where).split())
    assert run("-m", "remoco", "--version") == f"remoco {__version__}\n"
    run("-m", "remoco", "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {"clip.mp4", "strip.mp4", "metrics.json"} <= {path.name for path in (tmp_path / "runs/demo").iterdir()}


def test_the_version_is_the_changelog_s_newest_and_each_section_has_its_day():
    sections = re.split(r"^## ", (REPO / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    released = [section for section in sections if not section.startswith("Unreleased\n")]
    heads = [re.match(r"(\d+\.\d+\.\d+)\n\n(\d{4}-\d\d-\d\d)\.\n\n- ", section) for section in released]
    assert all(heads) and heads[0][1] == __version__
    assert [head[2] for head in heads] == sorted((head[2] for head in heads), reverse=True)
    citation = (REPO / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\ndate-released: {heads[0][2]}\n" in citation


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_types_are_meant_for_who_imports_a_package(room):
    assert (REPO / room / "py.typed").is_file()


def test_what_make_install_brings_is_all_that_the_page_sweeps_and_plots_need():
    settings = configparser.ConfigParser()
    settings.read(REPO / "setup.cfg")
    extras = settings["options.extras_require"]
    reached, ahead = set(), ["all"]
    while ahead:
        reached.add(name := ahead.pop())
        inner = [each for names in re.findall(r"remoco-video\[(.*)\]", extras[name]) for each in names.split(",")]
        ahead += [each for each in inner if each not in reached]
    assert {"page", "plots", "ray", "shots", "sweep", "tpe"} <= reached
    assert "'.[all]'" in (REPO / "Makefile").read_text()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is tracked here and an environment for it: this one's packages without ours, and no network."""
    copy = tmp_path / "checkout"
    for room in (*ROOMS, "entry", "configs"):
        shutil.copytree(REPO / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(REPO / name, copy)
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(pytest.__file__).parents[1].iterdir():
        if "remoco" not in path.name and not path.name.startswith(("pip", "__pycache__")) and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", str(copy / ".venv")], check=True)
    site = next((copy / ".venv/lib").glob("python*/site-packages"))
    for older in site.glob("setuptools*"):  # Python 3.11's own
        shutil.rmtree(older)
    (site / "packages.pth").write_text(f"{packages}\n")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("before", ["remoco", None])
def test_make_install_upgrades_an_environment_of_any_age(checkout, before):
    # pip reads PIP_NO_BUILD_ISOLATION=0 as `no isolation`
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
    python = str(checkout / ".venv/bin/python")

    def call(*command) -> str:
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
        return done.stdout

    if before:
        settings = (checkout / "setup.cfg").read_text()
        (checkout / "setup.cfg").write_text(settings.replace("name = remoco-video", f"name = {before}"))
        call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", ".")
        (checkout / "setup.cfg").write_text(settings)
    call("make", "install")
    names = call(python, "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze")
    assert [line for line in names.splitlines() if line.startswith("remoco")] == [f"remoco-video=={__version__}"]
    origin = "import importlib.util; print(importlib.util.find_spec('lightning.__main__').origin)"
    assert call(python, "-c", origin).strip() == str(checkout / "entry/__main__.py")
    assert "prepare" in call(str(checkout / ".venv/bin/remoco"), "--help")
    assert "nothing to be done" in call("make", "install").lower()


def test_no_tracked_file_installs_what_somebody_else_called_remoco():
    """That name is taken on PyPI; the tests may name it, to say so."""
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "grep", "-lE", r"remoco\[|pip install '?remoco\b[^-]", "--", ":!tests"]
    found = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert found.returncode == 1, found.stdout


def test_every_extra_that_a_document_or_an_error_names_exists():
    settings = configparser.ConfigParser()
    settings.read(REPO / "setup.cfg")
    extras = settings["options.extras_require"]
    named = set()
    texts = [*REPO.glob("*.md"), *REPO.glob("docs/*.md")]
    for path in [*texts, *(file for room in sorted(ROOMS) for file in REPO.glob(f"{room}/**/*.py"))]:
        lines = re.findall(r"pip install[^`\n]*\[\w+\][^`\n]*", path.read_text())
        whole = [re.search(r"pip install -e '\.\[(\w+)\]' -c constraints\.txt", line) for line in lines]
        assert all(whole), path
        named |= {match[1] for match in whole}
    assert named and named <= set(extras)
    wanted = [name for text in extras.values() for name in re.findall(r"remoco-video\[(.*)\]", text)]
    assert {name for names in wanted for name in names.split(",")} <= set(extras)


@pytest.mark.slow
def test_an_installed_package_finds_its_configs_in_any_folder(installed, tmp_path):
    arguments = ["fit", "--config", "configs/quickstart.yaml", "--print_config"]
    done = run(installed, tmp_path, *arguments)
    assert done.returncode == 0 and "size: micro" in done.stdout, done.stderr[-2000:]
    mine = tmp_path / "elsewhere" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("config: configs/quickstart.yaml\ntrainer: {max_steps: 77}\n")
    over = run(installed, tmp_path, "fit", "--config", mine, "--print_config")
    assert over.stdout == done.stdout.replace("max_steps: 750", "max_steps: 77"), over.stderr[-2000:]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("seed_everything: 12345\n")  # the user's own comes first
    assert "seed_everything: 12345" in run(installed, tmp_path, *arguments).stdout


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
        (b"a: \xff\xfe", "no text in UTF-8"),
        (None, "not a regular file"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, text, reason):
    path = tmp_path / "c.yaml"
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=reason) as raised:
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
