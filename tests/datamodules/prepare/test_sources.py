"""What is listed to prepare: folders, WebVid's CSV, video2dataset's tars; and where clips start."""

import io
import json
import os
import shutil
import tarfile

import av
import numpy as np
import pytest

from datamodules.prepare import starts
from datamodules.prepare.source import Slice
from datamodules.prepare.sources import videos_in
from datamodules.shards import Shards
from remoco.common.errors import BadClip, UserError
from remoco.common.videos import decode
from tests.support.commands import remoco
from tests.support.videos import write_video

SMALL = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--workers", "1"]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path)
    return path


def faults(videos):
    return {video.name: video.fault for video in videos if video.fault}


def captions(shards):
    found = Shards(str(shards))
    places = [(s, c) for s, n in enumerate(found.counts) for c in range(n)]
    members = [found.read(*place, ["json", "txt"]) for place in places]
    return {json.loads(each["json"])["source"]["name"]: each["txt"].decode() for each in members}


# Folder


def test_names_no_encoding_can_hold_are_printable_and_unique(tmp_path, video):
    for name in (b"\xff.mp4", b"\xfe.mp4", "日本 v1.2.mp4".encode(), b"..mp4", b".a b.mp4"):
        shutil.copy(os.fsencode(video), os.path.join(os.fsencode(tmp_path), name))
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.mp4")
    found = videos_in(str(tmp_path))
    for each in found:
        json.dumps(each.name, ensure_ascii=False).encode()
    names = ["\\xff.mp4", "\\xfe.mp4", "日本 v1.2.mp4", ".a b.mp4", "..mp4"]
    assert [each.name for each in found if not each.fault] == sorted(names)
    assert len({each.key for each in found}) == 6 and faults(found) == {"dangling.mp4": "is a broken link"}
    assert decode.video_seconds(next(each for each in found if each.name == "\\xff.mp4").source()) == 2.0


def test_prepare_takes_such_names(tmp_path, video):
    (tmp_path / "v").mkdir()
    for name in (b"\xff.mp4", b"\xfe.mp4"):
        shutil.copy(os.fsencode(video), os.path.join(os.fsencode(tmp_path / "v"), name))
    assert remoco("prepare", str(tmp_path / "v"), str(tmp_path / "o"), *SMALL) == 0
    assert set(captions(tmp_path / "o")) == {"\\xff.mp4", "\\xfe.mp4"}


# WebVid


