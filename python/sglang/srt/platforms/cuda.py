"""An NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from sglang.srt.platforms.base import Platform
from sglang.srt.platforms.device_errors import first_line
from sglang.srt.utils.errors import ConfigError


class CudaPlatform(Platform):
    name = "cuda"
    is_cuda = True
    distributed_backend = "nccl"

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index)

    def activate(self) -> None:
        """Raises ConfigError when the device exists but cannot be used, as when other programs have taken all of its memory."""
        try:
            torch.cuda.set_device(self.index)
            torch.cuda.mem_get_info(self.index)  # makes the context, which needs memory itself
        except RuntimeError as error:
            raise ConfigError(
                f"GPU {self.index} cannot be used: {first_line(error)}. nvidia-smi shows which programs hold it; free it or "
                "choose another with --base-gpu-id"
            ) from error

    def prepare_cache(self, buffers: Sequence[torch.Tensor]) -> None:
        pass

    def total_memory(self) -> int:
        return torch.cuda.mem_get_info(self.index)[1]

    def free_memory(self) -> int:
        """Free memory of the device plus what torch's allocator holds unused."""
        free = torch.cuda.mem_get_info(self.index)[0]
        reserved = torch.cuda.memory_reserved(self.index)
        return free + reserved - torch.cuda.memory_allocated(self.index)

    def default_dtype(self) -> torch.dtype:
        major, _ = torch.cuda.get_device_capability(self.index)
        return torch.bfloat16 if major >= 8 else torch.float16

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.index)

    def release_memory(self) -> None:
        super().release_memory()
        torch.cuda.empty_cache()

    def create_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.index)

    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def create_event(self) -> torch.cuda.Event:
        return torch.cuda.Event()

    def download(self, *tensors: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Copies on the current stream into pinned memory, and an event behind them."""
        hosts = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()

        def wait() -> tuple[torch.Tensor, ...]:
            event.synchronize()
            return hosts

        return wait
