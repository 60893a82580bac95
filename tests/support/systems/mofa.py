"""MOFA-Video's sets: networks (`latent_hw`), CMP (`arch`), controls (`cases`), splatting, the whole call (`vae`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_modules.systems.encoder_copy import Joined
from lightning_modules.systems.files import fit
from lightning_modules.systems.mofa.cmp import CMP
from lightning_modules.systems.mofa.control import dense_flow, sparse_of
from lightning_modules.systems.mofa.network import FlowControlledEncoder, scaled_flows, warped
from lightning_modules.systems.quirks import Quirks
from lightning_modules.systems.splatting import average_splat
from lightning_modules.systems.svd_parts import picture, unit_picture
from tests.support.systems import RecordedSet
from tests.support.systems.svd import Recording, kept, networks, piped, pipeline, predictions

TOLERANCES = {
    r".*/out\.first_model_input": 1e-6,  # the picture passes float32
    r".*/out\.prediction\.[1-9]\d*": 1e-5,  # from latents of float32 noise levels
    r".*/out\.latents": 1e-4,
    r".*/out\.frames": 1e-6,
}
LEFT_OUT = {r".*/in\..*|.*\.(image|brush)": "an input"}


def outputs(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    config = recorded.config
    if "latent_hw" in config:
        yield from network_outputs(recorded)
    elif "vae" in config:
        yield from whole(recorded)
    elif "cases" in recorded.spec:
        yield from controls(recorded)
    else:
        yield from (cmp_outputs if "arch" in config else splats)(recorded)


def network_outputs(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    unet, copy = networks(recorded, FlowControlledEncoder)
    joined = Joined(unet, copy, Quirks())
    sample, first, flow, token, ids, timestep = (
        recorded.input(f"in.{name}")
        for name in ("sample", "first_frame", "flow", "image_embedding", "ids", "timestep")
    )  # fmt: skip
    features, flows = copy.features(first), scaled_flows(flow)
    yield "out.cond_embedding", features[0]
    for i, (feature, scaled) in enumerate(zip(features, flows, strict=True)):
        yield f"out.feature.{i}", feature
        yield f"out.flow.{i}", scaled
        yield f"out.warped.{i}", warped(feature, scaled).flatten(0, 1)
    clips, maps = (sample, timestep, token, ids), copy.maps(first, flow)
    with kept(unet, copy) as inside:
        residuals = copy(*clips, maps)
        yield "out.unet", joined(*clips, residuals)
    yield from inside.items()
    yield from ((f"out.residual.{i}", skip) for i, skip in enumerate(residuals.skips))
    yield "out.residual.mid", residuals.middle
    yield from predictions(joined, clips, maps)
    still = predictions(joined, clips, copy.maps(first, torch.zeros_like(flow)))
    yield "out.unet.zero_flow", next(still)[1]


def whole(recorded: RecordedSet, svd: Recording | None = None) -> Iterator[tuple[str, Tensor]]:
    svd = svd or pipeline(recorded, FlowControlledEncoder, Quirks())
    first = picture(recorded.input("in.image").numpy())
    yield "out.controlnet_cond", first.expand(2, -1, -1, -1)
    yield from piped(recorded, svd, svd.copy.maps(first.double(), recorded.input("in.flow")))


def controls(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    network = cmp_of(recorded)
    for name, case in recorded.spec["cases"].items():
        size = case["height"], case["width"]
        brush = recorded.recorded[f"{name}.brush"].numpy()
        sparse = sparse_of(case["tracks"], brush, size, case["frames"])
        yield f"{name}.brush_384", torch.from_numpy(sparse.brush)
        groups = [group for group in (sparse.inside, sparse.outside) if group is not None]
        for number, group in enumerate(groups):
            yield f"{name}.group{number}.points", torch.from_numpy(group.points)
            at = (group.sparse[:, 2] > 0).nonzero()
            values = group.sparse[at[:, 0], :, at[:, 1], at[:, 2]]
            yield f"{name}.group{number}.sparse_at", at
            yield f"{name}.group{number}.sparse", values[:, :2]
            yield f"{name}.group{number}.mask", values[:, 2]
        image = unit_picture(recorded.recorded[f"{name}.image"].numpy()).double()
        flow = dense_flow(sparse, image, network.flow)
        yield f"{name}.flow", flow
        yield f"{name}.flow_corner", flow[..., :24, :24]


def cmp_of(recorded: RecordedSet) -> CMP:
    network = CMP()
    fit(network, recorded.part("module."), recorded.path, "CMP")
    return network.double().eval().requires_grad_(False)


def sparse_at(points: Tensor, clips: int, height: int, width: int) -> Tensor:
    sparse = torch.zeros(clips, 4, height, width, dtype=torch.float64)
    for clip, y, x, dx, dy in points.tolist():
        sparse[int(clip), :, int(y), int(x)] = torch.tensor([dx, dy, 1, 1], dtype=torch.float64)
    return sparse


def cmp_outputs(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    network = cmp_of(recorded)
    for name in recorded.spec["inputs"]:
        size = name.rpartition(".")[2]
        image = recorded.input(name)
        sparse = sparse_at(recorded.recorded[f"in.points.{size}"], len(image), *image.shape[2:])
        yield f"out.image_encoder.{size}", network.image_encoder(2 * image - 1).last
        yield f"out.sparse_encoder.{size}", network.flow_encoder(sparse)
        yield f"out.logits.{size}", network(image, sparse)
        yield f"out.flow.{size}", network.flow(image, sparse)


def splats(recorded: RecordedSet) -> Iterator[tuple[str, Tensor]]:
    for name in recorded.spec["inputs"]:
        case, _, what = name.rpartition(".")
        if what == "x":
            x, flow = recorded.input(name), recorded.input(f"{case}.flow")
            yield f"{case}.out", average_splat(x, flow)
            yield f"{case}.out_whole", average_splat(x, flow.round())
