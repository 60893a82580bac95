"""Benchmarks in ReMoCo-Bench's layout: levels, sizes, names of the JSON, a line per broken sample, known answers."""

import json

import numpy as np
import pytest
from PIL import Image

from datamodules import BenchmarkDataModule
from datamodules.bench import read_pair, usable_samples
from datamodules.bench.sprites import ALIKE, _likeness, _marked_points, write_sprite_bench
from datamodules.drawings import Framing
from remoco.common.errors import BadClip, UserError
from remoco.common.videos.files import read_frames, write_video

FINE, OBJECT = "Fine_grained_control", "object_control"


def write(root, key, size=(40, 60), tracks=(((5, 6), (10.5, 20)),), name="meta_data.json", mask=True):
    folder = root / key
    folder.mkdir(parents=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(folder / "first_frame.png")
    brush = np.zeros(size, np.uint8)
    brush[2:9, 3:8] = 1  # any non-zero value is brush
    if mask:
        Image.fromarray(brush).save(folder / "first_frame_mask.png")
    (folder / name).write_text(json.dumps({"traj_key_points": tracks}))
    return folder


def test_both_levels_both_names_and_any_size(tmp_path):
    write(tmp_path, f"{FINE}/b", (40, 60))
    write(tmp_path, f"{FINE}/a", (64, 33), name="meta_data_new.json")
    write(tmp_path, f"{OBJECT}/a", (50, 50), tracks=[[[1, 2]], [[3, 4], [5, 6], [7, 8]]])
    samples, broken = usable_samples(tmp_path)
    assert list(samples) == [f"{FINE}/a", f"{FINE}/b", f"{OBJECT}/a"] and broken == []
    pairs = [read_pair(tmp_path, key) for key in samples]
    assert [pair.level for pair in pairs] == ["fine", "fine", "object"]
    assert (pairs[1].drawing.brush > 0).sum() == 35 and pairs[1].drawing.tracks[0].tolist() == [[5, 6], [10.5, 20]]
    assert [len(track) for track in pairs[2].drawing.tracks] == [1, 3] and pairs[0].drawing.image.shape == (64, 33, 3)


def test_a_line_per_broken_sample_and_the_rest_goes_on(tmp_path, caplog):
    write(tmp_path, f"{FINE}/good")
    write(tmp_path, f"{FINE}/no-mask", mask=False)
    write(tmp_path, f"{FINE}/outside", tracks=[[[70, 5], [1, 1]]])
    write(tmp_path, f"{FINE}/empty", tracks=[])
    write(tmp_path, f"{OBJECT}/shape", tracks=[[[1, 2, 3]]])
    write(tmp_path, f"{OBJECT}/nan", tracks=[[[1, float("nan")]]])
    write(tmp_path, f"{OBJECT}/picture")
    (tmp_path / OBJECT / "picture" / "first_frame.png").write_bytes(b"not a picture")
    (write(tmp_path, f"{OBJECT}/json") / "meta_data.json").write_text("{")
    small = write(tmp_path, f"{OBJECT}/small")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(small / "first_frame_mask.png")
    data = BenchmarkDataModule(str(tmp_path), num_workers=0)
    data.setup("test")
    assert list(data.samples) == [f"{FINE}/good"]
    assert len(data.broken) == 8 and all("\n" not in line for line in data.broken)
    for name, said in {
        "no-mask/first_frame_mask.png": "no such file", "outside/meta_data.json": "starts at (70, 5), outside the 40 x 60",  # noqa: E501
        "empty/meta_data.json": "at least one track", "shape/meta_data.json": "traj_key_points[0]",
        "nan/meta_data.json": "finite", "picture/first_frame.png": "not a readable picture", "json/meta_data.json": "expected",  # noqa: E501
        "small/first_frame_mask.png": "3 x 3, expected the size of the image, 40 x 60",
    }.items():  # fmt: skip
        assert any(name in line and said in line for line in data.broken), name
    assert caplog.text.count("benchmark sample left out") == 8


def test_no_benchmark_is_one_line(tmp_path):
    with pytest.raises(UserError, match="data.root: benchmark .*nowhere: no such folder"):
        BenchmarkDataModule(str(tmp_path / "nowhere")).setup("test")
    with pytest.raises(UserError, match="no samples, expected"):
        usable_samples(tmp_path)
    write(tmp_path, f"{FINE}/x", tracks=[])
    with pytest.raises(UserError, match="none of its 1 samples can be used"):
        usable_samples(tmp_path)
    with pytest.raises(UserError, match="data.height is 100, expected a multiple of 16"):
        BenchmarkDataModule(str(tmp_path), height=100)
    with pytest.raises(UserError, match="data.height is 80, expected a multiple of 64"):
        BenchmarkDataModule(str(tmp_path), height=80).setup("test")
    with pytest.raises(UserError, match="data.fit is 'fill', expected one of crop, pad, stretch"):
        BenchmarkDataModule(str(tmp_path), fit="fill")


def test_tracks_move_with_the_pixels(tmp_path):
    write(tmp_path, f"{FINE}/a", (40, 60), tracks=[[[0, 0], [59, 39]], [[29.5, 19.5]]])
    inputs = read_pair(tmp_path, f"{FINE}/a").drawing
    corners, middle = Framing.of(inputs.size, (80, 120)).tracks(inputs.tracks)
    assert corners.tolist() == [[0.5, 0.5], [118.5, 78.5]] and middle.tolist() == [[59.5, 39.5]]
    small = inputs.framed(Framing.of(inputs.size, (20, 30)))
    assert small.image.shape == (20, 30, 3) and small.brush.shape == (20, 30) and small.brush.any()
    assert small.tracks[0][0].tolist() == [0, 0]  # not -0.25: a start stays inside


def test_loader_gives_each_pair_once_at_the_networks_size(tmp_path):
    write(tmp_path, f"{FINE}/a", (100, 160))
    write(tmp_path, f"{OBJECT}/b", (90, 90))
    data = BenchmarkDataModule(str(tmp_path), 64, 128, num_workers=0)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch["key"] for batch in batches] == [[f"{FINE}/a"], [f"{OBJECT}/b"]]
    assert [batch["pair"].drawing.image.shape for batch in batches] == [(64, 128, 3), (64, 64, 3)]
    assert [batch["position"].tolist() for batch in batches] == [[0], [1]]


