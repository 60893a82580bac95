"""A prompt and a negative one on the page reach a base that takes text; without a browser."""

from __future__ import annotations

import asyncio
import base64
import io

import av
import numpy as np
import pytest
import torch

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import CogVideoX
from lightning_modules.config import Control, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco.page import exchange, makers
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint
from tests.support import cogvideox
from tests.support.cogvideox import FRAMES, SIDE


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    module = MotionControlModule(
        CogVideoX(cogvideox.write(tmp_path_factory.mktemp("cogvideox") / "tiny")), RegionWise(min_mask_ratio=0.5),
        control=Control([], None), sampling=Sampling(2, guidance=(3.0, 3.0)),
    )  # fmt: skip
    module.configure_model()
    return MotionControlPipeline(module, {"num_frames": FRAMES, "height": SIDE, "width": SIDE})


def test_what_the_page_sends_is_what_the_network_is_given(pipe, monkeypatch):
    """Both texts, as embeddings of the base's own, in guidance's two branches; and the clip is the pipeline's."""
    studio, given, forward = Studio(Checkpoint(pipe)), [], pipe.module.base.transformer.forward

    def seen(x, text, *args, **more):
        given.append(text.detach().clone())
        return forward(x, text, *args, **more)

    monkeypatch.setattr(pipe.module.base.transformer, "forward", seen)

    def clip(drawing=None, **texts):
        given.clear()
        sent = drawing or exchange.examples()[0]["drawing"]
        asked = makers.generation({"drawing": sent, "settings": {"seed": 3, **texts}}, studio.maker)

        async def last():
            return [event async for event in studio.generate(*asked)][-1]

        done = asyncio.run(last())
        assert done["state"] == "done", done
        with av.open(io.BytesIO(base64.b64decode(done["clip"]))) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return frames, torch.cat([*given])

    texts = {"prompt": "red dog", "negative_prompt": "dog"}
    both, embedded = clip(**texts)
    assert both.shape == (FRAMES, SIDE, SIDE, 3)
    red, dog, empty = pipe.module.base.embed_text(["red dog", "dog", ""])
    branches = {text.numpy().tobytes(): name for name, text in (("red", red), ("dog", dog), ("empty", empty))}
    assert len(branches) == 3 and {branches[each.numpy().tobytes()] for each in embedded} == {"red", "dog"}
    assert len(embedded) == 4  # two steps, two branches
    plain, embedded = clip()
    assert {branches[each.numpy().tobytes()] for each in embedded} == {"empty"}
    other, embedded = clip(prompt="red dog")
    assert {branches[each.numpy().tobytes()] for each in embedded} == {"red", "empty"}
    assert not np.array_equal(both, plain) and not np.array_equal(both, other)
    assert np.array_equal(both, clip(**texts)[0])

    drawing = exchange.examples()[0]["drawing"]
    drawing["meta"]["prompt"] = "red dog"  # the drawing's own, where the field is empty
    assert np.array_equal(clip(drawing)[0], other)
