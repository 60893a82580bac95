"""Which system is meant, and its options: wrong ones are one line before a file is read."""

from __future__ import annotations

import pytest

from remoco.common.errors import UserError
from remoco.systems import SystemChoice, arguments, fingerprint

DRAG = {"svd": "SVD", "features": "SD15"}
MOFA = {"svd": "XT", "cmp": "c"}


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ("draganything", DRAG | {"features": 7}, "draganything: features is 7, expected a text"),
        ("draganything", DRAG | {"features": ["a"]}, "draganything: features is .*, expected a text"),
        ("draganything", DRAG | {"svd": None}, "draganything: svd is None, expected a text"),
        ("draganything", DRAG | {"segment": 3}, "segment is 3, expected the class path of a function"),
        ("draganything", DRAG | {"segment": "sam"}, "segment: sam: expected a class path"),
        ("draganything", DRAG | {"segment": "no.sam"}, "segment: no.sam: does not import"),
        ("draganything", DRAG | {"segment": "math.pi"}, "segment is math.pi, expected the class path of a function"),
        ("dragnuwa", {"head_channels": "x"}, "head_channels is x, expected a whole number"),
        ("dragnuwa", {"head_channels": True}, "head_channels is True, expected a whole number"),
        ("dragnuwa", {"head_channels": 2.5}, "head_channels is 2.5, expected a whole number"),
        ("mofa", MOFA | {"cmp": False}, "mofa: cmp is False, expected a text"),
        ("mofa", MOFA | {"settings": {"size": [64]}}, "mofa: settings: size: Expected a tuple"),
        ("..", {}, "system: ..: expected a class path"),
        ("a.", {}, "system: a.: expected a class path"),
        ("broken_on_import.Mine", {}, r"broken_on_import.Mine: does not import \(ZeroDivisionError: division by zero"),
        ("unfinished.Mine", {}, "unfinished.Mine: does not import .*SyntaxError"),
        ("finished.Other", {}, "finished.Other: does not import"),
        ("finished.number", {}, "finished.number is no system, expected a class with"),
    ],
)
def test_what_does_not_fit_is_one_line(system, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_on_import.py").write_text("1 / 0\n")
    (tmp_path / "unfinished.py").write_text("class Mine(\n")
    (tmp_path / "finished.py").write_text("number = 3\n")
    with pytest.raises(UserError, match=message) as caught:
        arguments(SystemChoice(system, "weights", options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [None, ""])
def test_no_weights_are_one_line(weights):
    with pytest.raises(UserError, match="dragnuwa: weights: missing, expected its file or folder"):
        arguments(SystemChoice("dragnuwa", weights))


def test_a_function_is_given_by_its_class_path():
    import math

    given = arguments(SystemChoice("draganything", "weights", DRAG | {"segment": "math.dist"}))
    assert given["segment"] is math.dist and given["features"] == "SD15"


def test_files_that_options_name_count(tmp_path):
    weights, cmp = tmp_path / "weights", tmp_path / "cmp"
    weights.write_bytes(b"1")
    cmp.write_bytes(b"2")
    choice = SystemChoice("mofa", str(weights), {"cmp": str(cmp), "svd": "XT"})
    first = fingerprint(choice)
    assert fingerprint(choice) == first
    cmp.write_bytes(b"3")
    assert fingerprint(choice) != first
