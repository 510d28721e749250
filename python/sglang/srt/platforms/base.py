"""The interface of a platform: memory facts, streams and copies of one device."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch


class Platform(ABC):
    """One device of one process. Sizes are in bytes."""

    name: str
    is_cuda: bool = False
    is_cpu: bool = False
    # Backend of torch.distributed that moves this device's tensors.
    distributed_backend: str

    def __init__(self, index: int = 0) -> None:
        self.index = index

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The torch device on which parameters and caches live."""

    @abstractmethod
    def activate(self) -> None:
        """Make the device the current one of this process; call once before any allocation."""

    @abstractmethod
    def total_memory(self) -> int:
        """Memory that the device has."""

    @abstractmethod
    def free_memory(self) -> int:
        """Memory that could be allocated now."""

    @abstractmethod
    def default_dtype(self) -> torch.dtype:
        """The 16-bit type in which the device computes well."""

    @abstractmethod
    def synchronize(self) -> None:
        """Block the host until the device has done all work that was launched."""

    @abstractmethod
    def create_stream(self) -> Any:
        """A stream of work beside the current one, or None where there are no streams."""

    @abstractmethod
    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Launch the work of a `with` block on `stream`; None means the current one."""

    @abstractmethod
    def create_event(self) -> Any:
        """An object with `record()`, `wait()` and `synchronize()`, as torch.cuda.Event."""

    @abstractmethod
    def prepare_cache(self, buffers: Sequence[torch.Tensor]) -> None:
        """Called when the key/value buffers are made."""

    def release_memory(self) -> None:
        """Give memory back that the allocator keeps for later; for use after an allocation failed."""
        gc.collect()

    def download(self, *tensors: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Queue copies to the host. The function returned waits for them alone, not for work queued later."""
        return lambda: tensors
