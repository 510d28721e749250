"""Counts of which experts tokens choose. Compatibility: nothing is recorded; the object has the calls that model files make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class ExpertDistributionRecorder:
    """A recorder that records nothing."""

    @contextlib.contextmanager
    def with_current_layer(self, layer_idx: int) -> Iterator[None]:
        """Around the layers; choices inside would be counted for layer `layer_idx`."""
        yield

    @contextlib.contextmanager
    def with_debug_name(self, debug_name: str) -> Iterator[None]:
        """Around parts that are to be told apart in the record."""
        yield

    @contextlib.contextmanager
    def disable_this_region(self) -> Iterator[None]:
        """Around choices that are not to be counted."""
        yield

    def on_select_experts(self, topk_ids: Any) -> None:
        """Called with the choices of a layer."""


_RECORDER = ExpertDistributionRecorder()


def get_global_expert_distribution_recorder() -> ExpertDistributionRecorder:
    return _RECORDER
