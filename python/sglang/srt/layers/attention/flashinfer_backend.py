"""Attention by the package flashinfer: compiled kernels for NVIDIA GPUs, planned once per step and kind of layer on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from sglang.srt.layers.attention.attention_kind import AttentionKind
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.flashinfer_plans import (
    LatentAttention,
    PagedDecode,
    PagedExtend,
    WholePrompts,
    Workspace,
    make_graph_buffers,
)
from sglang.srt.layers.attention.packaged_backend import PackagedAttnBackend, PackagedStep
from sglang.srt.layers.attention.page_index import PagedRequests, PageIndex, build_page_index
from sglang.srt.layers.radix_attention import RadixAttention

# Head dims of keys and values that there are kernels for; whole prompts have one more.
HEAD_DIMS = (64, 128, 256)
_EXPANDED_LATENT_DIMS = (192, 128)
_DTYPES = (torch.float16, torch.bfloat16)
# Partial results of split keys.
WORKSPACE_BYTES = 256 * 2**20
# What a plan takes at most; the size that the wrappers have by themselves.
PLAN_BYTES = 8 * 2**20
# Of each kind of layer: whole prompts, prompts with a prefix, decodes, decodes of graphs.
NUM_PLANS = 4

Plan = PagedDecode | PagedExtend | LatentAttention


@dataclass
class FlashInferStep(PackagedStep):
    """A step with the plans that its layers have asked for so far."""

    plans: dict[AttentionKind, Plan] = field(default_factory=dict)
    prompt_plans: dict[AttentionKind, WholePrompts] = field(default_factory=dict)
    indices: dict[int, PageIndex] = field(default_factory=dict)  # by window

    def make_plan(self, kind: AttentionKind, plan: Plan) -> None:
        assert self.requests is not None, "the step has no requests"
        window = kind.window if self.is_decode else -1
        if window not in self.indices:
            self.indices[window] = build_page_index(self.requests, window)
        plan.plan(self.requests, self.indices[window])
        self.plans[kind] = plan


class FlashInferAttnBackend(PackagedAttnBackend[FlashInferStep]):
    """See `PackagedAttnBackend`."""

    name = "flashinfer"

    def __init__(
        self, table: torch.Tensor, page_size: int, create_other: Callable[[], AttentionBackend]
    ) -> None:
        super().__init__(table, page_size, create_other)
        self._partial: torch.Tensor | None = None
        # Wrappers of eager steps, planned anew in every step; the flag says that it is a decode.
        self._plans: dict[tuple[AttentionKind, bool], Plan] = {}
        self._prompt_plans: dict[AttentionKind, WholePrompts] = {}
        # Of graphs: pages by window, memory of plans by kind.
        self._graph_pages: dict[int, torch.Tensor] = {}
        self._graph_plan_memory: dict[AttentionKind, torch.Tensor] = {}

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        self._graph_pages = {}

    def make_step(
        self, requests: PagedRequests | None, is_decode: bool, graph_size: int | None = None
    ) -> FlashInferStep:
        return FlashInferStep(requests=requests, is_decode=is_decode, graph_size=graph_size)

    def update_step(self, step: FlashInferStep) -> None:
        """Plan all kinds of layers that the graph has."""
        step.indices.clear()
        for kind, plan in step.plans.items():
            step.make_plan(kind, plan)

    @staticmethod
    def why_no_kernel(kind: AttentionKind, has_sinks: bool, is_prompts: bool) -> str | None:
        if has_sinks:
            return "attention sinks"
        if kind.q_dtype not in _DTYPES:
            return f"queries in {kind.q_dtype}"
        if kind.is_latent:
            has_option = kind.window > 0 or kind.cap > 0
            if has_option or kind.is_fp8:
                return "a latent cache with a window or a logit cap, or in fp8"
            return None
        dims = (kind.dim, kind.v_dim)
        if is_prompts and dims == _EXPANDED_LATENT_DIMS:
            return None
        if kind.dim != kind.v_dim or kind.dim not in HEAD_DIMS:
            return f"head dims {kind.dim} and {kind.v_dim}"
        if not is_prompts and not kind.has_cache:
            return "a cache of another shape than the layer's keys and values"
        return None

    def attend_prompts(
        self,
        step: FlashInferStep,
        kind: AttentionKind,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        kind = replace(kind, kv_dtype=k.dtype)
        if kind not in step.prompt_plans:
            assert step.requests is not None, "the step has no requests"
            if kind not in self._prompt_plans:
                self._prompt_plans[kind] = WholePrompts(kind, Workspace(self._partial_results()))
            self._prompt_plans[kind].plan(step.requests)
            step.prompt_plans[kind] = self._prompt_plans[kind]
        return step.prompt_plans[kind].run(q, k, v)

    def attend_cache(
        self,
        step: FlashInferStep,
        kind: AttentionKind,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        layer: RadixAttention,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        if kind not in step.plans:
            step.make_plan(kind, self._wrapper(step, kind))
        scales = (layer.k_scale_float, layer.v_scale_float) if kind.is_fp8 else (None, None)
        return step.plans[kind].run(q, cache, scales)

    # --- wrappers

    def _wrapper(self, step: FlashInferStep, kind: AttentionKind) -> Plan:
        if step.graph_size is not None:
            return self._graph_wrapper(step.graph_size, kind)
        key = (kind, step.is_decode)
        if key not in self._plans:
            workspace, page = Workspace(self._partial_results()), self.page_size
            if kind.is_latent:
                self._plans[key] = LatentAttention(kind, page, workspace)
            elif step.is_decode:
                self._plans[key] = PagedDecode(kind, page, workspace)
            else:
                self._plans[key] = PagedExtend(kind, page, workspace)
        return self._plans[key]

    def _graph_wrapper(self, size: int, kind: AttentionKind) -> Plan:
        """A wrapper over buffers of its own. Graphs of all sizes share the pages and the memory of plans: one runs at a time."""
        width = self._graph_width(kind.window)
        if kind.window not in self._graph_pages:
            self._graph_pages[kind.window] = torch.zeros(
                self._max_graph_size * width, dtype=torch.int32, device=self.device
            )
        buffers = make_graph_buffers(size, self._graph_pages[kind.window][: size * width])
        workspace = Workspace(self._partial_results())
        if kind.is_latent:
            return LatentAttention(kind, self.page_size, workspace, buffers)
        if kind not in self._graph_plan_memory:
            self._graph_plan_memory[kind] = torch.zeros(
                PLAN_BYTES, dtype=torch.uint8, device=self.device
            )
        workspace = replace(workspace, plan=self._graph_plan_memory[kind])
        return PagedDecode(kind, self.page_size, workspace, buffers)

    def _graph_width(self, window: int) -> int:
        """Pages that a request can have at most."""
        width = -(-self.table.shape[1] // self.page_size)
        return width if window <= 0 else min(width, window // self.page_size + 2)

    def _partial_results(self) -> torch.Tensor:
        if self._partial is None:  # the package wants it zeroed
            self._partial = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)
        return self._partial
