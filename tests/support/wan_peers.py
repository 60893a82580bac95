"""What Wan-Move and ATI make of tracks, by their own functions.

    python -m tests.support.wan_peers WAN_MOVE ATI   # two checkouts; writes tests/fixtures/wan_peers.safetensors anew

Recorded with ali-vilab/Wan-Move 27409be and bytedance/ATI 168b443, both Apache-2.0. Only the named functions and
statements of their files are run, in float64.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.places import REPO

FILE = REPO / "tests" / "fixtures" / "wan_peers.safetensors"
SIDE, TIME, CHANNELS, FRAMES = 8, 4, 4, 9
TRACKS = "wan/modules/trajectory.py", ("get_pos_emb", "create_pos_feature_map", "replace_feature")
MIXED = "wan/modules/motion_patch.py", ("ind_sel", "merge_final", "patch_motion")
SIZES = {"wide": (20, 28), "tall": (12, 8)}  # cells


# layers of diffusers' transformer -> those of Wan's own, as its `model.py` names them
OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "patch_embedding": "patch_embedding",
    "proj_out": "head.head",
}
INSIDE = {
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o", "attn1.norm_q": "self_attn.norm_q", "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o", "attn2.norm_q": "cross_attn.norm_q", "attn2.norm_k": "cross_attn.norm_k",
    "attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img", "norm2": "norm3", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
}  # fmt: skip


def original(name: str) -> str:
    """The name in Wan's own code of a weight of diffusers' transformer."""
    if name.endswith("scale_shift_table"):
        return name.replace("scale_shift_table", "modulation" if name.startswith("blocks.") else "head.modulation")
    layer, _, kind = name.rpartition(".")
    if not name.startswith("blocks."):
        return f"{OUTSIDE[layer]}.{kind}"
    _, number, layer = layer.split(".", 2)
    return f"blocks.{number}.{INSIDE[layer]}.{kind}"


def write(path: Path, transformer: torch.nn.Module, parts: int = 1) -> Path:
    """A transformer as these authors have it: one file, or a folder of parts with an index."""
    state = {original(name): value.detach().clone() for name, value in transformer.state_dict().items()}
    if parts == 1:
        save_file(state, path)
        return path
    path.mkdir()
    names, listed = list(state), {}
    for number in range(parts):
        part = f"diffusion_pytorch_model-{number + 1:05}-of-{parts:05}.safetensors"
        save_file({name: state[name] for name in names[number::parts]}, path / part)
        listed |= dict.fromkeys(names[number::parts], part)
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return path


def functions(checkout: Path, where: tuple[str, tuple[str, ...]]) -> SimpleNamespace:
    """Functions of a file, without what it imports."""
    path, names = where
    tree = ast.parse((checkout / path).read_text())
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space: dict[str, Any] = {"torch": torch, "SKIP_ZERO": False}
    exec("from __future__ import annotations\nfrom typing import *", space)
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + body, []), path, "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def mask(checkout: Path, path: str, height: int, width: int) -> Tensor:
    """The channels (4, 21, h, w) of 81 frames that say what is known: the statements of `generate` that make them."""

    def name(target: ast.expr) -> str:
        return ast.unparse(target).partition("[")[0]

    body = [
        node
        for node in ast.walk(ast.parse((checkout / path).read_text()))
        if isinstance(node, ast.Assign) and name(node.targets[0]) == "msk"
    ]
    body.sort(key=lambda node: node.lineno)
    space = {"torch": torch, "lat_h": height, "lat_w": width, "self": SimpleNamespace(device="cpu")}
    exec(compile(ast.Module(body, []), path, "exec"), space)
    return space["msk"]


def moved(checkout: Path, y: Tensor, starts: Tensor, ways: Tensor) -> Tensor:
    """Wan-Move's edit of latents (C, F, h, w) by tracks that start at (N, 2) and move by (L, N, 2), in their order."""
    theirs, (height, width) = functions(checkout, TRACKS), y.shape[-2:]
    seen = torch.ones(ways.shape[:2], dtype=torch.bool)
    with mock.patch.object(torch, "randperm", torch.arange):  # they draw the order
        _, cells = theirs.create_pos_feature_map(
            starts + ways, seen, [TIME, SIDE, SIDE], SIDE * height, SIDE * width, len(y), device=torch.device("cpu")
        )
        edited = y[None].clone()
        for one in cells:  # one by one, as at a cell that several reach the winner is left to `index_put`
            edited = theirs.replace_feature(edited, one[None, None])
        return edited[0]


