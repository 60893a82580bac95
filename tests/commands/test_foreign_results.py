"""Result files of anybody: one line that names file and field for what cannot be used, and the rest is shown."""

import json
import os
import re
import shutil
import socket
import struct

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from remoco.common.errors import readable
from remoco.common.videos.files import write_video
from remoco.study.pages import QUESTIONS
from remoco.study.ratios import read_study
from remoco.sweep import results
from tests.support.commands import remoco

GOOD = {"value": 1.25, "protocol": "p", "n": 2, "seconds": 1.5}
FILES = {
    "empty": (b"", "not readable JSON"),
    "half": (b'{"md_vid": {', "not readable JSON"),
    "list": (b"[1]", "expected a JSON object"),
    "text": (b'"a"', "expected a JSON object"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "lists": (b'{"a": [' + b"[]," * 2_000_000 + b"[]]}", "more than the 1048576 values"),
    "digits": (b'{"md_vid": {"value": ' + b"9" * 100_000 + b"}}", "a number of more than 100 digits"),
    "surrogate": (rb'{"md_vid": {"value": 1, "seconds": 1, "protocol": "\ud800"}}', "half a character"),
    "not UTF-8": (b'{"md_vid\xff": 1}', "not UTF-8"),
    "twice": (b'{"md_vid": 1, "md_vid": 2}', "twice in one object"),
    "fifo": (None, "not a regular file"),
    "socket": (None, "does not read"),
    "folder": (None, "does not read"),
    "device": (None, "not a regular file"),
    "link to nothing": (None, "does not read"),
    "huge": (None, "more than the"),
}
ENTRIES = {
    "number": (3.0, "expected {value, protocol, n, seconds}"),
    "null": (None, "expected {value, protocol, n, seconds}"),
    "bare": ({"value": 3.0}, "seconds: expected a finite number"),
    "text": (GOOD | {"value": "3"}, "value: expected a finite number"),
    "true": (GOOD | {"value": True}, "value: expected a finite number"),
    "nan": (GOOD | {"value": float("nan")}, "value: expected a finite number"),
    "infinite": (GOOD | {"seconds": 1e999}, "seconds: expected a finite number"),
    "huge": (GOOD | {"value": 10**99}, "value: expected a finite number"),
    "large": (GOOD | {"value": -1e300}, "value: expected a finite number"),
    "count": (GOOD | {"n": "many"}, "n: expected a finite number"),
    "protocol": (GOOD | {"protocol": ["p"]}, "protocol: expected a text"),
    "long": (GOOD | {"protocol": "p" * 10**6}, "protocol: expected a text"),
}


def put(path, kind):
    """A file of a kind of FILES in the place of another; what keeps it there."""
    path.unlink(missing_ok=True)
    data = FILES[kind][0]
    if data is not None:
        path.write_bytes(data)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.getcwd()
            os.chdir(path.parent)  # a socket's path is short
            try:
                listening.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")


def system(folder, value=1.25):
    """The folder of somebody's run, with one result of its own and one on a benchmark, 400 more."""
    (folder / "benchmark" / "bench").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"control_error": GOOD | {"value": value}}))
    scores = {"object/md_vid": GOOD | {"value": value + 400}}
    (folder / "benchmark" / "bench" / "scores.json").write_text(json.dumps(scores))
    (folder / "benchmark" / "bench" / "generated.json").write_text(json.dumps({"root": "nowhere"}))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [system(tmp_path / f"run{i}", 101.25 + i) for i in range(5)]


