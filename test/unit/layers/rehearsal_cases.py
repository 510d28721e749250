"""Rehearses a kernel with Triton's own compiler and no GPU: the driver is made up, and launches do nothing.

Run by `test_kernel_rehearsal.py` in a process of its own.
"""

from __future__ import annotations

import os
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver


class Driver:
    """One Hopper GPU."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def norm(dtype: torch.dtype, width: int) -> None:
    from sglang.srt.layers.triton_ops.norm import rms_norm

    x = torch.ones(2, width, dtype=dtype)
    rms_norm(x, torch.ones(width, dtype=dtype), 1e-6)


def main() -> None:
    from sglang.srt.model_executor.kernel_rehearsal import KernelRehearsal

    driver.set_active(Driver())
    CompiledKernel._init_handles = lambda self: None
    loaded, launched = [], []
    launch = launched.append
    CompiledKernel.run = property(lambda self: loaded.append(self.name) or (lambda *_: launch(1)))
    CompiledKernel.launch_metadata = lambda self, *args: None
    rehearsal, again = KernelRehearsal(), KernelRehearsal()
    steps = ((torch.bfloat16, 256), (torch.bfloat16, 128), (torch.bfloat16, 256))
    with rehearsal.pretend():
        for step in steps:
            norm(*step)
    print("noted", len(rehearsal))
    rehearsal.compile(torch.device("cpu"))
    print("loaded", len(loaded))
    with again.pretend():
        for step in steps:
            norm(*step)
    print("missing", len(again), "launched", len(launched))
    norm(*steps[0])
    print("launched", len(launched))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        triton.knobs.cache.dir = folder
        main()
