"""Where a graph compiler would cut a model into parts. Compatibility: nothing is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def register_split_op(op_name: str | None = None) -> Callable[[Any], Any]:
    """Decorator factory that marks an operator as a border between parts; the function is returned as it is."""
    return lambda function: function
