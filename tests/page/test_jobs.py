"""A generation by the embedded model: its progress, its end, and previews; without a browser."""

import asyncio
import base64
import io

import av
import numpy as np
import pytest
from PIL import Image

from conditions import RegionWise, motion_bucket
from conditions.strokes import drawn_motion
from lightning_modules import MotionControlModule
from lightning_modules.bases.base import Input
from lightning_modules.config import Control, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from remoco.page import exchange, jobs, makers
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint
from tests.support.toy import Toy

SETTINGS = {"frames": 8, "fps": 8, "size": "64 x 64", "seed": 3, "steps": 3, "motion_bucket_id": 1.0}


@pytest.fixture(scope="module")
def pipeline():
    return MotionControlPipeline.from_checkpoint("embedded-sprites")


class Windy(Toy):
    """A base that is told something of its own."""

    def inputs(self):
        return {"wind_speed": Input(3.0, -5, 12)}


class Counted:
    """A pipeline that counts the steps it has begun."""

    def __init__(self, pipeline):
        self.pipeline, self.module, self.steps = pipeline, pipeline.module, 0
        self.sampling, self.usual_inputs = pipeline.sampling, pipeline.usual_inputs
        self.trained_size, self.grid = pipeline.trained_size, pipeline.grid

    def __call__(self, *args, callback_on_step_end, **kwargs):
        def counted(*told):
            self.steps += 1
            return callback_on_step_end(*told)

        return self.pipeline(*args, callback_on_step_end=counted, **kwargs)


def drawing(index=0):
    return exchange.examples()[index]["drawing"]


def generation(pipeline, drawing, settings):
    """What a studio generates of a browser's drawing."""
    return makers.generation({"drawing": drawing, "settings": settings}, Checkpoint(pipeline))


async def events(studio, *asked):
    return [event async for event in studio.generate(*generation(studio.maker.pipeline, *asked))]


def decoded(data):
    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_step_is_told_and_last_the_videos(pipeline):
    found = asyncio.run(events(Studio(Checkpoint(pipeline)), drawing(), SETTINGS))
    assert [event["step"] for event in found if "step" in event] == [0, 1, 2, 3]
    assert {event["state"] for event in found[:-1]} == {"running"}
    done = found[-1]
    assert done["state"] == "done" and (done["width"], done["height"]) == (64, 64)
    clip, strip = decoded(done["clip"]), decoded(done["strip"])
    assert clip.shape == (8, 64, 64, 3) and len(strip) == 8 and strip.shape[2] > 3 * 192
    inputs = exchange.parsed(drawing())
    own = pipeline(inputs.image, inputs.strokes(8), inputs.masks(), 8, 8, 1.0, num_inference_steps=3, seed=3,
                   min_guidance_scale=1.0, max_guidance_scale=1.0, output_type="pil")  # fmt: skip
    frames = np.stack([np.asarray(frame) for frame in own.frames[0]])
    assert np.abs(frames.astype(int) - clip).mean() < 6  # the same but for the video's compression
    assert np.abs(frames.astype(int) - clip[::-1]).mean() > 6


def test_a_motion_as_drawn_is_the_drawings_and_zero_is_none(pipeline):
    def generated(bucket):
        return asyncio.run(events(Studio(Checkpoint(pipeline)), drawing(), SETTINGS | {"motion_bucket_id": bucket}))[-1]

    inputs = exchange.parsed(drawing())
    flow = drawn_motion(inputs.strokes(8), inputs.masks(), 8, 64, 64, 8).flow
    drawn, told = generated("drawing"), generated(float(motion_bucket(flow[None])))
    assert "motion as drawn, " in drawn["about"] and np.array_equal(decoded(drawn["clip"]), decoded(told["clip"]))
    zero = generated(0.0)
    assert "motion 0, " in zero["about"] and not np.array_equal(decoded(zero["clip"]), decoded(told["clip"]))


@pytest.mark.parametrize("base", [Toy, Windy])
def test_a_base_that_is_told_no_rate_and_no_motion_generates(base):
    module = MotionControlModule(base(3), RegionWise(), Control(["modulation"], "linear", 2), sampling=Sampling(2))
    module.configure_model()
    studio = Studio(Checkpoint(MotionControlPipeline(module, {"num_frames": 3, "height": 64, "width": 64})))
    settings = {"steps": 2, "fps": 4} | ({"wind_speed": -2.5} if base is Windy else {})
    done = asyncio.run(events(studio, drawing(), settings))[-1]
    assert done["state"] == "done" and "motion" not in done["about"], done
    assert decoded(done["clip"]).shape == (3, 64, 64, 3)


def test_closing_stops_the_work_after_its_step(pipeline):
    counted = Counted(pipeline)
    studio = Studio(Checkpoint(counted))

    async def some():
        found = studio.generate(*generation(studio.maker.pipeline, drawing(), SETTINGS | {"steps": 100}))
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
    studio = Studio(Checkpoint(counted))

    async def some():
        found = []
        async for event in studio.generate(
            *generation(studio.maker.pipeline, drawing(), SETTINGS | {"steps": 100}), "secret"
        ):
            found.append(event)
            if event.get("step") == 2:
                assert studio.cancel({"job": "another"}) == {"found": False}
                assert studio.cancel({"job": "secret"}) == {"found": True}
        return found

    assert asyncio.run(some())[-1]["state"] == "cancelled" and counted.steps < 100
    assert studio.cancel({"job": "secret"}) == {"found": False}
    assert asyncio.run(events(studio, drawing(), SETTINGS))[-1]["state"] == "done"


