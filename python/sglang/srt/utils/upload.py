"""Host values to device tensors without waiting for the device.

A copy from pageable memory waits for everything queued on the stream, which would undo the overlap of steps; the copy from pinned memory
is queued like a kernel, and the allocator keeps the source alive until it has run. On the CPU nothing is pinned, nor copied without need.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

# A host copy of a large tensor in one pinned block would be rounded up to a power of two and stay pinned for ever, as large as the largest
# request that ever came. Pieces are all of one size, so that torch's allocator hands out the same few again and again; how many are
# underway is bounded, and only who sends more than that at once waits, for the oldest piece.
PIECE_BYTES = 16 * 2**20
MAX_BYTES_UNDERWAY = 256 * 2**20

_underway: deque[tuple[torch.cuda.Event, int]] = deque()  # pieces whose copies may be queued still


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `values` (number lists, an array, or a tensor on the CPU) on `device`; may share their memory there."""
    return pinned(values, dtype, device).to(device, non_blocking=True)


def upload_into(target: torch.Tensor, values: Any) -> None:
    """Overwrite `target`, which a captured graph reads, with `values` of its shape."""
    target.copy_(pinned(values, target.dtype, target.device), non_blocking=True)


def upload_in_pieces(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of any size on `device`, from bounded pinned memory; itself where it is there already. Called from one thread."""
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    source = tensor.contiguous().flatten()
    target = torch.empty(source.shape, dtype=source.dtype, device=device)
    step = max(PIECE_BYTES // source.itemsize, 1)
    for start in range(0, len(source), step):
        piece = source[start : start + step]
        _wait_for_room(piece.nbytes)
        target[start : start + step].copy_(pinned(piece, piece.dtype, device), non_blocking=True)
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            _underway.append((event, piece.nbytes))
    return target.view(tensor.shape)


def _wait_for_room(num_bytes: int) -> None:
    """Until so many bytes more may be underway."""
    while _underway and _underway[0][0].query():
        _underway.popleft()
    while _underway and sum(size for _, size in _underway) + num_bytes > MAX_BYTES_UNDERWAY:
        _underway.popleft()[0].synchronize()


def pinned(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A host tensor of `values`, from which a copy to `device` does not wait."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory()
