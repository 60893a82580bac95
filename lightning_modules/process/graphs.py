"""A sampler's step as a CUDA graph: thousands of kernels queued by one call."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.process.base import Denoise


class Recorded:
    """A denoiser whose first call records its kernels on CUDA, and whose others replay them; elsewhere as it is.

    What the denoiser reads besides its arguments has to stay where it is in memory: weights, conditioning, motion.

    Args:
        denoise: (x, sigma (B,)) -> denoised x, without gradients, of one shape.
    """

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """As the denoiser."""
        if not x.is_cuda:
            return self.denoise(x, sigma)
        if self._graph is None:
            self._graph = self._record(x, sigma)
        self._x.copy_(x)
        self._sigma.copy_(sigma)
        self._graph.replay()
        return self._out.clone()

    def _record(self, x: Tensor, sigma: Tensor) -> torch.cuda.CUDAGraph:
        self._x, self._sigma = x.clone(), sigma.clone()
        # once before, on another stream as CUDA asks: libraries make their handles and workspaces, `compile` compiles
        current, aside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            self.denoise(self._x, self._sigma)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out = self.denoise(self._x, self._sigma)
        return graph