def test_who_waits_is_told_its_place_and_can_cancel(pipeline):
    counted = Counted(pipeline)
    studio = Studio(Checkpoint(counted))
    told = {name: [] for name in "abc"}

    async def one(name, steps):
        async for event in studio.generate(
            *generation(studio.maker.pipeline, drawing(), SETTINGS | {"steps": steps}), name
        ):
            told[name].append(event)

    def places(name):
        return [event["place"] for event in told[name] if event["state"] == "waiting"]

    async def some():
        tasks = [asyncio.create_task(one("a", 100))]
        for name in "bc":
            await asyncio.sleep(0)
            tasks.append(asyncio.create_task(one(name, 1)))
        while not (places("b") and places("c")):
            await asyncio.sleep(0.01)
        assert places("b")[-1] == 1 and places("c")[-1] == 2
        assert studio.cancel({"job": "b"}) == {"found": True}
        await tasks[1]
        assert told["b"][-1]["state"] == "cancelled" and {event["state"] for event in told["b"]} <= {
            "waiting",
            "cancelled",
        }
        while places("c")[-1] != 1:
            await asyncio.sleep(0.01)
        steps = counted.steps
        assert steps < 100 and told["a"][-1]["state"] == "running"  # the first goes on
        assert studio.cancel({"job": "a"}) == {"found": True}
        await asyncio.gather(*tasks)

    asyncio.run(some())
    assert told["a"][-1]["state"] == "cancelled" and told["c"][-1]["state"] == "done"


def test_the_line_has_an_end(pipeline):
    studio = Studio(Checkpoint(Counted(pipeline)))

    async def some():
        first = studio.generate(*generation(studio.maker.pipeline, drawing(), SETTINGS | {"steps": 100}))
        await anext(first)
        waiting = [studio.generate(*generation(studio.maker.pipeline, drawing(), SETTINGS)) for _ in range(jobs.QUEUE)]
        assert [(await anext(each))["place"] for each in waiting] == list(range(1, jobs.QUEUE + 1))
        refused = await events(studio, drawing(), SETTINGS)
        assert [event["state"] for event in refused] == ["error"] and "8 generations are waiting" in refused[0][
            "message"
        ]
        await waiting[3].aclose()  # who leaves makes room
        assert (await anext(waiting[7]))["place"] == 7
        for each in (*waiting, first):
            await each.aclose()
        while studio._line:
            await asyncio.sleep(0.01)

    asyncio.run(some())


def test_a_camera_is_in_the_control_and_in_the_video(pipeline):
    studio = Studio(Checkpoint(pipeline))
    still = drawing()
    moved = still | {"meta": still["meta"] | {"camera": {"pan": 0.4}}}
    alone = moved | {"meta": {"traj_key_points": [], "camera": {"pan": 0.4}}}
    body = {"frames": 5, "fps": 8, "size": "64 x 64", "seed": 3}
    shown = [studio.control(body | {"drawing": each})["pictures"][-1] for each in (still, moved, alone)]
    assert len(set(shown)) == 3
    assert studio.control(body | {"drawing": moved, "seed": 4})["pictures"][-1] != shown[1]  # it draws the regions
    clips = [asyncio.run(events(studio, each, SETTINGS))[-1]["clip"] for each in (still, moved, alone)]
    frames = [decoded(clip)[-1].astype(int) for clip in clips]
    assert min(np.abs(frames[a] - frames[b]).mean() for a, b in ((0, 1), (1, 2), (0, 2))) > 0.5


def test_one_at_a_time_and_each_its_own(pipeline, monkeypatch):
    monkeypatch.setattr(jobs, "_mp4", lambda video, fps: video.tobytes())  # the encoder's bits depend on its threads
    studio = Studio(Checkpoint(pipeline))

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
        ({}, {"a\nb": 1}, "settings: "),
    ],
)
def test_what_cannot_be_generated_is_one_message(pipeline, change, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        generation(pipeline, drawing() | change, SETTINGS | settings)
    assert "\n" not in str(caught.value)


def test_what_fails_while_it_is_generated_is_one_message_and_the_next_one_follows(pipeline, monkeypatch):
    def broken(*asked):
        raise RuntimeError("no more\nmemory")

    studio = Studio(Checkpoint(pipeline))
    with monkeypatch.context() as patch:
        patch.setattr(makers, "panels_of", broken)
        found = asyncio.run(events(studio, drawing(), SETTINGS))
    assert found[-1] == {"state": "error", "message": "RuntimeError: no more memory"}
    assert asyncio.run(events(studio, drawing(), SETTINGS))[-1]["state"] == "done"


def test_the_control_is_a_picture_for_each_frame(pipeline):
    studio = Studio(Checkpoint(pipeline))
    body = {"frames": 5, "fps": 8, "size": "64 x 64", "drawing": drawing()}
    found = studio.control(body)["pictures"]
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(p.partition(",")[2])))) for p in found]
    assert len(pictures) == 5 and pictures[0].shape == pictures[4].shape and pictures[0].shape[0] >= 256
    assert np.abs(pictures[0].astype(int) - pictures[4]).max() > 60  # the path is drawn into it
    with pytest.raises(UserError, match="drawing"):
        studio.control(body | {"drawing": 3})
