"""What is known of one base stays in its folder: nothing else names it."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ROOM = REPO / "lightning_modules"
OF_BASES = ("bases", "released", "systems")
PIPELINE = {"svd", "motion_bucket_id"}  # arguments of its callers
COMMANDS = {  # the public flag --svd and what reads it; and commands for files of that base alone
    "remoco/generate.py": {"svd"},
    "remoco/generation.py": {"svd"},
    "remoco/other_system.py": {"svd"},
    "remoco/page/__init__.py": {"svd"},
    "remoco/released.py": {"from_unet"},
    "remoco/released_files.py": {"unet", "unet_config"},
}


def identifiers(path: Path) -> set[str]:
    """Every name in a file: variables, attributes, arguments, keywords, definitions, imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not (isinstance(node, ast.alias) and field == "name" and "." in name):
                found.add(name)
    return found


def named(path: Path, words: tuple[str, ...]) -> set[str]:
    return {name for name in identifiers(path) if any(word in name.lower() for word in words)}


@pytest.mark.parametrize("room", ["lightning_modules", "callbacks"])
def test_nothing_outside_of_a_bases_folder_names_its_networks(room):
    for path in (REPO / room).rglob("*.py"):
        place = path.relative_to(ROOM) if room == "lightning_modules" else path
        if place.parts[0] in OF_BASES or place == Path("svd.py"):
            continue
        allowed = PIPELINE if place == Path("pipeline.py") else set()
        assert named(path, ("svd", "unet")) <= allowed, path


def test_of_the_commands_only_the_public_flag_names_a_base():
    names = {
        path.relative_to(REPO).as_posix(): named(path, ("svd", "unet")) for path in (REPO / "remoco").rglob("*.py")
    }
    assert {place: found for place, found in names.items() if found} == COMMANDS


@pytest.mark.parametrize("room", ["lightning_modules", "callbacks", "metrics"])
def test_nothing_outside_of_a_bases_folder_names_the_motion_bucket(room):
    for path in (REPO / room).rglob("*.py"):
        place = path.relative_to(REPO / room)
        if room == "lightning_modules" and place.parts[0] in OF_BASES:
            continue
        allowed = PIPELINE if (room, place) == ("lightning_modules", Path("pipeline.py")) else set()
        assert named(path, ("motion_bucket",)) <= allowed, path


def test_the_contract_imports_no_diffusers():
    for path in (ROOM / "bases" / "base.py", ROOM / "bases" / "__init__.py", ROOM / "config.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            )
            assert not any(str(module).startswith(("diffusers", "transformers")) for module in modules), path