def test_the_sprite_benchmark_is_read_back_with_its_exact_tracks(tmp_path):
    write_sprite_bench(tmp_path / "a", pairs=1, height=64, width=96, frames=5)
    write_sprite_bench(tmp_path / "b", pairs=1, height=64, width=96, frames=5)
    samples, broken = usable_samples(tmp_path / "a")
    assert list(samples) == [f"{FINE}/sprite-000", f"{OBJECT}/sprite-000"] and not broken
    for key in samples:
        pair = read_pair(tmp_path / "a", key)
        clip = read_frames(tmp_path / "a" / "true_clips" / f"{pair.key}.mp4", 5)
        assert clip.shape == (5, 3, 64, 96)
        coding = np.abs(clip[0].permute(1, 2, 0).numpy().astype(int) - pair.drawing.image)
        assert coding.mean() < 4
        for track in pair.drawing.tracks:
            assert len(track) == 5 and pair.drawing.brush[tuple(track[0].astype(int)[::-1])]
            assert _likeness(pair.drawing.image, *track[0].astype(int)) < ALIKE
        other = read_pair(tmp_path / "b", pair.key).drawing
        assert np.array_equal(other.image, pair.drawing.image)
        assert np.array_equal(other.tracks[0], pair.drawing.tracks[0])
    with pytest.raises(UserError, match="holds files already"):
        write_sprite_bench(tmp_path / "a")


def test_the_plain_benchmark_has_one_even_object_that_its_track_follows(tmp_path):
    """What the sprites model of the package knows: a stray camera or texture would be seen in the corner's pixel."""
    write_sprite_bench(tmp_path / "bench", pairs=2, height=64, width=64, frames=5, scene="plain")
    samples, broken = usable_samples(tmp_path / "bench")
    assert len(samples) == 4 and not broken
    for key in samples:
        pair = read_pair(tmp_path / "bench", key)
        (track,), image = pair.drawing.tracks, pair.drawing.image.astype(int)
        clip = read_frames(tmp_path / "bench" / "true_clips" / f"{key}.mp4", 5).permute(0, 2, 3, 1).numpy().astype(int)
        corners = np.array([[0, 0], [63, 63]])
        away = np.linalg.norm(track[:, None] - corners, axis=2).min(0)
        x, y = corners[away.argmax()]  # where the object never is
        assert np.abs(clip[:, y, x] - image[y, x]).max() < 12
        x, y = track[0].astype(int)
        for frame, (to_x, to_y) in zip(clip, track.round().astype(int)):
            assert np.abs(frame[to_y, to_x] - image[y, x]).max() < 25
        step = np.linalg.norm(track[-1] - track[0])
        assert 16 <= step <= 39  # 0.25 to 0.6 of the side, as in `plain_scene`


def test_a_point_among_equal_dots_is_not_asked_for():
    """Whoever looks for one of them finds any: a true clip would score as a bad one."""
    image = np.zeros((64, 64, 3), np.uint8)
    for y in range(4, 64, 10):
        for x in range(4, 64, 10):
            image[y : y + 4, x : x + 4] = 200
    inside = np.zeros((64, 64), bool)
    inside[20:44, 20:44] = True
    assert _marked_points(image, inside, 2) == []
    assert _marked_points(np.full_like(image, 90), inside, 2) == []  # nor one on a surface without texture
    image[30:35, 30:38] = (250, 40, 40)
    (x, y), *_ = _marked_points(image, inside, 2)
    assert abs(x - 34) <= 6 and abs(y - 32) <= 6


def test_the_same_frames_are_the_same_bytes(tmp_path):
    """x264's defaults give a few results: a video sampled again, or on another rank, would look like another one."""
    coarse = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)[0]
    video = np.stack([coarse[i : i + 64, 2 * i : 2 * i + 96] for i in range(8)])
    for number in range(40):
        write_video(tmp_path / f"{number}.mp4", video, 8)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_videos_that_are_too_short_or_none_are_named(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((3, 33, 47, 3), np.uint8), 8)  # odd sizes lose their last line
    assert read_frames(tmp_path / "a.mp4", 3).shape == (3, 3, 32, 46) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(BadClip, match="a.mp4: has 3 frames, expected at least 4"):
        read_frames(tmp_path / "a.mp4", 4)
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(BadClip, match="b.mp4"):
        read_frames(tmp_path / "b.mp4", 1)
