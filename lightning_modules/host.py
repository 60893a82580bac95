"""Between host and device: copies that overlap with kernels, and a number on the host without waiting for it."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class CopyStream:
    """A CUDA stream of its own for batches: the next one arrives while the last step's kernels still run."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def on(self, device: torch.device) -> AbstractContextManager:
        """Inside, copies to the device are queued on the stream; nothing changes without CUDA."""
        if device.type != "cuda":
            return nullcontext()
        self._stream = self._stream or torch.cuda.Stream(device)
        return torch.cuda.stream(self._stream)

    def used(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The batch, to be used by the current stream from now on."""
        if device.type == "cuda" and self._stream is not None:
            current = torch.cuda.current_stream(device)
            current.wait_stream(self._stream)
            for value in batch.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(current)  # its memory was allocated on the other stream
        return batch


class EarlierValue:
    """The latest of a device's scalars that has reached the host; asking for it never waits for the device.

    Attributes:
        value: () float32 on the host; nan until the first one has arrived.
    """

    def __init__(self) -> None:
        self.value = torch.tensor(float("nan"))
        self._on_the_way: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def push(self, scalar: Tensor) -> Tensor:
        """Send a scalar on its way; returns `value`, on the CPU the scalar itself."""
        scalar = scalar.detach()
        if scalar.device.type != "cuda":
            self.value = scalar.float()
            return self.value
        host = torch.empty((), dtype=torch.float32, pin_memory=True)
        host.copy_(scalar, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._on_the_way.append((host, event))
        while self._on_the_way and self._on_the_way[0][1].query():
            self.value = self._on_the_way.popleft()[0]
        return self.value
