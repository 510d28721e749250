"""The layers that an attention backend of a package declines: another backend runs them, in the same step and in the same graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.triton_ops.metadata import StepMetadata

logger = logging.getLogger(__name__)
Prepare = Callable[[AttentionBackend], None]


class DeclinedLayers:
    """Makes the other backend when the first layer is declined, and prepares it in the steps that need it.

    Args:
        name: of the backend that declines.
        create: makes the other backend.
    """

    def __init__(self, name: str, create: Callable[[], AttentionBackend]) -> None:
        self._name = name
        self._create = create
        self._backend: AttentionBackend | None = None
        self._prepare: Prepare | None = None
        self._is_ready = False
        self._reasons: set[str] = set()
        self._graph_limits: tuple[int, int] | None = None
        self._capturing: int | None = None
        self._captured: set[int] = set()

    @property
    def reasons(self) -> frozenset[str]:
        """Why layers have been declined so far."""
        return frozenset(self._reasons)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Graphs of up to so many requests will be captured."""
        self._graph_limits = (max_bs, max_num_tokens)
        self._captured.clear()
        if self._backend is not None:
            self._backend.init_cuda_graph_state(*self._graph_limits)

    def start_step(self, prepare: Prepare) -> None:
        """An eager step; `prepare` makes the metadata of the other backend if a layer needs them."""
        self._prepare, self._is_ready, self._capturing = prepare, False, None

    def start_capture(self, bs: int, prepare: Prepare) -> None:
        """The capture of a decode of `bs` requests."""
        self.start_step(prepare)
        self._capturing = bs

    def start_replay(self, bs: int, prepare: Prepare) -> None:
        """A replay: no layer will ask, so the backend is prepared at once if the graph has declined layers."""
        self.start_step(prepare)
        if bs in self._captured:
            self._ready_backend()

    def backend_for(self, reason: str, metadata: StepMetadata | None) -> AttentionBackend:
        """The backend of a layer that was declined for `reason`, ready for this step.

        `metadata` are those of the backend that declines; a mask that a model has set on them goes along.
        """
        if reason not in self._reasons:
            self._reasons.add(reason)
            logger.warning(
                "Attention backend %s leaves layers to another backend: %s", self._name, reason
            )
        backend: Any = self._ready_backend()
        if metadata is not None and metadata.custom_mask is not None:
            if not isinstance(backend.forward_metadata, StepMetadata):
                raise ValueError("a custom mask needs --attention-backend triton")
            backend.forward_metadata.custom_mask = metadata.custom_mask
            backend.forward_metadata.mask_indptr = metadata.mask_indptr
        return backend

    def _ready_backend(self) -> AttentionBackend:
        if self._backend is None:
            self._backend = self._create()
            if self._graph_limits is not None:
                self._backend.init_cuda_graph_state(*self._graph_limits)
        if not self._is_ready:
            assert self._prepare is not None, "init_forward_metadata was not called"
            self._prepare(self._backend)
            self._is_ready = True
            if self._capturing is not None:
                self._captured.add(self._capturing)
        return self._backend
