"""DragAnything's sets: networks (`latent_hw`), controls (`cases`), the whole call (`vae`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_modules.systems.draganything import (
    ControlledEncoder,
    Quirks,
    blob_picture,
    drawn,
    released_paths,
)
from lightning_modules.systems.encoder_copy import Joined
from tests.support.systems import RecordedSet
from tests.support.systems.svd import Recording, kept, networks, piped, pipeline, predictions

TOLERANCES = {
    r".*/out\.first_model_input": 1e-6,  # the picture passes float32
    r".*/out\.prediction\.[1-9]\d*": 1e-5,  # from latents that were rounded to float32
    r".*/out\.latents": 1e-4,  # noise levels are float32
    r".*/out\.frames": 1e-6,  # recorded in float32
    r".*\.entity": 1e-7,  # pooled in float32
}
LEFT_OUT = {
    r".*/in\..*|.*\.mask\.\d+|.*\.feature": "an input",
}


def outputs(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    kind = controls if "cases" in recorded.spec else whole if "vae" in recorded.config else network_outputs
    yield from kind(recorded)


def network_outputs(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    unet, copy = networks(recorded, ControlledEncoder)
    joined = Joined(unet, copy, Quirks())
    sample, heatmap, entity, token, ids, timestep = (
        recorded.input(f"in.{name}")
        for name in ("sample", "heatmap", "entity", "image_embedding", "ids", "timestep")
    )  # fmt: skip
    embedding = copy.controlnet_cond_embedding.both(heatmap.flatten(0, 1), entity.flatten(0, 1))
    yield "out.cond_embedding", embedding
    maps = [embedding, *[None] * (len(copy.down_blocks) + 1)]
    embedded = copy.time_embedding.register_forward_hook(lambda module, args, output: inside.update(time=output))
    with kept(unet, copy) as inside:
        residuals = copy(sample, timestep, token, ids, maps)
        yield "out.unet", joined(sample, timestep, token, ids, residuals)
    embedded.remove()
    yield "out.time_embedding", inside.pop("time")
    yield from inside.items()
    yield from ((f"out.residual.{i}", skip) for i, skip in enumerate(residuals.skips))
    yield "out.residual.mid", residuals.middle
    yield from predictions(joined, (sample, timestep, token, ids), maps)


def controls(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    yield "heatmap_base", torch.from_numpy(blob_picture())
    for name, case in recorded.spec["cases"].items():
        size = case["height"], case["width"]
        masks = [recorded.recorded[f"{name}.mask.{i}"].numpy() for i in range(len(case["tracks"]))]
        points = released_paths(case["tracks"], case.get("canvas_wh", (576, 320))[::-1], size, case["frames"])
        if "raises" in case:
            try:
                drawn(points, masks, recorded.input(f"{name}.feature")[0].float())
            except ValueError:
                continue
            raise AssertionError(f"{recorded.path}: {name} raises in the original, and not here")
        yield f"{name}.points", torch.from_numpy(points)
        control = drawn(points, masks, recorded.input(f"{name}.feature")[0].float())
        yield f"{name}.heatmap", control.heatmap
        yield f"{name}.entity", control.vectors[control.entity].permute(0, 3, 1, 2)[:, [0, 80]]


def whole(recorded: RecordedSet, svd: Recording | None = None) -> Iterator[tuple[str, Tensor]]:
    config = recorded.config
    svd = svd or pipeline(recorded, ControlledEncoder, Quirks())
    svd.rounds = True
    size = config["height"], config["width"]
    masks = [recorded.recorded[f"in.mask.{i}"].numpy() for i in range(len(config["tracks"]))]
    points = released_paths(config["tracks"], config["canvas_wh"][::-1], size, config["frames"])
    control = drawn(points, masks, recorded.input("in.feature")[0].float())
    yield "out.controlnet_cond", control.heatmap[None, :, None].expand(2, -1, -1, -1, -1).double()
    yield from piped(recorded, svd, svd.copy.maps(control))
