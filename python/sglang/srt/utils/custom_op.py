"""`register_custom_op`: marks a function as an opaque operator for compilers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def register_custom_op(
    fn: Callable[..., Any] | None = None,
    *,
    op_name: str | None = None,
    mutates_args: list[str] | None = None,
    eager: bool = True,
    out_shape: str | int | None = None,
    fake_impl: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Decorator, bare or called. The function itself is returned: models run eagerly here.

    The keywords describe the operator to a graph compiler and do not change what it computes.
    """
    if fn is not None:
        return fn
    return lambda function: function
