"""Host values to device tensors without waiting for the device.

A copy from pageable memory waits for everything queued on the stream, which would undo the overlap of steps; the copy from pinned memory
is queued like a kernel, and the allocator keeps the source alive until it has run. On the CPU nothing is pinned, nor copied without need.
"""

from __future__ import annotations

from typing import Any

import torch


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `values` (number lists, an array, or a tensor on the CPU) on `device`; may share their memory there."""
    return pinned(values, dtype, device).to(device, non_blocking=True)


def upload_into(target: torch.Tensor, values: Any) -> None:
    """Overwrite `target`, which a captured graph reads, with `values` of its shape."""
    target.copy_(pinned(values, target.dtype, target.device), non_blocking=True)


def pinned(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A host tensor of `values`, from which a copy to `device` does not wait."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory()
