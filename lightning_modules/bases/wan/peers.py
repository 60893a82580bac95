"""Transformers that other authors trained from Wan 2.1 image-to-video: its shapes, under the names of Wan's own code.

- `wan_move`: Wan-Move-14B-480P (Ruihang/Wan-Move-14B-480P on the hub; Apache-2.0).
- `ati`: ATI (bytedance-research/ATI on the hub; code Apache-2.0).

Neither has new layers: what they condition on is edited, see `lightning_modules.control.latent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import nn

from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.wan.base import Wan
from lightning_modules.bases.wan.network import dtype_of
from lightning_modules.bases.weight_files import weight_files
from lightning_modules.bases.weights import UNREADABLE, Stored, fill, misfits, opened
from lightning_modules.config import Start
from remoco.common.errors import UserError, one_line, readable
from remoco.common.tensor_files import read_header

NETWORK = "transformer"


@dataclass(frozen=True)
class Peer:
    """What is known of such weights.

    Attributes:
        injection: How they are given motion.
        shift: Of the authors' sampler, at 480 lines.
    """

    injection: str
    shift: float


PEERS = {"wan_move": Peer("latent", 3.0), "ati": Peer("latent_soft", 5.0)}


def check_peer(base: VideoBase, injections: Sequence[str], start: Start) -> None:
    """Raise UserError unless a module's base and injections are those that such weights belong to.

    Args:
        base: Not built; its configurations are read, and it is told that its folder may lack the transformer's weights.
        injections: `control.injection`.
        start: Its kind is one of `PEERS`.
    """
    peer = PEERS[start.kind]
    if type(base) is not Wan or "image_encoder" not in base.networks:
        raise UserError(
            f"model.start: {start.kind} takes the place of Wan 2.1 image-to-video's transformer, expected bases.Wan "
            f"with its folder as path, not {type(base).__name__} of another kind"
        )
    if peer.injection not in injections:
        raise UserError(
            f"model.start: {start.kind} was trained with {peer.injection}, expected it in control.injection, which is "
            f"{list(injections)}"
        )
    base.elsewhere = {NETWORK: partial(read, start.file, base.config(NETWORK))}


def build_peer(base: VideoBase, start: Start, dtype: torch.dtype) -> None:
    """Build a base with such a transformer in the place of its folder's, whose weights are not read.

    Args:
        base: Wan 2.1 image-to-video, checked by `check_peer`.
        start: Kind and file.
        dtype: Dtype of the frozen networks.

    Raises:
        UserError: the file does not fit, or a file of the base is missing.
    """
    assert isinstance(base, Wan)
    check(start.file, base.config(NETWORK))  # before what is read first
    base.build(dtype)
    base.identity = {
        **base.record(),
        "peer": {"kind": start.kind, "file": str(start.file)},
        "hash": base.identity["hash"],
    }


def check(path: str, config: dict[str, Any]) -> None:
    """Raise UserError unless a file is of a transformer of these sizes, by names and shapes; as for `read`."""
    with _fitting(path, config):
        pass


def read(path: str, config: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, str]:
    """The transformer in a file under the names of Wan's own code, and its hash under diffusers' names.

    Names and shapes are compared before a weight is read.

    Args:
        path: A safetensors file, or a folder with `diffusion_pytorch_model.safetensors`, whole or in parts.
        config: diffusers' configuration of the transformer.
        dtype: Dtype of its weights, but for those that stay in float32.

    Raises:
        UserError: it does not fit; one line.
    """
    with _fitting(path, config) as (model, stored):
        return model.eval(), fill(model, stored, lambda name: dtype_of(name, dtype))


@contextmanager
def _fitting(path: str, config: dict[str, Any]) -> Iterator[tuple[nn.Module, dict[str, Stored]]]:
    """The transformer on the meta device, and its weights in a file, by diffusers' names, open for the block."""
    files = files_of(path)
    try:
        with torch.device("meta"):
            model = WanTransformer3DModel.from_config(config)
    except Exception as error:  # a library's class fails in many ways on a configuration of another one
        raise UserError(f"base: no transformer has the sizes of its config.json ({one_line(error)})") from error
    try:
        for file in files:
            read_header(file)
        with opened(files) as stored:
            named = {ours: stored[theirs] for ours, theirs in diffusers_names(stored).items()}
            wrong = misfits(model, named)
            odd = sorted(named.keys() - model.state_dict().keys())
            if wrong or odd:
                first = (wrong or odd)[0]
                raise UserError(
                    f"{len(wrong)} weights of Wan's transformer are missing or misshapen and {len(odd)} are unknown, "
                    f"the first is {readable(first, 120)}; expected the base's sizes, under the names of Wan's own code"
                )
            yield model, named
    except UNREADABLE as error:
        raise UserError(f"start.file: {path}: {one_line(error)}") from error


def files_of(path: str) -> list[Path]:
    """The safetensors files of a path, see `read`; a pickle is never opened."""
    where = Path(path).expanduser()
    if where.is_dir():
        try:
            return weight_files(where, NETWORK)
        except UserError as error:
            raise UserError(f"start.file: {error}") from error
    if not where.is_file() or where.suffix != ".safetensors":
        raise UserError(f"start.file: {path} is no safetensors file, expected one, or a folder of them")
    return [where]


def diffusers_names(theirs: Iterable[str]) -> dict[str, str]:
    """Name in diffusers' transformer -> name in Wan's own code.

    Raises:
        UserError: two names become one.
    """
    names = list(theirs)
    try:
        ours: dict[str, str] = convert_wan_transformer_to_diffusers({name: name for name in names})
    except (TypeError, LookupError, AttributeError) as error:  # of parts of other networks, which it cuts in two
        raise UserError("it has weights of another network of Wan's, expected image-to-video's") from error
    if len(ours) < len(names):
        raise UserError("it has weights of one layer under two names")
    return ours
