"""The house: which room may import which, what is installed, and what tests share."""

import ast
import configparser

import pytest

from tests.support.places import REPO

BELOW = {  # room -> those that it may import, beside itself and remoco/common
    "conditions": set(),
    "metrics": set(),
    "datamodules": {"conditions", "metrics"},
    "lightning_modules": {"conditions", "metrics", "datamodules"},
    "callbacks": {"conditions", "metrics", "datamodules", "lightning_modules"},
}
ROOMS = (*BELOW, "remoco")
# entry points of their own: modules that are run
DOORS = {"datamodules/prepare/__main__.py", "lightning_modules/released/__main__.py"}


def imported(path):
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_none_above_it(room):
    for path in (REPO / room).rglob("*.py"):
        if path.relative_to(REPO).as_posix() in DOORS:
            continue
        for name in imported(path):
            other = name.split(".")[0]
            allowed = other not in ROOMS or other in {room, *BELOW[room]} or name.startswith("remoco.common")
            assert allowed, f"{path.relative_to(REPO)} imports {name}"


def test_every_folder_of_modules_is_installed():
    settings = configparser.ConfigParser()
    settings.read(REPO / "setup.cfg")
    named = set(settings["options"]["packages"].split())
    folders = {path.parent for room in ROOMS for path in (REPO / room).rglob("*.py")}
    assert {folder.relative_to(REPO).as_posix().replace("/", ".") for folder in folders} <= named


def test_no_test_imports_another_test():
    for path in (REPO / "tests").rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            shared = parts[0] != "tests" or not any(part.startswith(("test_", "conftest")) for part in parts)
            assert shared, f"{path.relative_to(REPO)} imports {name}; tests/support is for what tests share"
