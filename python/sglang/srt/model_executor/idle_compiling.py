"""Compiles, in idle moments after the start, kernels that only some requests need: the first of them would wait for the compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from sglang.srt.model_executor.kernel_rehearsal import KernelRehearsal

logger = logging.getLogger(__name__)

# Together they take about as long as one.
_AT_A_TIME = 4


class IdleCompiling:
    """What `launch` would launch on `device`, compiled a few kernels at a time. Triton must be installed."""

    def __init__(self, launch: Callable[[], None], device: torch.device) -> None:
        self._launch: Callable[[], None] | None = launch
        self._device = device
        self._rehearsal = KernelRehearsal()

    @torch.inference_mode()
    def compile_next(self) -> bool:
        """Find out what there is, then compile a few; half a second at most. False when there is no more."""
        try:
            if self._launch is not None:
                launch, self._launch = self._launch, None
                with self._rehearsal.pretend():
                    launch()
            else:
                self._rehearsal.compile(self._device, _AT_A_TIME)
        except Exception as error:  # boundary of idle work: a request will meet what matters
            reason = str(error).partition("\n")[0]
            logger.warning("Kernels are not compiled beforehand: %s", reason)
            self._rehearsal = KernelRehearsal()
        return len(self._rehearsal) > 0
