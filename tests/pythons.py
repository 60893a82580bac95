"""Install and test the package as its users get it, on each Python 3.11 to 3.13 that this machine has.

    python tests/pythons.py [PYTEST ARGUMENTS]

For each: the source distribution is built and unpacked in a new folder, its wheel goes into a new environment with the
versions of constraints.txt, `--config configs/quickstart.yaml` is read in an empty folder, and the unpacked tests run
(with the arguments given, else all of `make test`). Prints a table; ends with 1 where one of them fails. Pythons that
are not found are named. Not a part of CI: it takes the time of the tests for each of them, and the network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13")


def found(version: str) -> str | None:
    """A Python of this version: on the path, or of pyenv's or uv's."""
    name = f"python{version}"
    homes = (Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python")
    candidates = [shutil.which(name), *(str(path) for home in homes for path in sorted(home.glob(f"*/bin/{name}")))]
    check = f"import sys; assert sys.version_info[:2] == {tuple(map(int, version.split('.')))}"
    for path in filter(None, candidates):  # pyenv's shims are there for versions that are not
        if subprocess.run([path, "-c", check], capture_output=True).returncode == 0:
            return path
    return None


def attempt(python: str, work: Path, tests: list[str]) -> dict[str, str]:
    """Step -> how it ended; the steps after one that failed are missing."""
    ours = work / "environment/bin/python"
    steps: dict[str, str] = {}

    def step(name: str, *command: str, cwd: Path = work) -> bool:
        print(f"--- {name}: {' '.join(command)}", flush=True)
        done = subprocess.run(command, cwd=cwd)
        steps[name] = "ok" if done.returncode == 0 else f"failed ({done.returncode})"
        return done.returncode == 0

    pip = (str(ours), "-m", "pip", "--disable-pip-version-check", "--quiet")
    if not step("environment", python, "-m", "venv", str(ours.parent.parent)):
        return steps
    sdist = (str(ours), "-m", "build", "--sdist", "--outdir", str(work), str(REPO))
    if not step("build", *pip, "install", "build") or not step("sdist", *sdist):
        return steps
    shutil.unpack_archive(next(work.glob("*.tar.gz")), work)
    source = next(path for path in work.iterdir() if path.is_dir() and (path / "PKG-INFO").exists())
    if not step("install", *pip, "install", f"{source}[all]", "-c", str(source / "constraints.txt")):
        return steps
    empty = work / "empty"
    empty.mkdir()
    config = ("fit", "--config", "configs/quickstart.yaml", "--print_config")
    step("configs", str(ours), "-m", "lightning", *config, cwd=empty)
    step("tests", str(ours), "-m", "pytest", "-q", *tests, cwd=source)
    return steps


def main() -> int:
    """Try each; the exit code."""
    table: dict[str, dict[str, str]] = {}
    for version in VERSIONS:
        python = found(version)
        if python is None:
            table[version] = {"python": "not found"}
            continue
        with tempfile.TemporaryDirectory(prefix=f"python{version}-") as folder:
            table[version] = {"python": python, **attempt(python, Path(folder), sys.argv[1:])}
    for version, steps in table.items():
        print(f"{version}  " + "  ".join(f"{name}: {how}" for name, how in steps.items()))
    return int(any(how.startswith("failed") for steps in table.values() for how in steps.values()))


if __name__ == "__main__":
    sys.exit(main())
