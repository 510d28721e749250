"""What operators would read while parts of a model are captured or replayed. Compatibility: that never happens."""

from __future__ import annotations


def get_forward_context() -> None:
    """None: outside of a piecewise graph."""
    return None


def is_in_piecewise_cuda_graph() -> bool:
    return False
