"""The eps of the res blocks' norms, which diffusers sets otherwise; and faster temporal convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import nn

from lightning_modules.layers import TemporalConv3d

if TYPE_CHECKING:
    from lightning_modules.bases.svd.base import SVD

RES_BLOCK_EPS = 1e-5  # the original SVD's; diffusers hard-codes 1e-6 in most of its blocks


def set_res_block_eps(unet: nn.Module) -> int:
    """Set eps 1e-5 in every GroupNorm of the spatial and temporal res blocks; returns how many were different."""
    changed = [norm for norm in res_block_norms(unet).values() if norm.eps != RES_BLOCK_EPS]
    for norm in changed:
        norm.eps = RES_BLOCK_EPS
    return len(changed)


@contextmanager
def diffusers_eps(svd: SVD) -> Iterator[None]:
    """The UNet with the eps that diffusers gives its res blocks, for the time of the block."""
    norms = res_block_norms(svd.unet)
    before = {name: norm.eps for name, norm in norms.items()}
    try:
        for name, norm in norms.items():
            norm.eps = svd.stock_eps[name]
        yield
    finally:
        for name, norm in norms.items():
            norm.eps = before[name]


def res_block_norms(unet: nn.Module) -> dict[str, Any]:
    """Name -> norm of all res blocks, spatial and temporal."""
    blocks = [(n, m) for n, m in unet.named_modules() if isinstance(m, (ResnetBlock2D, TemporalResnetBlock))]
    return {f"{name}.{norm}": getattr(block, norm) for name, block in blocks for norm in ("norm1", "norm2")}


def use_fast_temporal_convs(unet: nn.Module) -> None:
    """Compute the UNet's temporal convolutions by the kernels of two dimensions; weights and their names stay."""
    for module in unet.modules():
        if type(module) is nn.Conv3d and module.kernel_size == (3, 1, 1) and module.padding == (1, 0, 0):
            module.__class__ = TemporalConv3d
