"""Memory that is registered with the communication library. Compatibility: ordinary memory is used."""

from __future__ import annotations

import contextlib
from typing import Any


def use_symmetric_memory(
    group_coordinator: Any, disabled: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Tensors made inside the block are ordinary tensors."""
    return contextlib.nullcontext()
