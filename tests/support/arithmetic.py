"""What float32 may differ by on any CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-24  # of float32


def assert_rounded(ours: Tensor | np.ndarray, exact: Tensor | np.ndarray, roundings: int = 100) -> None:
    """float32 `ours` is float64 `exact` but for so many roundings of its largest value.

    For sums and elementwise arithmetic, whose roundings do not grow: CPUs order sums and fuse products differently. A
    network amplifies roundings, and a CPU may be told to convolve in bfloat16: networks are compared in float64.
    """
    ours, exact = (torch.as_tensor(x) for x in (ours, exact))
    assert exact.dtype == torch.float64, f"expected an exact float64 reference, got {exact.dtype}"
    assert ours.shape == exact.shape
    error, size = (ours.double() - exact).abs().max().item(), exact.abs().max().item()
    assert error <= roundings * UNIT_ROUNDOFF * size, f"differs by {error:.2e}, the largest value is {size:.2e}"
