"""Damaged videos: what is sound is used, the rest left out with its reason; the rule by which a set was made."""

import json

import cv2
import numpy as np
import pytest

from datamodules.prepare import clips, job
from datamodules.prepare import video as work
from datamodules.prepare.sources import videos_in
from datamodules.shards import Shards
from remoco.common.errors import BadClip
from remoco.common.videos import decode
from remoco.common.videos.files import read_frames, read_video
from remoco.common.videos.mp4 import REPEATABLE
from tests.support.commands import prepare as run
from tests.support.prepared import metas, report
from tests.support.videos import FIELDS, damage, woven, write_pictures

# Damage


@pytest.fixture(scope="module")
def pan():
    """150 pictures of a ground that moves by 1 px each."""
    ground = cv2.GaussianBlur(
        np.random.default_rng(3).integers(0, 255, (64, 96 + 150, 3)).astype(np.uint8), (0, 0), 1.5
    )
    return [ground[:, n : n + 96] for n in range(150)]


@pytest.fixture(scope="module", params=[4, 30])
def broken(request, tmp_path_factory, pan):
    """6 s with key frames every 2 s, and wrong bytes in the second of the three parts; what is sound is as it was."""
    root = tmp_path_factory.mktemp("broken")
    (root / "v").mkdir()
    write_pictures(root / "whole.mp4", pan, g="50", crf="20", sc_threshold="0", **REPEATABLE)  # where damage hits
    (root / "v/a.mp4").write_bytes((root / "whole.mp4").read_bytes())
    damage(root / "v/a.mp4", 0.4, 0.6, request.param)
    return root


def test_what_may_be_predicted_from_a_corrupt_picture_is_damaged(broken):
    whole = {round(picture.time * 25): picture.frame for picture in decode.pictures(broken / "whole.mp4")}
    found = list(decode.pictures(broken / "v/a.mp4"))
    for picture in found:
        true = whole[round(picture.time * 25)].to_ndarray(format="rgb24")
        if not picture.damaged:
            assert np.array_equal(picture.frame.to_ndarray(format="rgb24"), true)
    sound = {round(picture.time * 25) for picture in found if not picture.damaged}
    assert sound >= {*range(45), *range(101, 150)} and not sound & set(range(60, 100))


def test_damage_costs_its_clips_and_the_rest_is_used(broken, tmp_path, capsys):
    small = ["--frames", 8, "--height", 64, "--width", 64, "--workers", 1]
    assert run(broken / "v", tmp_path / "o", *small, "--every", 1) == 0
    line = report(tmp_path / "o")["a.mp4"]
    assert [meta["source"]["start"] for meta in metas(tmp_path / "o")] == [0, 1, 4, 5]
    assert [bad["start"] for bad in line["bad"]] == [2, 3] and all(
        "is damaged at" in bad["reason"] for bad in line["bad"]
    )
    assert "is damaged at 2." in capsys.readouterr().out


def test_the_one_clip_of_a_damaged_middle_comes_from_beside_it(broken, tmp_path):
    assert run(broken / "v", tmp_path / "o", "--frames", 8, "--height", 64, "--width", 64, "--workers", 1) == 0
    line = report(tmp_path / "o")["a.mp4"]
    assert [bad["start"] for bad in line["bad"]] == [2.5] and "is damaged at 2.48" in line["bad"][0]["reason"]
    (meta,) = metas(tmp_path / "o")
    start = meta["source"]["start"]
    assert start + 7 / 8 < 2 or start >= 4
    task = work.Task(
        videos_in(str(broken / "v"))[0], 0, tmp_path / "p", work.Settings(frames=20, height=64, width=64, step=1 / 8)
    )
    assert work.prepare_video(task) is None  # 2.4 s
    result = json.loads(work.result_path(tmp_path / "p", 0).read_bytes())
    assert not result["clips"] and "has no undamaged part of 2.38 s" in result["bad"][1]["reason"]


@pytest.mark.parametrize("read", [lambda path: read_frames(path, 100), read_video])
def test_videos_to_score_or_show_must_be_sound(broken, read):
    with pytest.raises(BadClip, match=r"a.mp4: the picture at [12]\.\d\d s is damaged"):
        read(broken / "v/a.mp4")
    assert len(read_frames(broken / "v/a.mp4", 40)) == 40