def mixed(checkout: Path, known: Tensor, y: Tensor, starts: Tensor, ways: Tensor) -> Tensor:
    """ATI's (4 + C, F, h, w) of a mask (4, F, h, w) and latents, by the same tracks in their coordinates."""
    size = torch.tensor([SIDE * y.shape[3], SIDE * y.shape[2]], dtype=torch.float64)
    points = (starts + ways - size / 2) / size.min() * 2
    ones = torch.ones_like(points[..., :1])
    tracks = torch.cat([ones, points, ones], -1)[None]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        return functions(checkout, MIXED).patch_motion(tracks, torch.cat([known, y]), training=False)
    finally:
        torch.set_default_dtype(default)


def drawn(rng: np.random.Generator, height: int, width: int, crossing: bool) -> dict[str, Tensor]:
    """A clip's latents, the cells that move, and how; what crosses meets, the rest goes to cells of its own."""
    y = torch.from_numpy(rng.standard_normal((CHANNELS, 1 + (FRAMES - 1) // TIME, height, width))).float()
    moves = torch.from_numpy(rng.random((height, width)) < (0.4 if crossing else 0.12))
    speed = rng.standard_normal((2, height, width)) * 2 if crossing else np.full((2, height, width), -1.7)
    bend = 3 * np.sin(np.arange(FRAMES) / 3)[:, None, None, None]
    way = torch.from_numpy(
        np.arange(FRAMES)[:, None, None, None] * speed + bend * (np.arange(FRAMES) > 0)[:, None, None, None]
    )
    free = torch.from_numpy(rng.random((height, width)) < 0.3)
    return {"y": y, "way": (way * moves).float(), "mask": moves | free}


def record(wan_move: Path, ati: Path) -> None:
    """Write the set."""
    found: dict[str, Tensor] = {}
    for name, checkout, path in (("wan_move", wan_move, "wan/wan_move.py"), ("ati", ati, "wan/image2video.py")):
        found[f"known.{name}"] = mask(checkout, path, 2, 3)
    rng = np.random.default_rng(0)
    for (shape, (height, width)), crossing in ((item, flag) for item in SIZES.items() for flag in (False, True)):
        name = f"{shape}.{'crossing' if crossing else 'apart'}"
        one = drawn(rng, height, width, crossing)
        found |= {f"{name}.{part}": value for part, value in one.items()}
        y, way = one["y"].double(), one["way"].double()
        moves = (way != 0).any(1).any(0)
        row, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        middles = SIDE * torch.stack([x, row], -1).double() + SIDE // 2
        starts, ways = middles[moves], way[:, :, moves].transpose(1, 2)
        rest = middles[~one["mask"]]  # what stays, before what moves, so that the latter wins
        found[f"{name}.wan_move.tracks_alone"] = moved(wan_move, y, starts, ways)
        stay = torch.zeros(FRAMES, len(rest), 2).double()
        found[f"{name}.wan_move"] = moved(wan_move, y, torch.cat([rest, starts]), torch.cat([stay, ways], 1))
        known = torch.zeros(TIME, *y.shape[1:]).double()
        known[:, 0] = 1
        found[f"{name}.ati"] = mixed(ati, known, y, starts, ways)
    save_file({name: value.contiguous() for name, value in found.items()}, FILE)
    print(f"{FILE.relative_to(REPO)}: {len(found)} tensors, {FILE.stat().st_size / 1e3:.0f} KB")


def recorded() -> dict[str, Tensor]:
    """The set, by name."""
    return load_file(FILE)


if __name__ == "__main__":
    record(*map(Path, sys.argv[1:]))
