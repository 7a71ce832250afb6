"""What the engines that use torch do with a device: wait for it, and copy hidden states."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from helixreal.engines.engine import Buffer


def wait_for(device: torch.device) -> None:
    """Wait until the device has computed what this thread gave it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class DeviceCopies:
    """Copies hidden states between a device and this process.

    On a GPU, copies have a stream of their own: they do not wait for a pass that another thread
    runs meanwhile. This is safe because engines return from a pass when it has been computed.

    Parameters
    ----------
    device
        The device of the hidden states.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def beside_passes(self) -> AbstractContextManager[None]:
        """A context in which this thread's operations do not wait for passes."""
        if self._stream is None:
            return nullcontext()
        context: AbstractContextManager[None] = torch.cuda.stream(self._stream)
        return context

    def to_buffer(self, values: torch.Tensor) -> Buffer:
        """Copy a tensor from the device to bytes."""
        return memoryview(values.contiguous().cpu().view(torch.uint8).numpy()).cast("B")

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device."""
        return values.to(self._device)
