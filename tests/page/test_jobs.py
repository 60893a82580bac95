"""A generation by the embedded model: its progress, its end, and previews; without a browser and without gradio."""

import asyncio
import base64
import io

import av
import numpy as np
import pytest
from PIL import Image

from datamodules.errors import BadInput
from lightning_modules.pipeline import MotionControlPipeline
from remoco.page import exchange, jobs
from remoco.page.jobs import Studio

SETTINGS = {"frames": 8, "fps": 8, "size": "64 x 64", "seed": 3, "steps": 3, "bucket": 1.0}


@pytest.fixture(scope="module")
def pipeline():
    return MotionControlPipeline.from_checkpoint("embedded")


class Counted:
    """A pipeline that counts the steps it has begun."""

    def __init__(self, pipeline):
        self.pipeline, self.module, self.steps = pipeline, pipeline.module, 0

    def __call__(self, *args, callback_on_step_end, **kwargs):
        def counted(*told):
            self.steps += 1
            return callback_on_step_end(*told)

        return self.pipeline(*args, callback_on_step_end=counted, **kwargs)


def drawing(index=0):
    return exchange.examples()[index]["drawing"]


async def events(studio, *asked):
    return [event async for event in studio.generate(*asked)]


def decoded(data):
    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_step_is_told_and_last_the_videos(pipeline):
    found = asyncio.run(events(Studio(pipeline), drawing(), SETTINGS))
    assert [event["step"] for event in found if "step" in event] == [0, 1, 2, 3]
    assert {event["state"] for event in found[:-1]} == {"running"}
    done = found[-1]
    assert done["state"] == "done" and (done["width"], done["height"]) == (64, 64)
    clip, strip = decoded(done["clip"]), decoded(done["strip"])
    assert clip.shape == (8, 64, 64, 3) and len(strip) == 8 and strip.shape[2] > 3 * 192
    inputs = exchange.inputs_of(drawing())
    own = pipeline(inputs.image, inputs.strokes(8), inputs.masks(), 8, 8, 1.0, num_inference_steps=3, seed=3,
                   min_guidance_scale=1.0, max_guidance_scale=1.0, output_type="pil")  # fmt: skip
    frames = np.stack([np.asarray(frame) for frame in own.frames[0]])
    assert np.abs(frames.astype(int) - clip).mean() < 6  # the same but for the video's compression
    assert np.abs(frames.astype(int) - clip[::-1]).mean() > 6


def test_closing_stops_the_work_after_its_step(pipeline):
    counted = Counted(pipeline)
    studio = Studio(counted)

    async def some():
        found = studio.generate(drawing(), SETTINGS | {"steps": 100})
        async for event in found:
            if event.get("step") == 2:
                break
        await found.aclose()
        while studio._line:  # empty when the work has ended
            await asyncio.sleep(0.01)

    asyncio.run(some())
    assert 2 <= counted.steps < 100


def test_who_knows_the_job_cancels_it(pipeline):
    counted = Counted(pipeline)
    studio = Studio(counted)

    async def some():
        found = []
        async for event in studio.generate(drawing() | {"job": "secret"}, SETTINGS | {"steps": 100}):
            found.append(event)
            if event.get("step") == 2:
                assert studio.cancel({"job": "another"}) == {"found": False}
                assert studio.cancel({"job": "secret"}) == {"found": True}
        return found

    assert asyncio.run(some())[-1]["state"] == "cancelled" and counted.steps < 100
    assert studio.cancel({"job": "secret"}) == {"found": False}
    assert asyncio.run(events(studio, drawing(), SETTINGS))[-1]["state"] == "done"


def test_one_at_a_time_and_each_its_own(pipeline, monkeypatch):
    monkeypatch.setattr(jobs, "_mp4", lambda video, fps: video.tobytes())  # the encoder's bits depend on its threads
    studio = Studio(pipeline)

    async def two():
        return await asyncio.gather(*(events(studio, drawing(i), SETTINGS | {"seed": i}) for i in (0, 1)))

    together = [found[-1]["clip"] for found in asyncio.run(two())]
    alone = [asyncio.run(events(studio, drawing(i), SETTINGS | {"seed": i}))[-1]["clip"] for i in (0, 1)]
    assert together == alone and alone[0] != alone[1]


@pytest.mark.parametrize(
    "change, settings, message",
    [
        ({"image": "nothing"}, {}, "image"),
        ({"meta": {"traj_key_points": []}}, {}, "at least one track"),
        ({}, {"steps": 10**6}, "steps"),
        ({}, {"size": "9 x 9"}, "size"),
        ({}, {"nonsense": 1}, "nonsense"),
    ],
)
def test_what_cannot_be_generated_is_one_message(pipeline, change, settings, message):
    studio = Studio(pipeline)
    found = asyncio.run(events(studio, drawing() | change, SETTINGS | settings))
    assert found[-1]["state"] == "error" and message in found[-1]["message"] and "\n" not in found[-1]["message"]
    assert asyncio.run(events(studio, drawing(), SETTINGS))[-1]["state"] == "done"


def test_the_control_is_a_picture_for_each_frame(pipeline):
    studio = Studio(pipeline)
    body = {"frames": 5, "fps": 8, "size": "64 x 64", "drawing": drawing()}
    found = studio.control(body)["pictures"]
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(p.partition(",")[2])))) for p in found]
    assert len(pictures) == 5 and pictures[0].shape == pictures[4].shape and pictures[0].shape[0] >= 256
    assert np.abs(pictures[0].astype(int) - pictures[4]).max() > 60  # the path is drawn into it
    with pytest.raises(BadInput, match="drawing"):
        studio.control(body | {"drawing": 3})
