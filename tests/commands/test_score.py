"""`remoco score`, `remoco sprite-bench` and `remoco study` as a person calls them."""

import json
import shutil

import numpy as np
import pytest
import torch

from datamodules.bench.sprites import write_sprite_bench
from metrics import RandomFrameFeatures, RandomVideoFeatures
from remoco.common.errors import BadClip
from remoco.common.videos.files import read_frames, read_video, write_video
from remoco.study.ratios import preference_ratios
from tests.support.commands import remoco

pytestmark = pytest.mark.filterwarnings("ignore:FVD over", "ignore:a Frechet distance")
CLIPS = ("01_dog", "03_blocks", "05_default_juggle", "bedroom")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench") / "small"
    write_sprite_bench(root, pairs=1, height=64, width=96, frames=5)
    return root


@pytest.fixture
def videos(bench, tmp_path):
    return shutil.copytree(bench / "true_clips", tmp_path / "ours")


def last_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1].split("\r")[-1]


def test_the_true_clips_of_the_sprite_benchmark(videos, bench, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert remoco("score", videos, "--bench", bench, "--frames", 5, "--json", out) == 0
    results = json.loads(out.read_text())
    assert all({"value", "protocol", "n", "seconds"} <= set(entry) for entry in results.values())
    assert results["fine/md_vid_lk"]["value"] < 2 and results["object/md_vid_lk"]["value"] < 2
    assert "the first 5 frames" in results["fine/md_vid_lk"]["protocol"] and results["fine/md_vid_lk"]["n"] == 1
    said = capsys.readouterr().out
    # no published set, so neither the paper's titles nor its rows; the folder is called by its path
    assert "Fine-grained motion control on small (2 pairs)" in said and "Table" not in said and "quoted" not in said
    assert said.count(f"\n{videos} ") == 2


@pytest.mark.slow
def test_the_true_clips_at_the_default_size(tmp_path):
    """Both distances, stand-ins as they are, where there are more places to confuse a point with."""
    root, metrics, out = tmp_path / "bench", tmp_path / "metrics.yaml", tmp_path / "scores.json"
    metrics.write_text(
        "- class_path: metrics.MDImg\n- class_path: metrics.MDVid\n"
        "  init_args: {tracker: {class_path: datamodules.trackers.points.LucasKanade, init_args: {fallback: dis}}}\n"
    )
    assert remoco("sprite-bench", root, "--pairs", 4) == 0
    assert remoco("score", root / "true_clips", "--bench", root, "--metrics", metrics, "--json", out) == 0
    results = json.loads(out.read_text())
    assert {name: entry["value"] for name, entry in results.items() if entry["value"] >= 2} == {}
    assert len(results) == 4 and all(entry["n"] == 4 for entry in results.values())


def test_another_size_scores_the_tracks_rescaled(videos, bench, tmp_path):
    """Twice the size, each pixel four: the distances are those in the video's own pixels, and stay small."""
    for path in videos.rglob("*.mp4"):
        frames = read_frames(path, 5).permute(0, 2, 3, 1).numpy()
        write_video(path, frames.repeat(2, 1).repeat(2, 2), 8)
    out = tmp_path / "scores.json"
    assert remoco("score", videos, "--bench", bench, "--frames", 5, "--json", out) == 0
    results = json.loads(out.read_text())
    assert results["fine/md_vid_lk"]["value"] < 4 and results["object/md_vid_lk"]["value"] < 4
    assert "tracks rescaled" in results["fine/md_vid_lk"]["protocol"]


@pytest.mark.slow
def test_real_clips_against_themselves(shared, tmp_path):
    for name in CLIPS:
        (tmp_path / "clips").mkdir(exist_ok=True)
        shutil.copy(shared / "clips" / f"{name}.mp4", tmp_path / "clips")
    metrics = tmp_path / "metrics.yaml"
    metrics.write_text("- class_path: metrics.FrechetVideoDistance\n- class_path: metrics.FrechetImageDistance\n")
    out, folder = tmp_path / "scores.json", tmp_path / "clips"
    assert remoco("score", folder, "--reference", folder, "--metrics", metrics, "--json", out) == 0
    results = json.loads(out.read_text())
    videos = [read_frames(folder / f"{name}.mp4", 16) for name in CLIPS]
    features = {
        "fvd_random_features": torch.cat([RandomVideoFeatures()(video[None]) for video in videos]),
        "fid_random_features": torch.cat([RandomFrameFeatures()(video) for video in videos]),
    }
    assert set(results) == set(features)
    for name, found in features.items():
        variance = found.double().var(0).sum().item()
        assert 0 <= results[name]["value"] < 1e-6 * variance and results[name]["n"] == 4


def test_what_is_missing_short_or_broken_is_named_or_counted(videos, bench, tmp_path, capsys):
    fine = next((videos / "Fine_grained_control").glob("*.mp4"))
    other = next((videos / "object_control").glob("*.mp4"))
    out = tmp_path / "scores.json"
    command = ("score", videos, "--bench", bench, "--frames", 5)
    fine.write_bytes(b"broken")
    assert remoco(*command) == 2 and fine.name in last_line(capsys)
    assert remoco(*command, "--skip-unreadable", "--json", out) == 0
    results = json.loads(out.read_text())
    assert not any(name.startswith("fine/") for name in results)
    assert "1 videos left out" in results["object/md_vid_lk"]["protocol"]
    fine.unlink()
    assert remoco(*command) == 2
    assert "1 of the 2 videos" in (said := last_line(capsys)) and "Fine_grained_control/sprite-000" in said
    write_video(other, np.zeros((2, 64, 96, 3), np.uint8), 8)
    assert remoco("score", videos, "--reference", videos, "--frames", 5) == 2
    assert "has 2 frames, expected at least 5" in last_line(capsys)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--bench, --reference: give exactly one"),
        (["--bench", "nowhere"], "benchmark nowhere: no such folder"),
        (["--reference", "EMPTY"], "no videos in it"),
        (["--reference", "VIDEOS", "--frames", "1"], "--frames is 1"),
        (["--reference", "VIDEOS", "--metrics", "nowhere.yaml"], "--metrics nowhere.yaml: no such file"),
        (["--reference", "VIDEOS", "--metrics", "WRONG"], "metrics.NoSuchMetric"),
        (["--reference", "VIDEOS", "--metrics", "NOTHING"], "nothing.yaml: empty, expected a list of metrics"),
        (["--reference", "VIDEOS", "--frames", "5", "--metrics", "TWICE"], "fid_random_features is there twice"),
        (["--reference", "VIDEOS", "--device", "abacus"], "--device abacus: "),
        (["--reference", "VIDEOS", "--device", "cuda:99"], "--device cuda:99: "),
        (["--reference", "VIDEOS", "--device", "meta"], "--device meta: "),
        # known before the work, not after it
        (["--reference", "VIDEOS", "--json", "WRONG/scores.json"], "scores.json: cannot be written (File exists)"),
        (["--reference", "VIDEOS", "--json", "EMPTY"], "empty: cannot be written (it is a folder"),
    ],
)
def test_mistakes_are_one_line(videos, tmp_path, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.yaml").write_text("# metrics\n")
    (tmp_path / "wrong.yaml").write_text("- class_path: metrics.NoSuchMetric\n")
    (tmp_path / "twice.yaml").write_text("- class_path: metrics.FrechetImageDistance\n" * 2)
    names = {name.upper(): tmp_path / f"{name}.yaml" for name in ("nothing", "wrong", "twice")}
    names |= {"EMPTY": tmp_path / "empty", "VIDEOS": videos, "WRONG/scores.json": names["WRONG"] / "scores.json"}
    assert remoco("score", videos, *[names.get(argument, argument) for argument in arguments]) == 2
    assert said in last_line(capsys)


def test_a_study_from_pages_to_ratios(videos, bench, tmp_path, capsys):
    other = shutil.copytree(videos, tmp_path / "theirs")
    out = tmp_path / "page"
    assert remoco("study", "pages", videos, other, "--out", out, "--bench", bench) == 0
    page = (out / "index.html").read_text()
    assert "http" not in page and "{{" not in page  # one folder, nothing from outside
    assert "ours" not in page and "theirs" not in page  # blind
    files = sorted(path.name for path in (out / "videos").iterdir())
    assert files == [f"000{i}-{kind}" for i in (0, 1) for kind in ("left.mp4", "right.mp4", "tracks.png")]
    assert remoco("study", "pages", videos, other, "--out", out) == 2 and "holds files already" in last_line(capsys)
    next(other.rglob("*.mp4")).unlink()
    assert remoco("study", "pages", videos, other, "--out", tmp_path / "x") == 2
    assert "theirs: 1 videos of the other system are missing" in last_line(capsys)


def test_a_study_that_cannot_be_made_leaves_nothing_behind(videos, bench, tmp_path, capsys):
    other = shutil.copytree(videos, tmp_path / "theirs")
    before = {path.name for path in tmp_path.iterdir()}
    command = ("study", "pages", videos, other, "--out", tmp_path / "page")
    for extra, said in (
        (("--bench", tmp_path), "no samples, expected"),
        (("--seed", -1), "--seed is -1, expected at least 0"),
    ):
        assert remoco(*command, *extra) == 2 and said in last_line(capsys)
    for folder in (videos, other):
        shutil.copy(folder / "object_control" / "sprite-000.mp4", folder / "more.mp4")
    assert remoco(*command, "--bench", bench) == 2 and "no sample for the video more" in last_line(capsys)
    (other / "more.mp4").write_bytes(b"broken")
    assert remoco(*command) == 2 and "theirs/more.mp4: does not decode" in last_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == before
    (other / "more.mp4").write_bytes((videos / "more.mp4").read_bytes())
    assert remoco(*command) == 0


def test_a_film_is_no_clip(videos, monkeypatch):
    monkeypatch.setattr("remoco.common.videos.files.MAX_BYTES", 64 * 96 * 3 * 4)
    with pytest.raises(BadClip, match="when it is decoded, expected a short clip"):
        read_video(videos / "object_control" / "sprite-000.mp4")
    assert len(read_frames(videos / "object_control" / "sprite-000.mp4", 5)) == 5


def answers(rater: str, choices: dict[str, str], study: str = "s") -> dict:
    listed = [
        {"pair": pair, "question": "motion_quality", "winner": w, "loser": {"a": "b", "b": "a"}[w]}
        for pair, w in choices.items()
    ]
    return {"study": study, "rater": rater, "answers": listed}


def test_ratios_are_binomial_and_count_an_answer_once(tmp_path, capsys):
    """8 of 10: Clopper and Pearson's interval is 44.39 % to 97.48 %."""
    one = answers("one", {str(i): "a" if i < 4 else "b" for i in range(5)})
    two = answers("two", dict.fromkeys("01234", "a") | {"4": "b"})
    for name, content in (("one", one), ("two", two), ("again", one)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "ratios.json"
    files = [tmp_path / f"{name}.json" for name in ("one", "two", "again")]
    assert remoco("study", "ratios", *files, "--json", out) == 0
    result = json.loads(out.read_text())["motion_quality"]
    assert result["n"] == 10 and result["raters"] == 2 and result["systems"]["a"]["ratio"] == 0.8
    assert result["systems"]["a"]["interval"] == pytest.approx([0.4439, 0.9748], abs=1e-4)
    assert result["systems"]["b"]["interval"] == pytest.approx([0.0252, 0.5561], abs=1e-4)
    assert "80.00%" in capsys.readouterr().out
    (tmp_path / "other.json").write_text(json.dumps(answers("three", {"0": "a"}, study="t")))
    assert remoco("study", "ratios", files[0], tmp_path / "other.json") == 2
    assert "different studies" in last_line(capsys)
    (tmp_path / "odd.json").write_text(json.dumps(answers("one", {"0": "a"})).replace('"a"', '["a"]', 1))
    assert remoco("study", "ratios", tmp_path / "odd.json") == 2 and "not the answers" in last_line(capsys)
    (tmp_path / "none.json").write_text("[]")
    assert remoco("study", "ratios", tmp_path / "none.json") == 2 and "not the answers" in last_line(capsys)
    assert preference_ratios([]) == {}
