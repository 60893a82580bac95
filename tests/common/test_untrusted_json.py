"""`json_files.parse_json`, which reads JSON from anybody: what is wrong is a ValueError, before it costs memory."""

import json
import os
import random
import socket

import pytest

from remoco.common import json_files
from remoco.common.errors import UserError
from remoco.common.json_files import JsonShape, parse_json, read_json
from remoco.common.whole_files import read_object


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested too deeply"),
        ("[" + "[]," * 2_000_000 + "[]]", "more than the 1048576 values"),
        ("[" + "0," * 2_000_000 + "0]", "more than the 1048576 values"),
        ("[" + "9" * 4000 + "]", "more than 100 digits"),
        ("[0." + "9" * 200_000 + "]", "more than 100 digits"),
        (r'{"name": "\ud800"}', "half a character"),
        (r'{"\udfff\ud800": 1}', "half a character"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('[{"b": {"\\u0061": 1, "a": 1}}]', "'a' twice"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        ("[1]".encode("utf-16"), "is not UTF-8"),
        ("[1]".encode("utf-32-le"), "Expecting|Extra"),
        ('"\ud800"', "is not UTF-8"),
        ("{", "Expecting"),
        ("", "Expecting"),
        ("[1]]", "Extra"),
    ],
)
def test_what_is_wrong_is_one_error(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text, value",
    [
        (b'\xef\xbb\xbf{"a": [1, 2.5, null, "\\ud83d\\ude00"]}', {"a": [1, 2.5, None, "\U0001f600"]}),
        ('["' + "[{,9" * 100_000 + '"]', ["[{,9" * 100_000]),
        (r'["\\", "\"[[[[", "\\\\\"", "\\ud800"]', ["\\", '"[[[[', '\\\\"', "\\ud800"]),
        ("[" * 64 + "]" * 64, None),
        ("-1e999", float("-inf")),
        ("9" * 100, int("9" * 100)),
    ],
)
def test_what_is_right_is_read(text, value):
    found = parse_json(text)
    assert value is None or found == value


def made(rng, depth=0):
    kind = rng.randrange(6 if depth < 5 else 4)
    if kind == 4:
        return [made(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {str(i) + rng.choice(['"', "\\", "[", "é", "}"]): made(rng, depth + 1) for i in range(rng.randrange(4))}
    return [rng.random(), None, "".join(rng.choices('[]{},"\\\n9é😀', k=rng.randrange(9))), rng.randrange(99)][kind]


def counted(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    depths, counts = zip(*map(counted, inner)) if inner else ((0,), ())
    return max(depths) + isinstance(value, (list, dict)), 1 + sum(counts)


def test_depth_and_values_are_those_of_the_parsed_text_in_pieces_of_any_size(monkeypatch):
    """Of depth exactly; of values never fewer than the parser makes, at most twice as many (`[]` is two)."""
    rng = random.Random(0)
    for _ in range(300):
        value = made(rng)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        depth, values = counted(value)
        monkeypatch.setattr(json_files, "_PIECE", rng.choice([1, 2, 3, 7, 1 << 16]))
        pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
        shape = JsonShape(2 * values, max(depth, 0))
        for piece in pieces:
            shape.feed(piece)
        assert parse_json(text) == value
        for bounds in ((values // 2, 99), (10**6, depth - 1)):
            if min(bounds) < (1 if bounds[1] == 99 else 0):
                continue
            with pytest.raises(ValueError):
                shape = JsonShape(*bounds)
                for piece in pieces:
                    shape.feed(piece)


def test_a_text_that_never_ends_is_read_once():
    """Each escaped quote could begin a text of its own, to be looked for until the end."""
    with pytest.raises(ValueError):
        parse_json('["' + '\\"' * 2_000_000)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    """A FIFO, a socket, a device and a folder neither hold the reader up nor feed it for ever."""
    os.mkfifo(tmp_path / "fifo.json")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket.json"))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to("loop.json")
    for kind in ("fifo", "socket", "folder", "device", "loop", "missing"):
        path = tmp_path / f"{kind}.json"
        with pytest.raises(UserError, match=f"{kind}.json: does not read: ") as caught:
            read_object(path)
        assert "\n" not in str(caught.value)
    listening.close()
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="huge.json: .* more than the 67108864 it may have"):
        read_object(tmp_path / "huge.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="list.json: expected a JSON object"):
        read_object(tmp_path / "list.json")
    assert read_json(tmp_path / "list.json") == []
