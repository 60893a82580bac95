"""The house: which room may import which, what is installed, and what tests share."""

import ast
import configparser
from importlib import import_module

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


def test_the_ground_floor_imports_nothing_of_ours_but_itself():
    for path in (REPO / "remoco" / "common").rglob("*.py"):
        for name in imported(path):
            allowed = name.split(".")[0] not in ROOMS or name.startswith("remoco.common.")
            assert allowed, f"{path.relative_to(REPO)} imports {name}"


def test_a_public_method_has_a_docstring_unless_it_overrides_another():
    for path in (path for room in ROOMS for path in (REPO / room).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            methods = [
                each for each in node.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
            ]
            for name in (each.name for each in methods if not ast.get_docstring(each)):
                module = ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
                above = getattr(import_module(module), node.name).__mro__[1:]
                assert any(name in vars(base) for base in above), f"{module}: {node.name}.{name} has no docstring"


MOST = 12  # arguments of a function, and fields of a dataclass
LONG = {  # their names are what users of Lightning's data modules and of diffusers' pipelines write
    "datamodules/webvid.py: WebVidDataModule.__init__",
    "datamodules/sprites.py: SpritesDataModule.__init__",
    "lightning_modules/pipeline.py: MotionControlPipeline.__call__",
}


def signatures(path):
    """Name -> number of arguments, of every function in a file and of what makes each of its dataclasses."""
    tree = ast.parse(path.read_text())
    inside = {id(each): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for each in node.body}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([each for each in named if each.arg not in ("self", "cls")])
            yield ".".join(filter(None, [inside.get(id(node)), node.name])), count
        elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            yield node.name, sum(isinstance(each, ast.AnnAssign) for each in node.body)


def test_no_signature_is_long():
    long = set()
    for room in ROOMS:
        for path in (REPO / room).rglob("*.py"):
            place = path.relative_to(REPO).as_posix()
            long |= {f"{place}: {name}" for name, count in signatures(path) if count > MOST}
    assert long == LONG
