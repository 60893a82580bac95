"""ProRes 4444 and PNG sequences: formats and tags by ffprobe, colours against closed forms, round trips, one line."""

from __future__ import annotations

import json
import shutil
import subprocess

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from remoco.common.errors import UserError
from remoco.common.videos.files import read_frames, write_video
from remoco.common.videos.masters import write_mov, write_pngs
from remoco.common.whole_files import clear_leftovers

HEIGHT, WIDTH, FRAMES = 77, 125, 3  # odd, as no macroblock is
PROBE = shutil.which("ffprobe")
probed = pytest.mark.skipif(PROBE is None, reason="ffprobe is not installed")
PATCHES = np.array(
    [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 30), (60, 190, 200), (128, 128, 128)]
)


def photograph(seed=0):
    """(L, H, W, 3) uint8: smooth colours, fine detail and noise, which moves."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 256, (12, 18, 3), np.uint8), (WIDTH + 9, HEIGHT), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(coarse + rng.normal(0, 4, coarse.shape), 0, 255).astype(np.uint8)
    return np.stack([noisy[:, 3 * t : 3 * t + WIDTH] for t in range(FRAMES)])


def matte():
    """(L, H, W) uint8 of every value there is."""
    ramp = np.resize(np.arange(256, dtype=np.uint8), (HEIGHT, WIDTH))
    return np.stack([np.roll(ramp, 5 * t, 1) for t in range(FRAMES)])


def psnr(video, back):
    return 10 * np.log10(255**2 / np.mean((video.astype(float) - back) ** 2))


def channels(path):
    """(L, 4 or 3, H, W) integers as the file has them, and their bits."""
    with av.open(str(path)) as container:
        frames = [*container.decode(video=0)]
    planes = [[np.frombuffer(p, "<u2").reshape(HEIGHT, -1)[:, :WIDTH] for p in frame.planes] for frame in frames]
    return np.array(planes).astype(int), frames[0].format.components[0].bits


@probed
@pytest.mark.parametrize("transparent", [False, True])
def test_a_mov_is_prores_4444_of_bt709_and_says_so(tmp_path, transparent):
    write_mov(tmp_path / "a.mov", photograph(), 12.5, matte() if transparent else None)
    asked = [PROBE, "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(tmp_path / "a.mov")]
    stream = json.loads(subprocess.run(asked, capture_output=True, check=True, text=True).stdout)["streams"][0]
    expected = {
        "codec_name": "prores", "codec_tag_string": "ap4h", "profile": "4444", "width": WIDTH, "height": HEIGHT,
        "color_range": "tv", "color_space": "bt709", "color_transfer": "bt709", "color_primaries": "bt709",
        "avg_frame_rate": "25/2", "nb_read_frames": str(FRAMES),
    }  # fmt: skip
    assert {name: stream.get(name) for name in expected} == expected
    assert stream["pix_fmt"].startswith("yuva444p1" if transparent else "yuv444p1")


def test_its_samples_are_those_of_bt709_and_its_alpha_is_exact(tmp_path):
    """Flat patches by the closed form; an alpha channel loses nothing."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    at = [(row * 38 + 19, column * 31 + 15) for row in range(2) for column in range(4)]
    for (y, x), colour in zip(at, PATCHES, strict=True):
        picture[max(0, y - 19) : y + 20, max(0, x - 15) : x + 17] = colour
    write_mov(tmp_path / "a.mov", np.stack([picture] * FRAMES), 8, matte())
    found, bits = channels(tmp_path / "a.mov")
    kr, kb = 0.2126, 0.0722
    for (y, x), colour in zip(at, PATCHES / 255, strict=True):
        luma = kr * colour[0] + (1 - kr - kb) * colour[1] + kb * colour[2]
        cb, cr = (colour[2] - luma) / (2 * (1 - kb)), (colour[0] - luma) / (2 * (1 - kr))
        exact = np.array([219 * luma + 16, 224 * cb + 128, 224 * cr + 128]) * 2 ** (bits - 8)
        assert np.abs(found[0, :3, y, x] - exact).max() <= 2 ** (bits - 9), (colour, found[0, :3, y, x], exact)
    assert np.array_equal(np.rint(found[:, 3] * 255 / (2**bits - 1)).astype(np.uint8), matte())


def test_round_trips_keep_what_the_table_says(tmp_path):
    video, alpha = photograph(), matte()
    write_video(tmp_path / "a.mp4", video, 8, crf=16)
    write_mov(tmp_path / "a.mov", video, 8)
    write_mov(tmp_path / "b.mov", video, 8, np.full_like(alpha, 255))
    read = {name: read_frames(tmp_path / name, FRAMES).permute(0, 2, 3, 1).numpy() for name in ("a.mov", "b.mov")}
    for back in read.values():
        assert psnr(video, back) > 46 and np.abs(video.astype(int) - back).max() <= 8
    small = read_frames(tmp_path / "a.mp4", FRAMES).permute(0, 2, 3, 1).numpy()
    assert psnr(video[:, : small.shape[1], : small.shape[2]], small) < psnr(video, read["a.mov"]) - 6
    write_mov(tmp_path / "again.mov", video, 8)
    assert (tmp_path / "again.mov").read_bytes() == (tmp_path / "a.mov").read_bytes()

    write_pngs(tmp_path / "png", video, alpha)
    files = sorted((tmp_path / "png").iterdir())
    assert [file.name for file in files] == [f"{number:05d}.png" for number in range(FRAMES)]
    for number, file in enumerate(files):
        picture = Image.open(file)
        assert picture.mode == "RGBA" and b"sRGB" in file.read_bytes()[:60]
        assert np.array_equal(np.array(picture), np.dstack([video[number], alpha[number]]))
    write_pngs(tmp_path / "png", video[:2])  # shorter, and without alpha
    assert len([*(tmp_path / "png").iterdir()]) == 2
    assert np.array_equal(np.array(Image.open(tmp_path / "png" / "00001.png")), video[1])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_ffmpeg_shows_the_colours_that_were_written(tmp_path):
    video = photograph()
    write_mov(tmp_path / "a.mov", video, 8, np.full((FRAMES, HEIGHT, WIDTH), 255, np.uint8))
    words = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.mov"), "-pix_fmt", "rgba", "-f", "rawvideo", "-"]
    back = np.frombuffer(subprocess.run(words, capture_output=True, check=True).stdout, np.uint8)
    back = back.reshape(FRAMES, HEIGHT, WIDTH, 4)
    assert psnr(video, back[..., :3]) > 44 and (back[..., 3] == 255).all()


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt, expected a new folder, or one that --format png"):
        write_pngs(tmp_path, photograph())
    (tmp_path / "own").mkdir()
    Image.fromarray(photograph()[0]).save(tmp_path / "own" / "00000.png")  # numbered, but somebody's
    before = (tmp_path / "own" / "00000.png").read_bytes()
    with pytest.raises(UserError, match=r"holds 00000\.png, expected a new folder"):
        write_pngs(tmp_path / "own", photograph())
    assert (tmp_path / "own" / "00000.png").read_bytes() == before
    with pytest.raises(UserError, match="is a file, expected the name of a folder"):
        write_pngs(tmp_path / "notes.txt", photograph())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_kill_leaves_of_a_sequence_is_cleared(tmp_path):
    (tmp_path / ".a.123.tmp").mkdir()
    (tmp_path / ".a.123.tmp" / "00000.png").touch()
    (tmp_path / ".b.123.tmp").touch()
    clear_leftovers(tmp_path)
    assert not [*tmp_path.iterdir()]
