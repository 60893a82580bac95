"""Folders as people have them: links, names, leftovers of other programs, captions in any encoding."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path

import pytest

from datamodules.prepare.sources import videos_in
from tests.support.commands import remoco
from tests.support.videos import write_video

SMALL = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--workers", "1"]
CASES = Path(__file__).parents[4] / "shared" / "cases" / "gen_folder.py"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path)
    return path


@pytest.fixture
def put(tmp_path, video):
    """A copy of the video under a name of the folder `v`."""

    def copied(name) -> Path:
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "v"), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(video, path))

    return copied


def listed(folder):
    return {each.name: each for each in videos_in(str(folder))}


def used(folder):
    return {name for name, each in listed(folder).items() if not each.fault}


def prepared(folder, out):
    """The report of a preparation, by name."""
    assert remoco("prepare", folder, out, *SMALL) == 0
    return {line["video"]: line for line in map(json.loads, (out / "report.jsonl").read_text("utf-8").splitlines())}


# Links


def test_linked_folders_are_read_once(put, tmp_path):
    put("a.mp4"), put("sub/b.mp4")
    disk = tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    for name in ("c.mp4", "deep/d.mp4"):
        shutil.copy(put("a.mp4"), disk / name)
    (disk / "c.txt").write_text("of the other disk")
    root = tmp_path / "v"
    (root / "link").symlink_to(disk)
    (root / "sub" / "again").symlink_to(disk)  # the same folder by another way
    (root / "deep").symlink_to(disk / "deep")  # a part of it
    (root / "loop").symlink_to(root)
    (disk / "back").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "gone").symlink_to(tmp_path / "unmounted")
    (root / "self.mp4").symlink_to("self.mp4")
    (root / ".#a.mp4.txt").symlink_to("somebody@host.1")  # Emacs' mark
    found = listed(root)
    good = {name for name in found if not found[name].fault}
    assert good == {"a.mp4", "sub/b.mp4", "link/c.mp4", "deep/d.mp4"}
    assert found["link/c.mp4"].caption == "of the other disk"
    reasons = {name: each.fault for name, each in found.items() if each.fault}
    assert {reasons.pop(name) for name in ("loop/", "sub/again/", "link/back/")} == {
        "is a link to a folder that is read already"
    }
    assert reasons.pop("up/") == "is a link to a folder around this one, which is not followed"
    assert reasons.pop("gone") == "is a broken link" and "symbolic links" in reasons.pop("self.mp4") and not reasons


def test_a_video_that_several_links_lead_to_is_one(put, tmp_path):
    real, elsewhere = put("z.mp4"), tmp_path / "elsewhere.mp4"
    shutil.copy(real, elsewhere)
    root = tmp_path / "v"
    (root / "a.mp4").symlink_to(real)
    (root / "b.mp4").symlink_to(elsewhere)
    (root / "c.mp4").symlink_to(elsewhere)
    os.link(real, root / "zz.mp4")
    found = listed(root)
    assert {name: each.fault for name, each in found.items()} == {
        "a.mp4": "is the same file as z.mp4, which is used", "b.mp4": "", "z.mp4": "",
        "c.mp4": "is the same file as b.mp4, which is used", "zz.mp4": "is the same file as z.mp4, which is used",
    }  # fmt: skip
    report = prepared(root, tmp_path / "o")
    assert {name for name, line in report.items() if line["clips"]} == {"b.mp4", "z.mp4"}
    assert "same file" in report["a.mp4"]["bad"][0]["reason"]


# Names


def test_one_file_is_a_set(put, tmp_path, capsys):
    path = put("one v1.MP4")
    path.with_suffix(".txt").write_text("a caption")
    report = prepared(path, tmp_path / "o")
    assert list(report) == ["one v1.MP4"] and len(report["one v1.MP4"]["clips"]) == 1
    assert videos_in(str(path))[0].caption == "a caption"
    (tmp_path / "notes.docx").write_text("no video")
    capsys.readouterr()
    for name, problem in (("notes.docx", "is none by its name"), ("nowhere.mp4", "is not there")):
        assert remoco("prepare", tmp_path / name, tmp_path / "p", *SMALL) == 2
        said = capsys.readouterr().err
        assert f"{name} {problem}, expected a folder, a .tar or .csv file, or a video" in said and said.count("\n") == 1


def test_any_name_gives_its_clip(put, tmp_path, capsys):
    names = [
        "спуск 🎿 (1080p) [x264].mp4", "長い名前" * 19 + ".mp4", "x" * 251 + ".mp4", "a'b\"c.mp4", "line\nbreak.mp4",
        "100%_#1?&x=y.mov", " leading and trailing .mp4", "-dash.mp4", "CON.mp4", "back\\slash.mp4", "\x1b[31mred.mp4",
        unicodedata.normalize("NFC", "café.mp4"), unicodedata.normalize("NFD", "café.mp4"), "CAFE.mp4", "cafe.mp4",
        b"\xff.mp4", "\\xff.mp4", "a:b.mp4", "%03d.mp4", "v1.2.final.MP4",
    ]  # fmt: skip
    for name in names:
        put(name)
    (tmp_path / "v" / "line\nempty.mp4").touch()
    report = prepared(tmp_path / "v", tmp_path / "o")
    made = {name for name, line in report.items() if line["clips"]}
    assert len(made) == len(names) and made - {"\\xff.mp4", "\\xff.mp4 (2)"} == set(names) - {b"\xff.mp4", "\\xff.mp4"}
    keys = [key for line in report.values() for key in line["clips"]]
    assert len({key.lower() for key in keys}) == len(names) and all(key.isascii() and len(key) < 90 for key in keys)
    said = capsys.readouterr().out
    assert "\n  line\\nempty.mp4: does not open: it is empty\n" in said
    assert remoco("verify", tmp_path / "o", "--workers", 1) == 0


# Leftovers


def test_what_is_no_video_has_a_reason_of_its_own(put, tmp_path):
    data = put("good.mp4").read_bytes()
    leftovers = {
        "._good.mp4": (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000), "AppleDouble"),
        "empty.mp4": (b"", "it is empty"),
        "page.mp4": (b"\n<!DOCTYPE html><html><body>404</body></html>", "it is an HTML page, not a video"),
        "denied.mp4": (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied', "it is text, not a video"),
        "pointer.mp4": ("version https://git-lfs.github.com/spec/v1\nüü".encode()[:-1], "it is text, not a video"),
        "half.mp4": (data[: len(data) // 2], "does not open"),
        "zeros.mp4": (bytes(5000), "does not open"),
        "a.mp4.part": (data[:3000], "is an unfinished download"),
        "b.f137.MP4.part-Frag12": (data[:3000], "is an unfinished download"),
        "c.webm.crdownload": (data[:3000], "is an unfinished download"),
        "d.mkv.!qB": (data[:3000], "is an unfinished download"),
        "e.mov.tmp": (data[:3000], "is an unfinished download"),
    }
    for name, (content, _) in leftovers.items():
        (tmp_path / "v" / name).write_bytes(content)
    for name in ("good.mp4.json", "good.mp4.md5", "good.txt", "part.py"):  # what people keep beside videos
        (tmp_path / "v" / name).write_text("{}")
    report = prepared(tmp_path / "v", tmp_path / "o")
    assert set(report) == {"good.mp4", *leftovers} and len(report["good.mp4"]["clips"]) == 1
    for name, (_, reason) in leftovers.items():
        assert reason in report[name]["bad"][0]["reason"] and not report[name]["clips"], (name, report[name])


def test_text_in_a_tar_is_told_from_a_video(tmp_path, video):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("0.mp4", b"<html>"), ("1.mp4", video.read_bytes()), ("._1.mp4", b"\0\5\x16\7"), (".DS_Store", b"x")
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = prepared(tmp_path / "a.tar", tmp_path / "o")
    assert (
        report["a.tar/0"]["bad"][0]["reason"] == "does not open: it is an HTML page, not a video"
        and report["a.tar/1"]["clips"]
    )
    assert "begins with a dot" in report["a.tar/._1.mp4"]["bad"][0]["reason"] and len(report) == 3


# Captions

CAPTIONS = {
    "plain": ("a café".encode(), "a café", ""),
    "bom": ("a café".encode("utf-8-sig"), "a café", ""),
    "utf16": ("a café, 日本".encode("utf-16"), "a café, 日本", ""),
    "utf16be": (b"\xfe\xff" + "a café".encode("utf-16-be"), "a café", ""),
    "utf32": ("a café".encode("utf-32"), "a café", ""),
    "no mark le": ("a café".encode("utf-16-le"), "a café", "utf-16-le"),
    "no mark be": ("a café".encode("utf-16-be"), "a café", "utf-16-be"),
    "cp1252": ("a “red” square – café".encode("cp1252"), "a “red” square – café", "cp1252"),
    "cp1252 undefined": (b"a \x81 caf\xe9", "a \ufffd café", "cp1252"),
    "crlf": (b"one\r\ntwo\r\n", "one\ntwo", ""),
    "odd utf16": (b"\xff\xfea\0b", "a\ufffd", ""),
    "lone surrogate": (b"\xff\xfe\0\xd8a\0", "\ufffda", ""),
    "empty": (b"", "", ""),
}


def test_captions_of_any_encoding(put, tmp_path, video):
    for name, (data, _, _) in CAPTIONS.items():
        put(f"{name}.mp4").with_suffix(".txt").write_bytes(data)
    with tarfile.open(tmp_path / "v" / "t.tar", "w") as tar:
        for name, (data, text, _) in CAPTIONS.items():
            json_data = json.dumps({"caption": text}, ensure_ascii=False).encode("cp1252", "replace")
            members = {"mp4": b"x", "txt": data}, {"mp4": b"x", "json": json_data}
            for kind, member in zip(("text", "json"), members):
                for suffix, content in member.items():
                    info = tarfile.TarInfo(f"{kind} {name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    found = listed(tmp_path / "v")
    for name, (_, text, guess) in CAPTIONS.items():
        for each in (found[f"{name}.mp4"], found[f"t.tar/text {name}"]):
            assert each.caption == text, name
            assert (guess in each.note and "a guess" in each.note) if guess else not each.note, each
    assert found["t.tar/json cp1252"].caption == "a “red” square – café" and "cp1252" in found["t.tar/json cp1252"].note
    assert found["t.tar/json crlf"].caption == "one\ntwo" and not found["t.tar/json crlf"].note


@pytest.mark.parametrize(
    ("encoding", "guess"),
    [("utf-8", ""), ("utf-8-sig", ""), ("utf-16", ""), ("utf-16-le", "utf-16-le"), ("cp1252", "cp1252")],
)
def test_webvids_list_of_any_encoding(tmp_path, video, encoding, guess):
    (tmp_path / "p").mkdir()
    for name in ("1", "2"):
        shutil.copy(video, tmp_path / "p" / f"{name}.mp4")
    lines = ["videoid,contentUrl,duration,page_dir,name", '1,u,d,p,"café – “two\nlines”"', "2,u,d,p,plain"]
    (tmp_path / "list.csv").write_bytes("\r\n".join(lines).encode(encoding))
    found = listed(tmp_path / "list.csv")
    assert found["p/1"].caption == "café – “two\nlines”" and found["p/2"].caption == "plain"
    assert not found["p/1"].fault and (guess in found["p/1"].note if guess else not found["p/1"].note)
    assert bool(found["p/2"].note) == guess.startswith("utf-16")  # what is ASCII alone needs no guess


@pytest.mark.skipif(not CASES.exists(), reason="needs the shared makers of inputs")
def test_the_shared_folder(tmp_path):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, str(CASES), str(tmp_path)], check=True, capture_output=True, env=environment)
    root = next(tmp_path.glob("My*"))
    report = prepared(root, tmp_path / "o")
    bad = {name: line["bad"][0]["reason"] for name, line in report.items() if not line["clips"]}
    assert set(bad) == {"._plain.mp4", "download.mp4.part", "empty.mp4", "page.mp4", "link_to_file.mp4", "loop/"}
    files = {os.path.realpath(p) for p in tmp_path.rglob("*") if p.suffix.lower() in (".mp4", ".mov") and p.is_file()}
    files -= {os.path.realpath(root / name) for name in bad}  # the target of link_to_file is in link_to_folder
    assert sum(bool(line["clips"]) for line in report.values()) == len(files) + 1
