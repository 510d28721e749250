"""Host values to device tensors without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `values` (number lists, or a tensor on the CPU) on `device`.

    A copy from pageable memory waits for everything queued on the stream, which would undo the overlap of steps; the copy from
    pinned memory is queued like a kernel, and the allocator keeps the source alive until it has run.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
