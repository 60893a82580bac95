"""One rule of size: pipeline, command, page and benchmark bring a drawing to the same frame."""

import numpy as np
import pytest

from conditions import RegionWise
from datamodules import BenchmarkDataModule
from datamodules.drawings import Drawing, write_drawing
from lightning_modules.pipeline import MotionControlPipeline
from remoco import generation
from remoco.page import exchange
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint
from tests.support.commands import remoco

KEY = "object_control/one"


class Seen(Exception):
    pass


@pytest.fixture(scope="module")
def pipe():
    """The small pipeline as one that was trained on 128 x 128."""
    pipe = MotionControlPipeline.from_checkpoint("embedded-sprites")
    pipe.sampling |= {"height": 128, "width": 128}
    return pipe


@pytest.fixture
def drawn(monkeypatch):
    """What a condition was asked to draw last: start and end of the track, the brush, the frame's size."""
    seen = {}

    def draw(self, tracks, brush, frames, height, width):
        seen.update(track=np.array(tracks[0])[[0, -1]], brush=np.array(brush), size=(height, width))
        raise Seen

    monkeypatch.setattr(RegionWise, "draw", draw)
    return seen


def drawing(height, width):
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    brush = np.zeros((height, width), np.uint8)
    brush[height // 5 : height // 2, width // 4 : width // 2] = 1
    return Drawing(image, [np.array([[0.3 * width, 0.4 * height], [0.9 * width, 0.8 * height]])], brush)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(200, 61), (81, 200), (128, 128)])
def test_each_door_frames_alike(size, fit, pipe, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "load_pipeline", lambda *arguments: pipe)
    inputs, found = drawing(*size), {}
    write_drawing(tmp_path / KEY, inputs)
    settings = {"frames": 4, "fps": 8, "size": "128 x 128", "fit": fit}
    bench = BenchmarkDataModule(str(tmp_path), 128, 128, num_workers=0, fit=fit)
    bench.setup("test")
    (pair,) = (batch["pair"] for batch in bench.test_dataloader())
    command = ["generate", "embedded-sprites", tmp_path / KEY, "--fit", fit, "--out", tmp_path / "clip.mp4"]
    for name, call in {
        "pipeline": lambda: pipe(inputs.image, inputs.tracks, inputs.brush, fit=fit),
        "command": lambda: remoco(*command, "--num-frames", 4, "--steps", 1),
        "page": lambda: Studio(Checkpoint(pipe)).control({"drawing": exchange.shown(inputs)} | settings),
        "benchmark": lambda: pipe(pair.drawing, height=pair.drawing.size[0], width=pair.drawing.size[1]),
    }.items():
        with pytest.raises(Seen):
            call()
        found[name] = dict(drawn)
    for name, other in found.items():
        assert other["size"] == found["pipeline"]["size"], name
        assert np.allclose(other["track"], found["pipeline"]["track"], atol=1e-9), name
        assert np.array_equal(other["brush"], found["pipeline"]["brush"]), name
    height, width = found["pipeline"]["size"]
    assert height * width <= 128 * 128 and (height > width) == (size[0] > size[1])