def lines(capsys):
    """The lines of what was left out."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert all(line.isprintable() and len(line) < 700 for line in said)
    return said


@pytest.mark.parametrize("file", ["metrics.json", "benchmark/bench/scores.json", "benchmark/bench/generated.json"])
@pytest.mark.parametrize("kind", FILES)
def test_a_report_of_five_with_one_broken_shows_the_rest_and_the_line(runs, tmp_path, capsys, file, kind):
    put(runs[2] / file, kind)
    assert remoco("report", *runs, "--out", tmp_path / "page") == 1
    (line,) = lines(capsys)
    assert str(runs[2] / file) in line and FILES[kind][1] in line
    page = (tmp_path / "page" / "index.html").read_text()
    # of each run: its control error once, its distance in table 3 and among what was measured
    shown = [page.count(f">{101.25 + i:.2f}</td>") + page.count(f">{501.25 + i:.2f}</td>") for i in range(5)]
    left = {"metrics.json": 2, "scores.json": 1, "generated.json": 3}[file.split("/")[-1]]
    assert shown == [3, 3, left, 3, 3]
    assert "Left out" in page and file in page


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_that_is_no_result_is_a_line_and_the_others_are_shown(runs, tmp_path, capsys, kind):
    entry, said = ENTRIES[kind]
    (runs[0] / "metrics.json").write_text(json.dumps({"odd": entry, "control_error": GOOD | {"value": 4.5}}))
    assert remoco("report", *runs[:2], "--out", tmp_path / "page") == 1
    (line,) = lines(capsys)
    assert line.startswith(f"left out: {runs[0] / 'metrics.json'}: odd: {said}")
    assert "4.50</td>" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize("root", [5, [], "a\0b", "x" * 5000, "\x1b[31m", {"a": 1}, True])
def test_a_benchmark_that_is_no_folder_is_a_line_or_nothing(runs, tmp_path, capsys, root):
    (runs[0] / "benchmark" / "bench" / "generated.json").write_text(json.dumps({"root": root}))
    code = remoco("report", *runs[:2], "--out", tmp_path / "page")
    said = lines(capsys)
    assert code == (1 if said else 0) and (tmp_path / "page" / "index.html").is_file()
    assert all("generated.json: root: expected the folder of a benchmark" in line for line in said)
    assert said or isinstance(root, str)


def test_a_folder_that_is_no_benchmark_any_more_is_a_line(runs, tmp_path, capsys):
    (runs[0] / "benchmark" / "bench" / "generated.json").write_text(json.dumps({"root": str(tmp_path)}))
    assert remoco("report", *runs[:2], "--out", tmp_path / "page") == 1
    assert f"benchmark {tmp_path}: no samples" in lines(capsys)[0]


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to nothing", "noise", "huge record"])
def test_event_files_of_other_kinds_are_a_line_or_have_no_curves(runs, tmp_path, capsys, kind):
    with SummaryWriter(str(runs[0])) as writer:
        for step in range(3):
            writer.add_scalar("train/loss", 0.5, step)
            writer.add_scalar("train/loss_<b>", 1e38 * (-1) ** step, 2**61 * step)
    path = runs[0] / "events.out.tfevents.0.odd"
    if kind == "noise":
        path.write_bytes(os.urandom(5000))
    elif kind == "huge record":
        path.write_bytes(struct.pack("<QI", 2**62, 0) + b"x" * 100)
    else:
        put(path, kind)
    code = remoco("report", *runs[:2], "--out", tmp_path / "page")
    said = lines(capsys)
    assert code == (1 if said else 0) and all(str(path) in line for line in said)
    assert said or kind in ("noise", "huge record")  # a log that was cut short is usual
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("<svg") == 2 and "loss_&lt;b&gt;" in page and "<b>" not in page


def test_names_from_strangers_are_text_on_the_page(tmp_path, capsys):
    """Of folders, samples, metrics, protocols and videos: none is markup, leads elsewhere, or breaks UTF-8."""
    evil = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>{{BODY}}"
    run = system(tmp_path / evil.replace("/", "-"))
    (run / "metrics.json").write_text(json.dumps({evil[:150]: GOOD | {"protocol": evil}}))
    samples = run / "samples" / "step-000003"
    samples.mkdir(parents=True)
    (run / "samples" / "step-<b>").mkdir()
    (run / "samples" / "step-99999999999999999999").mkdir()
    video = np.zeros((4, 16, 16, 3), "uint8")
    write_video(samples / "clip-\"'<b>#?%20.mp4", video, 8)
    videos = run / "benchmark" / "bench" / "videos"
    videos.mkdir()
    write_video(videos / "plain.mp4", video, 8)
    for name in (b"\"'<script>&#x.mp4", b"\xff\xfe.mp4", b"a\nb\x1b[31m.mp4"):
        shutil.copy(videos / "plain.mp4", os.path.join(os.fsencode(videos), name))
    (videos / "broken\x1b\n<b>.mp4").write_bytes(b"#EXTM3U\n")
    assert remoco("report", run, "--out", tmp_path / "page") == 1
    assert len(lines(capsys)) == 1
    page = (tmp_path / "page" / "index.html").read_bytes().decode()
    assert "<script>alert" not in page and "<img" not in page and "onerror='" not in page.replace("onerror=&#x27;", "")
    assert "<b>" not in page and "{{BODY}}" in page and "&lt;script&gt;alert(1)" in page
    names = re.findall(r'src="([^"]*)"', page)
    assert len(names) == 5 and all((tmp_path / "page" / name).is_file() for name in names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") for name in names)


# sweeps


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("file", ["trials/region_size_4-seed_0.json", "region_size_4-seed_0/metrics.json"])
def test_a_sweep_with_one_broken_file_shows_the_rest_and_the_line(finished, capsys, file, kind):  # noqa: F811
    put(finished / file, kind)
    assert remoco("sweep", "table", finished) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("left out: ")]
    assert str(finished / file) in line and FILES[kind][1] in line and line.isprintable()
    assert "3 ± 1.4" in captured.out  # of the other point
    assert "5" in captured.out.splitlines()[1]  # and of this one's other seed


@pytest.mark.parametrize(
    "field, value",
    [
        ("point", None), ("point", {"a": 1}), ("point", {"\x1b[31m": "4"}), ("point", {}), ("point", {"other": "4"}),
        ("seed", "0"), ("seed", -1), ("seed", True), ("seed", 10**90), ("state", "gone"), ("state", []), ("error", 5),
        ("fitted", 1), ("attempts", "3"), ("attempts", 1.5), ("seconds", "9"), ("seconds", 1e999), ("seconds", None),
    ],
)  # fmt: skip
def test_a_field_of_a_trial_that_cannot_be_is_named(finished, capsys, field, value):  # noqa: F811
    path = finished / "trials" / "region_size_4-seed_0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert remoco("sweep", "table", finished) == 1
    (line,) = lines(capsys)
    assert f"{path}: {field}: expected" in line
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != field}))
    assert remoco("sweep", "table", finished) == 1 and f"{path}: {field}: expected" in lines(capsys)[0]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"values": None}, "values: "), ({"values": {}}, "values: "), ({"values": {"a": 5}}, "values.a: "),
        ({"values": {"a": []}}, "values.a: "), ({"values": {"a": {"uniform": "x"}}}, "values.a: "),
        ({"metrics": "md_vid"}, "metrics: "), ({"metrics": [5]}, "metrics: "), ({"metrics": ["\x1b"]}, "metrics: "),
        ({"label": 5}, "label: "), ({"label": ["a"]}, "label: "),
    ],
)  # fmt: skip
def test_a_field_of_a_plan_that_cannot_be_is_named(finished, capsys, change, said):  # noqa: F811
    path = finished / results.PLAN
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for command in ("table", "plot"):
        assert remoco("sweep", command, finished) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{path}: {said}expected" in line or f"{path}: {said}values: " in line, line


# studies


def exported(study="s", rater="one", answers=None, **change):
    first = {"pair": "x", "question": "motion_quality", "side": "left", "winner": "ours", "loser": "theirs"}
    return {"study": study, "rater": rater, "answers": answers or [first | change]}


WRONG = {
    "no object": ([], "answers: expected a list"),
    "no list": ({"study": "s", "rater": "r", "answers": {}}, "answers: expected a list"),
    "study": (exported(study=5), "study: expected a text"),
    "rater": (exported(rater=None), "rater: expected a text"),
    "nobody": (exported(rater=""), "rater: expected a text"),
    "control": (exported(rater="a\x1b[2J"), "rater: expected a text of printable characters"),
    "newline": (exported(winner="ou\nrs"), "answers[0].winner: expected a text of printable characters"),
    "turned": (exported(pair="a\u202eb"), "answers[0].pair: expected a text of printable characters"),
    "entry": (exported(answers=[5]), "answers[0].pair: expected a text"),
    "pair": (exported(pair=5), "answers[0].pair: expected a text"),
    "missing": (exported(answers=[{"pair": "x"}]), "answers[0].question: expected a text"),
    "question": (exported(question="which is nicer"), "answers[0].question: expected motion_quality, "),
    "itself": (exported(loser="ours"), "answers[0].winner: expected another system"),
    "contradiction": (
        exported(answers=exported()["answers"] + exported(winner="theirs", loser="ours")["answers"]),
        "answers[1].winner: pair x is answered twice, and differently",
    ),
    "third": (
        exported(answers=exported()["answers"] + exported(pair="y", loser="else")["answers"]),
        "expected two systems",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_answers_that_are_none_name_the_field(tmp_path, capsys, kind):
    content, said = WRONG[kind]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert remoco("study", "ratios", tmp_path / "a.json") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'a.json'}: " in line and said in line and line.isprintable()


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("list", "text")])
def test_answers_in_other_kinds_of_files_are_one_line(tmp_path, capsys, kind):
    put(tmp_path / "a.json", kind)
    assert remoco("study", "ratios", tmp_path / "a.json") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a.json" in line and FILES[kind][1].replace("not readable JSON", "Expecting") in line and line.isprintable()


def test_two_files_of_a_person_that_contradict_each_other_are_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(exported()))
    (tmp_path / "b.json").write_text(json.dumps(exported(winner="theirs", loser="ours")))
    assert remoco("study", "ratios", tmp_path / "a.json", tmp_path / "b.json") == 2
    assert "one answered pair x twice, and differently" in capsys.readouterr().err
    (tmp_path / "b.json").write_text(json.dumps(exported()))
    assert remoco("study", "ratios", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert "n = 1 answers of 1 people" in capsys.readouterr().out


def test_answers_are_held_against_the_page_of_their_study(tmp_path, capsys):
    video = np.zeros((4, 16, 16, 3), "uint8")
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "x.mp4", video, 8)
    page = tmp_path / "page"
    assert remoco("study", "pages", tmp_path / "ours", tmp_path / "theirs", "--out", page) == 0
    known = read_study(page)["id"]
    file = tmp_path / "a.json"
    for content, said in (
        (exported(known), None),
        (exported("s"), f"study: expected {known}, got s"),
        (exported(known, pair="y"), "y, motion_quality: not what the study asks"),
        (exported(known, question=[*QUESTIONS][2]), f"x, {[*QUESTIONS][2]}: not what the study asks"),
        (exported(known, loser="else"), "x, motion_quality: not what the study asks"),
    ):
        file.write_text(json.dumps(content))
        assert remoco("study", "ratios", file, "--study", page) == (0 if said is None else 2)
        assert said is None or f"{file}: {said}" in capsys.readouterr().err
    for broken in (b"", b"<html>", b'atob("AAAA")', b'atob("W10=")', b"\xff"):
        (tmp_path / "odd.html").write_bytes(broken)
        capsys.readouterr()
        assert remoco("study", "ratios", file, "--study", tmp_path / "odd.html") == 2
        assert "--study" in capsys.readouterr().err


def test_what_strangers_write_is_shown_on_one_line():
    assert readable("a\nb\x1b[31m\u202e\ud800é") == "a b\\x1b[31m\\u202e\\ud800é"
    assert readable("x" * 600) == "x" * 500 + "..."
