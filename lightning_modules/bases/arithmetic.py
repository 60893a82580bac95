"""The arithmetic of an autoencoder, whatever the trainer's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def vae_arithmetic(device: torch.device, tf32: bool) -> Iterator[None]:
    """No autocast, and TF32 where it is the autoencoder's precision, not where something else left it on."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    flags = cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, tf32)
    try:
        with flags, torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = before


def exact(x: Tensor) -> Tensor:
    """Float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