def webvid(folder, lines, header="videoid,contentUrl,duration,page_dir,name"):
    (folder / "list.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(folder / "list.csv")


def test_webvid(tmp_path, video, capsys):
    root = tmp_path / "videos"
    (root / "000_050").mkdir(parents=True)
    os.symlink(video, root / "000_050" / "11.mp4")
    os.symlink(video, root / "12.mp4")
    path = webvid(
        tmp_path,
        [
            '11,https://x/11.mp4,PT00H00M20S,000_050,"A cat, and ""a dog"" – zwei"',
            "12,https://x/12.mp4,PT00H00M20S,000_050,beside the folders",
            "13,https://x/13.mp4,PT00H00M20S,000_050,never downloaded",
            "11,https://x/11.mp4,PT00H00M20S,000_050,again",
            "14,https://x/14.mp4,PT00H00M20S,../../etc,outside",
            ",https://x,PT,000_050,no id",
            "15",
        ],
    )
    found = {each.name: each for each in videos_in(path, str(root))}
    assert found["000_050/11"].caption == 'A cat, and "a dog" – zwei' and not found["000_050/11"].fault
    assert found["000_050/12"].path == str(root / "12.mp4")
    missing = faults(found.values())
    assert missing["000_050/13"] == "is not on disk, expected 000_050/13.mp4"
    assert missing["000_050/11 (2)"] == "is there more than once; the first was used"
    assert "no usable videoid and page_dir" in missing["../../etc/14"]
    assert "not on disk" in missing["15"] and len(found) == 7
    assert remoco("prepare", path, str(tmp_path / "o"), "--root", str(root), *SMALL) == 0
    assert set(captions(tmp_path / "o")) == {"000_050/11", "000_050/12"}
    report = [json.loads(line) for line in (tmp_path / "o/report.jsonl").read_text("utf-8").splitlines()]
    assert len(report) == 7 and sum(bool(line["bad"]) for line in report) == 5
    assert "000_050/13: is not on disk" in capsys.readouterr().out


def test_webvid_mistakes_are_one_line(tmp_path, capsys):
    path = webvid(tmp_path, ["1,u,d,p"], header="videoid,contentUrl,duration,page_dir")
    for arguments, message in [
        ((path,), "list.csv: column name is missing, expected videoid, contentUrl, page_dir, name"),
        ((path, "--root", tmp_path / "none"), "none is not a folder"),
        ((tmp_path, "--root", tmp_path), "only a WebVid .csv has a root"),
        ((tmp_path / "no.csv",), "no.csv does not read"),
    ]:
        assert remoco("prepare", str(arguments[0]), str(tmp_path / "o"), *map(str, arguments[1:])) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


# video2dataset


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path, video):
    data, root = video.read_bytes(), tmp_path / "v2d"
    root.mkdir()
    with tarfile.open(root / "00000.tar", "w") as tar:
        add(tar, "000000.json", json.dumps({"caption": "not this", "url": "u"}).encode())
        add(tar, "000000.mp4", data)
        add(tar, "000000.txt", "a – caption\n".encode())
        add(tar, "sub/日本.v2.mp4", data)  # as webdataset: the key ends at the first dot
        add(tar, "000001.json", b'{"caption": "from \\ud800 json"}')
        add(tar, "000001.mp4", data)
        add(tar, "000002.txt", b"text alone")
        add(tar, "000003.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "000004.mp4", type=tarfile.LNKTYPE, linkname="000000.mp4")
        add(tar, "../000005.mp4", data)
        add(tar, "/000006.mp4", data)
        add(tar, "000000.mp4", b"again")
        add(tar, "000007.mp4", b"not a video")
        add(tar, "000008.mp4")
    whole = (root / "00000.tar").read_bytes()
    (root / "00001.tar").write_bytes(whole[: len(data) + 4000])  # cut inside the second video
    (root / "00002.tar").write_bytes(b"no tar" * 300)
    (root / "00003.tar").write_bytes(b"")
    return root


def test_video2dataset_tars(tars, tmp_path):
    found = {each.name: each for each in videos_in(str(tars))}
    good = {name for name, each in found.items() if not each.fault}
    assert {"00000.tar/000000", "00000.tar/000001", "00000.tar/000007", "00000.tar/000008"} < good
    assert found["00000.tar/000000"].caption == "a – caption" and "half a character" in found["00000.tar/000001"].note
    bad = faults(found.values())
    assert bad["00000.tar/000002"] == "has no video, only txt"
    assert bad["00000.tar/000003.mp4"] == bad["00000.tar/000004.mp4"] == "is a link or a device, not a file"
    assert bad["00000.tar/../000005.mp4"] == bad["00000.tar//000006.mp4"] == "has a name that leaves the tar"
    assert bad["00000.tar/000000.mp4"].startswith("is there more than once")
    assert "00001.tar/000000" in good and any("cut short" in reason for name, reason in bad.items() if "00001" in name)
    assert bad["00002.tar"].startswith("tar does not open") and "00003.tar" in bad
    assert remoco("prepare", str(tars), str(tmp_path / "o"), *SMALL) == 0
    made = captions(tmp_path / "o")
    assert made["00000.tar/000000"] == "a – caption" and "00000.tar/sub/日本" in made
    report = {line["video"]: line for line in map(json.loads, (tmp_path / "o/report.jsonl").read_text().splitlines())}
    assert set(report) == set(found) and set(made) == {name for name in report if report[name]["clips"]}
    assert "does not open" in report["00000.tar/000007"]["bad"][0]["reason"] and report["00000.tar/000008"]["bad"]
    assert not any(path.name.endswith((".mp4", "passwd")) for path in tmp_path.rglob("*"))


def test_a_single_tar_and_a_folder_give_the_same_clips(tars, tmp_path, video):
    (tmp_path / "one").mkdir()
    with tarfile.open(tmp_path / "one/a.tar", "w") as tar:
        add(tar, "k.mp4", video.read_bytes())
    assert remoco("prepare", str(tmp_path / "one/a.tar"), str(tmp_path / "x"), *SMALL) == 0
    assert remoco("prepare", str(video.parent), str(tmp_path / "y"), *SMALL) == 0
    kinds = ["mp4", "flow.z", "masks.tif"]
    assert Shards(str(tmp_path / "x")).read(0, 0, kinds) == Shards(str(tmp_path / "y")).read(0, 0, kinds)


def test_slice_is_a_file(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(100)))
    with Slice(str(tmp_path / "f"), 10, 20) as part:
        assert part.read() == bytes(range(10, 30)) and part.read(5) == b""
        assert part.seek(-3, os.SEEK_END) == 17 and part.read(10) == bytes(range(27, 30))
        assert part.seek(2) == 2 and part.seek(1, os.SEEK_CUR) == 3 and part.read(1) == b"\x0d" and part.tell() == 4


