"""Errors: one type for what a person can mend, one for a clip that is replaced, few others, each with a reason."""

import ast
import builtins
import re
import subprocess
import sys
from functools import cache

import pytest

from remoco import cli
from remoco.common.errors import BadClip, UserError, one_line
from tests.support.places import REPO

ROOMS = ("callbacks", "conditions", "datamodules", "lightning_modules", "metrics", "remoco", "entry")
TOLD = {"UserError", "BadClip"}

ALLOWED = {
    "NotImplementedError": {"metrics/base.py", "metrics/consistency.py", "metrics/features.py", "metrics/frechet.py",
                            "metrics/trajectory.py"},  # for a subclass to define
    "RuntimeError": {"metrics/correspondence.py"},  # a UNet without the block that every UNet of diffusers has
    # as the system raises it, with the name of the file: what reads files tells a missing one by its number
    "OSError": {"remoco/common/whole_files.py", "remoco/common/videos/files.py", "remoco/common/json_files.py",
                "remoco/common/tensor_files.py"},
    "ValueError": {"remoco/common/ranges.py"},  # "not of this type" to jsonargparse, which tries the next one
}  # fmt: skip
"""Built-in error -> the files that may raise it."""

PRIVATE = {
    "Stopped": "callbacks/stopping.py",  # SystemExit of a signal, with its exit code
    "EndsTooEarly": "datamodules/prepare/clips.py",  # BadClips that have other clips of the same video looked for
    "Damaged": "datamodules/prepare/clips.py",
    "_Reached": "metrics/correspondence.py",  # ends a forward pass once the features are there
    "_Seen": "lightning_modules/systems/sgi2v.py",  # as that one
    "Unparsed": "remoco/flags.py",  # a ValueError would be taken for "not this type" by jsonargparse
    "_Refused": "remoco/page/guard.py",  # an answer of HTTP with its status
    "_Stalled": "remoco/page/guard.py",  # ends an answer that its client does not take
    "_Cancelled": "remoco/page/jobs.py",  # ends a generation that nobody waits for
    "_Busy": "remoco/page/routes.py",  # an answer of HTTP
    "Killed": "remoco/sweep/trial.py",  # has the sweep try again
}
"""Error of one file, for its control flow -> that file."""


def modules():
    for room in ROOMS:
        for path in sorted((REPO / room).rglob("*.py")):
            yield path.relative_to(REPO).as_posix(), ast.parse(path.read_text())


@cache
def returned():
    """Name of a function -> the error that it says it returns."""
    nodes = (node for _, tree in modules() for node in ast.walk(tree))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef) and node.returns is not None)
    said = {function.name: ast.unparse(function.returns) for function in functions}
    return {name: error for name, error in said.items() if error in TOLD}


def caught_names(tree):
    """Names of what was caught, and of what a handler keeps to raise it later."""
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
        yield handler.name
        for node in (inner for part in handler.body for inner in ast.walk(part)):
            yield from (node.id,) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ()


def raised(tree):
    """(line, name) of each error that is raised anew; one that was caught and goes on is not."""
    caught, made = set(caught_names(tree)), returned()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    asked = {id(node) for each in functions if each.name in ("__getattr__", "__setattr__") for node in ast.walk(each)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        if name not in caught and not (name == "AttributeError" and id(node) in asked):  # Python's protocol
            yield node.lineno, made.get(name, name)


def allowed(name, path):
    return name in TOLD or path in ALLOWED.get(name, ()) or path == PRIVATE.get(name)


def test_what_is_raised_is_a_user_error_or_has_a_reason():
    odd = [f"{path}:{line} raises {name}" for path, tree in modules() for line, name in raised(tree)
           if not allowed(name, path)]  # fmt: skip
    assert not odd, odd


def test_no_exception_from_the_lists_is_gone():
    here = {(name, path) for path, tree in modules() for _, name in raised(tree)}
    listed = {(name, path) for name, paths in ALLOWED.items() for path in paths} | set(PRIVATE.items())
    assert listed <= here, listed - here


def is_error(base):
    known = getattr(builtins, base, None)
    ours = base in TOLD or base.endswith(("Error", "Exception"))
    return ours or isinstance(known, type) and issubclass(known, BaseException)


def test_there_are_no_other_families_of_errors():
    classes = ((path, node) for path, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    found = {(node.name, path) for path, node in classes if any(is_error(ast.unparse(base)) for base in node.bases)}
    assert found == {(name, "remoco/common/errors.py") for name in TOLD} | set(PRIVATE.items())


def test_no_error_is_told_by_its_text():
    """Within what handles it: a comparison of the text, or a part of it that is taken away."""
    odd = []
    for path, tree in modules():
        for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
            texts = {f"str({handler.name})", f"{handler.name}.args[0]", f"one_line({handler.name})"}
            for node in (inner for part in handler.body for inner in ast.walk(part)):
                sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
                cut = isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith", "removeprefix")
                sides += [node.value] if cut else []
                odd += [f"{path}:{node.lineno}" for side in sides if ast.unparse(side) in texts]
    # the one warning of Lightning's that `python -m lightning` makes an error, at its border
    assert [place for place in odd if not place.startswith("remoco/training.py")] == []
    assert len(odd) <= 1


def beginnings(statements):
    """How each message of an error that is raised among these begins, up to the colon after its subject."""
    for node in (inner for statement in statements for inner in ast.walk(statement)):
        call = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], (ast.JoinedStr, ast.Constant)):
            subject, colon, _ = ast.unparse(call.args[0]).partition(": ")
            yield from (subject,) if colon else ()