def test_shots_leave_damage_out(broken):
    starts = pytest.importorskip("datamodules.prepare.starts")
    pytest.importorskip("scenedetect")
    shots = starts.find_shots(broken / "v/a.mp4")
    assert (
        shots[0][0] == 0 and 1.8 < shots[0][1] < 2 and shots[-1] == (pytest.approx(4.0, abs=0.05), pytest.approx(6.0))
    )


@pytest.mark.parametrize("name", ["v.mov", "v.avi"])
def test_a_picture_that_does_not_decode_at_all_costs_its_clips(tmp_path, pan, name):
    """PNG: every picture is a key frame, so that one lost packet damages one picture."""
    path = tmp_path / name
    write_pictures(path, pan[:50], 25, "png", "rgb24")
    data = path.read_bytes()
    places, place = [], -1
    while (place := data.find(b"\x89PNG", place + 1)) >= 0:
        places.append(place)
    at = places[20]
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    found = list(decode.pictures(path))
    # the parser of an AVI puts what begins with no signature together with the next
    assert len(found) == (49 if name == "v.avi" else 50)
    assert [n for n, picture in enumerate(found) if picture.damaged] == [20]
    clips.read_clip(path, 0, 3, 8, 64, 96)  # 0, 3, 6
    with pytest.raises(clips.Damaged, match=r"is damaged at 0.80 s"):
        clips.read_clip(path, 0.8, 3, 8, 64, 96)
    clips.read_clip(path, 0.9, 3, 8, 64, 96)


def test_a_file_that_is_cut_short_is_used_as_far_as_it_goes(tmp_path, pan):
    (tmp_path / "v").mkdir()
    begins_with_index = {"b.mp4": "frag_keyframe+empty_moov", "d.mp4": "faststart"}  # which says 6 s
    for name in ("a.mkv", "b.mp4", "c.ts", "d.mp4"):
        write_pictures(tmp_path / name, pan, 25, movflags=begins_with_index.get(name, ""), g="25", crf="20")
        data = (tmp_path / name).read_bytes()
        (tmp_path / "v" / name).write_bytes(data[: len(data) * 4 // 10])
    assert run(tmp_path / "v", tmp_path / "o", "--frames", 8, "--height", 64, "--width", 64, "--workers", 1) == 0
    assert [len(line["clips"]) for line in report(tmp_path / "o").values()] == [1, 1, 1, 1]
    (bad,) = report(tmp_path / "o")["d.mp4"]["bad"]
    assert bad["start"] == 2.5 and "ends too early" in bad["reason"]


# The record


@pytest.fixture
def small(tmp_path):
    (tmp_path / "v").mkdir()
    write_pictures(tmp_path / "v/a.mp4", woven(20), 8, **FIELDS)
    (tmp_path / "v/b.mp4").write_bytes(b"no video")
    return [tmp_path / "v", tmp_path / "o", "--frames", 3, "--height", 64, "--width", 64, "--workers", 1]


def test_a_set_keeps_the_rule_by_which_its_pictures_were_chosen(tmp_path, small, capsys):
    assert run(*small) == 0
    plan = tmp_path / "o" / job.PLAN
    recorded = json.loads(plan.read_bytes())
    assert recorded.pop("rule") == clips.RULE
    plan.write_text(json.dumps(recorded))  # as earlier versions wrote it
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir() if path.name != job.PLAN}
    assert run(*small) == 0 and "rule" not in json.loads(plan.read_bytes())  # finished: nothing to add
    assert len(Shards(str(tmp_path / "o"))) == 1
    capsys.readouterr()
    assert run(*small, "--retry") == 2
    error = capsys.readouterr().err
    assert (
        "their pictures were chosen by an earlier rule, this version's is nearest-1" in error and error.count("\n") == 1
    )
    assert before == {name: (tmp_path / "o" / name).read_bytes() for name in before}
    (tmp_path / "o/index.json").unlink()  # as if it were not finished
    assert run(*small) == 2 and "chosen by an earlier rule" in capsys.readouterr().err


def test_notes_outlive_a_killed_process(tmp_path, small):
    task = work.Task(
        videos_in(str(small[0]))[0], 0, tmp_path / "p", work.Settings(frames=3, height=64, width=64, step=1 / 8)
    )
    assert work.prepare_video(task) is None
    result = work.result_path(tmp_path / "p", 0)
    first = result.read_bytes()
    assert json.loads(first)["notes"] == ["deinterlaced"]
    result.unlink()
    assert work.prepare_video(task) is None and result.read_bytes() == first
    work.give_up(task, -11)
    assert json.loads(result.read_bytes())["notes"] == ["deinterlaced"]
