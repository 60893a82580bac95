"""What a pipeline returns, as a notebook shows it."""

import base64
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules import output as source
from lightning_modules.output import MOST_CLIPS, MotionControlOutput, converted
from remoco.common.videos.files import read_video

TAG = re.compile(r'<video [^>]*src="data:video/mp4;base64,([^"]+)"></video>')


def videos(output, folder):
    """(L, H, W, 3) and fps of each video in the page."""
    for index, data in enumerate(TAG.findall(output._repr_html_())):
        (folder / f"{index}.mp4").write_bytes(base64.b64decode(data))
        yield read_video(folder / f"{index}.mp4")


@pytest.fixture
def smooth():
    """(1, 5, 3, 64, 96) in [-1, 1]: a bright disc that moves to the right."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    frames = [torch.exp(-((x - 20 - 8 * i) ** 2 + (y - 30) ** 2) / 200) * 1.6 - 0.8 for i in range(5)]
    return torch.stack(frames)[None, :, None].expand(1, 5, 3, 64, 96)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_it_is_a_video_of_its_frames(smooth, tmp_path, output_type):
    output = MotionControlOutput(converted(smooth, output_type), 6.0)
    ((shown, fps),) = videos(output, tmp_path)
    expected = ((smooth[0] + 1) * 127.5).round().movedim(1, -1).numpy()
    assert shown.shape == (5, 128, 192, 3) and fps == 6  # small clips are enlarged by whole factors
    assert np.abs(shown[:, ::2, ::2] - expected).mean() < 4
    assert "5 frames of 64 x 96 at 6 fps" in output._repr_html_() and "http" not in output._repr_html_()


def test_its_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MOST_BYTES", 60_000)
    noise = np.random.default_rng(0).integers(0, 256, (6, 96, 128, 3), dtype=np.uint8)
    grey = [Image.new("RGB", (128, 96), (90, 90, 90))] * 6
    clip = [Image.fromarray(frame) for frame in noise]
    output = MotionControlOutput([clip] * (MOST_CLIPS + 2))
    text = output._repr_html_()
    assert 20_000 < len(text) < 1.4 * 60_000
    shown = list(videos(output, tmp_path))
    assert f"; {len(shown)} of {MOST_CLIPS + 2} clips shown" in text and len(shown) >= 3
    assert all(video.shape[0] == 6 and 32 <= video.shape[2] < 128 for video, _ in shown)
    uneven = MotionControlOutput([grey, clip])  # the first leaves little room
    assert len(list(videos(uneven, tmp_path))) == 1 and len(uneven._repr_html_()) < 1.4 * 60_000
    monkeypatch.setattr(source, "MOST_BYTES", 100)
    assert output._repr_html_() == f"<p>6 frames of 96 x 128 at 8 fps; 0 of {MOST_CLIPS + 2} clips shown</p>"


def test_latents_are_said_not_shown():
    shape = (1, 3, 3, 8, 8)  # as many channels as a picture
    output = MotionControlOutput(torch.zeros(shape), None)
    assert output._repr_html_() == f"<pre>latents {shape}, not decoded</pre>"


def test_the_rate_is_no_part_of_the_output():
    output = MotionControlOutput([["a"]], 5.0)
    assert list(output) == ["frames"] and output.to_tuple() == ([["a"]],) and output.fps == 5