def test_no_error_is_wrapped_in_its_own_beginning():
    """Where a handler takes every ValueError, what its block raises itself would say its subject twice."""
    for path, tree in modules():
        for block in (node for node in ast.walk(tree) if isinstance(node, ast.Try)):
            for handler in block.handlers:
                taken = ast.unparse(handler.type) if handler.type else "Exception"
                if re.search(r"\b(ValueError|UserError|Exception|UNREADABLE|WRONG)\b", taken):
                    twice = set(beginnings(block.body)) & set(beginnings(handler.body))
                    assert not twice, f"{path}:{handler.lineno}: {twice}"
                    break  # the first that takes it


@pytest.mark.parametrize(("error", "line"), [
    (UserError("clip.json: fps: expected a number"), "clip.json: fps: expected a number"),
    (OSError(28, "No space left on device", "out/a.mp4"), "out/a.mp4: No space left on device"),
    (UserError("two\nlines"), "two lines"),
])  # fmt: skip
def test_a_command_prints_one_line(monkeypatch, capsys, error, line):
    def command():
        raise error

    monkeypatch.setattr(cli, "_find", lambda arguments: (["command"], cli.Command("here:command", "")))
    monkeypatch.setattr(cli, "_imported", lambda entry: command)
    assert cli.main(["command"]) == 2
    assert capsys.readouterr().err == f"remoco command: error: {line}\n"


def test_what_nobody_can_mend_keeps_its_traceback(monkeypatch):
    def command():
        raise ValueError("a defect of ours")

    monkeypatch.setattr(cli, "_find", lambda arguments: (["command"], cli.Command("here:command", "")))
    monkeypatch.setattr(cli, "_imported", lambda entry: command)
    with pytest.raises(ValueError, match="a defect of ours"):
        cli.main(["command"])


def test_training_prints_one_line_of_ours_lightnings_and_the_parsers(monkeypatch, capsys):
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from remoco import training
    from remoco.flags import Unparsed

    for error in (UserError, MisconfigurationException, Unparsed):

        def fails(self, error=error, **options):
            raise error("data.shards: no such folder")

        monkeypatch.setattr(LightningCLI, "__init__", fails)
        with pytest.raises(SystemExit) as stop:
            training.main(["fit"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == "python -m lightning: error: data.shards: no such folder\n"


def test_a_line_names_the_type_of_foreign_errors_alone():
    assert one_line(KeyError("fps")) == "KeyError: 'fps'"
    assert one_line(UserError("a: b")) == one_line(BadClip("a: b")) == "a: b"


@pytest.mark.parametrize("code", [
    (  # the settings, without what they set
        "import sys, lightning_modules.config, remoco.moved\n"
        "from lightning_modules.config import Control, Noise, Sampling, Speed, Start\n"
        "found = {'torch', 'diffusers', 'lightning', 'transformers'} & set(sys.modules)\n"
        "assert not found, found\n"
    ),
    (  # the pipeline, at its first use
        "import sys, remoco, remoco.common.errors, remoco.common.whole_files\n"
        "assert not {'torch', 'diffusers', 'lightning', 'numpy'} & set(sys.modules)\n"
        "from remoco import MotionControlPipeline\n"
        "import lightning_modules.pipeline\n"
        "assert MotionControlPipeline is lightning_modules.pipeline.MotionControlPipeline\n"
        "assert not hasattr(remoco, 'Pipeline')\n"
    ),
], ids=["settings", "pipeline"])  # fmt: skip
def test_an_import_takes_no_more_than_it_needs(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