# Clip choice


def scenes(lengths, height=48, width=64):
    """Slowly moving scenes, one hard cut between each and the next."""
    from datamodules.scenes.scene import random_scene, render

    shots = [render(random_scene([seed], length, height, width)) for seed, length in enumerate(lengths)]
    for number, shot in enumerate(shots):  # no two shots alike in brightness
        shots[number] = (shot // 2 + (number % 2) * 120).astype(np.uint8)
    return np.concatenate(shots)


def test_cuts_are_found_where_they_are(tmp_path):
    write_video(tmp_path / "v.mp4", fps=12, video=scenes([20, 30, 10]))
    shots = starts.find_shots(str(tmp_path / "v.mp4"))
    # an instant later than a quarter of a picture after the last one of a shot may take the first one of the next
    ends = [19.25 / 12, 49.25 / 12, 5.0]
    assert shots == [pytest.approx(shot) for shot in zip([0, 20 / 12, 50 / 12], ends)]


def test_cuts_of_a_variable_frame_rate_have_the_times_of_the_pictures(tmp_path):
    times = [n * 40 for n in range(12)] + [480 + n * 100 for n in range(12)]
    write_video(tmp_path / "v.mkv", fps=25, video=scenes([12, 12]), times=times)
    (first, cut), (again, end) = starts.find_shots(str(tmp_path / "v.mkv"))
    assert (first, cut) == (0, pytest.approx(0.44 + 0.25 * 0.04))
    assert (again, end) == (pytest.approx(0.48), pytest.approx(1.68, abs=0.01))


@pytest.mark.parametrize("every", [None, 0.5])
def test_no_clip_crosses_a_cut(tmp_path, every):
    (tmp_path / "v").mkdir()
    video = scenes([14, 17, 12, 15])  # at 12 fps: cuts at 1.17, 2.58, 3.58 s
    write_video(tmp_path / "v/a.mp4", fps=12, video=video)
    arguments = ["--frames", "6", "--fps", "6", "--height", "64", "--width", "64", "--workers", "1"]
    arguments += [] if every is None else ["--every", str(every)]
    assert remoco("prepare", str(tmp_path / "v"), str(tmp_path / "plain"), *arguments) == 0
    assert max(difference for _, difference in differences(tmp_path / "plain")) > 80  # it can be seen
    assert remoco("prepare", str(tmp_path / "v"), str(tmp_path / "o"), *arguments, "--shots") == 0
    found = list(differences(tmp_path / "o"))
    assert max(difference for _, difference in found) < 40
    starts = [start for start, _ in found]
    if every is None:  # the middle of the video, 2.42 s, lies in the second shot, which has room for the clip's 0.83 s
        assert len(starts) == 1 and 14 / 12 <= starts[0] <= 31 / 12 - 5 / 6
    else:
        assert starts == pytest.approx([0, 14 / 12, 14 / 12 + 0.5, 31 / 12, 43 / 12], abs=1e-5)


def differences(shards):
    """(start, how much the mean brightness differs within the clip) of each clip."""
    found = Shards(str(shards))
    for clip in range(int(found.counts[0])):
        members = found.read(0, clip, ["json", "mp4"])
        with av.open(io.BytesIO(members["mp4"])) as container:
            means = [picture.to_ndarray(format="gray").mean() for picture in container.decode(video=0)]
        yield json.loads(members["json"])["source"]["start"], max(means) - min(means)


def test_starts_in_shots():
    shots = [(0.0, 1.0), (1.0, 1.5), (1.5, 4.0), (4.0, 10.0)]
    assert list(starts.clip_starts_in_parts(shots, 5, 4.0, None)) == [
        pytest.approx(4.0 + (6 - 1.001) / 2)
    ]  # 5.0 s lies in the last
    assert list(starts.clip_starts_in_parts(shots[:3], 5, 4.0, None)) == [pytest.approx(1.5 + (2.5 - 1.001) / 2)]
    assert list(starts.clip_starts_in_parts(shots, 5, 4.0, 1.0)) == [1.5, 2.5, 4.0, 5.0, 6.0, 7.0, 8.0]
    with pytest.raises(BadClip, match="has no shot of 3.00 s, the longest of 2 lasts 1.00 s"):
        starts.clip_starts_in_parts(shots[:2], 13, 4.0, None)


def test_without_scenedetect_shots_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[shots\]' -c constraints\.txt"):
        starts.require_scenedetect()
