"""Attention by the Triton kernels of `triton_ops`: the backend of NVIDIA GPUs, without compiled extensions.

Kernels read the row table themselves, so a step has no list of slots to build: a decode reads the tensors of its batch
as they are, an extend uploads a few numbers per request and per tile. Nothing here waits for the device. Legend: T
tokens, B requests, H query heads, K kv heads, d head dim, S slots of the pool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.layer_inputs import join_rope, save_new
from sglang.srt.layers.attention.triton_layer import TritonLayerCall
from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.graph_extend import (
    GraphExtend,
    build_graph_extend,
    update_graph_extend,
)
from sglang.srt.layers.attention.triton_ops.metadata import (
    DecodeMetadata,
    Splits,
    StepMetadata,
    build_decode_metadata,
    build_extend_metadata,
)
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

# Multiprocessors that the splits are planned for where there are none (the interpreter).
_NUM_PROCESSORS_WITHOUT_GPU = 4


class TritonAttnBackend(AttentionBackend):
    """See the module docstring. Supports windows, logit caps, sinks, cross-attention, encoders, image spans, custom
    masks, chunked local attention and shared caches, and captured decodes.

    Args:
        num_kv_heads: kv heads of this rank, for planning the splits.
        max_context_len: width of the row table; bounds what a captured decode may meet.
        device: of the tensors.
        attention_chunk_size: width of the chunks of layers with `use_irope`.
    """

    def __init__(
        self,
        num_kv_heads: int,
        max_context_len: int,
        device: torch.device,
        attention_chunk_size: int | None = None,
    ) -> None:
        self.num_kv_heads = num_kv_heads
        self.max_context_len = max_context_len
        self.device = device
        self.attention_chunk_size = attention_chunk_size
        self.num_processors = _NUM_PROCESSORS_WITHOUT_GPU
        if device.type == "cuda":
            self.num_processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.forward_metadata: StepMetadata | None = None
        # Captured decodes by batch size, and the split length that each has on the device.
        self._graph_steps: dict[int, StepMetadata] = {}
        self._graph_split_lens: dict[int, int] = {}
        self._graph_extends: dict[int, GraphExtend] = {}  # by number of tokens

    # --- metadata

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan the step from the host's copies of the lengths. No device synchronisation."""
        if forward_batch.forward_mode.is_idle() or forward_batch.batch_size == 0:
            self.forward_metadata = StepMetadata()
        elif forward_batch.forward_mode.is_decode():
            self.forward_metadata = StepMetadata(decode=build_decode_metadata(forward_batch))
        else:
            extend = build_extend_metadata(forward_batch)
            decode = None
            if extend.num_decodes:
                first = forward_batch.batch_size - extend.num_decodes
                decode = build_decode_metadata(forward_batch, first)
            self.forward_metadata = StepMetadata(decode, extend)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Forget earlier captures. A capture reads the rows and lengths that it is given where they are."""
        self._graph_steps = {}
        self._graph_split_lens = {}

    def init_forward_metadata_capture_cuda_graph(
        self,
        bs: int,
        num_tokens: int,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None,
        forward_mode: ForwardMode,
        spec_info: Any,
    ) -> None:
        """Lay out a decode of `bs` requests whose grid suits any lengths. The graph will read the tensors given here."""
        if not forward_mode.is_decode() or spec_info is not None:
            raise ValueError(
                f"the triton attention backend captures plain decodes only, not {forward_mode.name}"
            )
        longest = np.full(bs, self.max_context_len)
        num_splits = plan.count_graph_splits(bs, self.num_kv_heads, self.num_processors)
        split_len = torch.zeros(1, dtype=torch.int32, device=self.device)
        decode = DecodeMetadata(req_pool_indices[:bs], seq_lens[:bs], longest)
        decode.splits[-1, 0, False] = Splits(num_splits, split_len)
        if encoder_lens is not None:
            decode.encoder_lens = encoder_lens[:bs]
            decode.encoder_lens_cpu = longest
            decode.splits[-1, 0, True] = decode.splits[-1, 0, False]
        self._graph_steps[bs] = StepMetadata(decode)
        self._graph_split_lens.pop(bs, None)  # of a buffer that an earlier layout of this size had
        self._update_graph_step(bs, req_pool_indices, seq_lens, encoder_lens, longest)

    def init_forward_metadata_replay_cuda_graph(
        self,
        bs: int,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_sum: int,
        encoder_lens: torch.Tensor | None,
        forward_mode: ForwardMode,
        spec_info: Any,
        seq_lens_cpu: torch.Tensor | None,
    ) -> None:
        """Write this step's rows, lengths and split length to the buffers of the graph."""
        lens = np.full(bs, self.max_context_len)
        # An encoder's lengths are not known here, so its decodes keep the plan that suits all.
        if seq_lens_cpu is not None and encoder_lens is None:
            lens = seq_lens_cpu[:bs].numpy()
        self._update_graph_step(bs, req_pool_indices, seq_lens, encoder_lens, lens)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1

    def _update_graph_step(
        self,
        bs: int,
        rows: torch.Tensor,
        lens: torch.Tensor,
        encoder_lens: torch.Tensor | None,
        lens_cpu: np.ndarray,
    ) -> None:
        step = self._graph_steps[bs]
        decode = step.decode
        assert decode is not None
        _refresh(decode.rows, rows[:bs])
        _refresh(decode.lens, lens[:bs])
        if encoder_lens is not None and decode.encoder_lens is not None:
            _refresh(decode.encoder_lens, encoder_lens[:bs])
        splits = decode.splits[-1, 0, False]
        planned = plan.plan_splits(lens_cpu, self.num_kv_heads, self.num_processors)
        split_len = plan.fit_splits(planned, splits.num_splits).split_len
        if self._graph_split_lens.get(bs) != split_len:  # it rarely changes
            splits.split_len.fill_(split_len)
            self._graph_split_lens[bs] = split_len
        self.forward_metadata = step

    # --- captured prefills

    def capture_extend(self, num_tokens: int, rows: torch.Tensor) -> None:
        """Lay out a prefill of `num_tokens` tokens of up to len(rows) - 2 requests; the graph reads `rows` int64 where they are."""
        step = build_graph_extend(num_tokens, rows)
        self._graph_extends[num_tokens] = step
        self.forward_metadata = StepMetadata(extend=step.metadata)

    def replay_extend(self, num_tokens: int, new_lens: list[int], prefix_lens: list[int]) -> None:
        """Write the lengths of this step's requests to the buffers of the graph."""
        step = self._graph_extends[num_tokens]
        update_graph_extend(step, np.asarray(new_lens), np.asarray(prefix_lens))
        self.forward_metadata = StepMetadata(extend=step.metadata)

    # --- forward

    def support_triton(self) -> bool:
        return True

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        call = TritonLayerCall(self, layer, forward_batch, kwargs)
        q, k = join_rope(q, k, layer, kwargs)
        if save_kv_cache:
            save_new(k, v, layer, forward_batch)
        return call.decode(q).flatten(1)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        call = TritonLayerCall(self, layer, forward_batch, kwargs)
        q, k = join_rope(q, k, layer, kwargs)
        if save_kv_cache:
            save_new(k, v, layer, forward_batch)
        return call.extend(q, k, v).flatten(1)

    def find_splits(
        self, decode: DecodeMetadata, window: int, chunk: int, is_cross: bool
    ) -> Splits:
        """The splits of layers with this window and chunk; planned once per step."""
        key = (window, chunk, is_cross)
        if key not in decode.splits:
            # Of encoder tokens all count, where a request sees a part of them: a split may then have no keys.
            lens = decode.encoder_lens_cpu if is_cross else decode.lens_cpu
            assert lens is not None, "cross-attention needs encoder_lens_cpu"
            visible = lens if window <= 0 else np.minimum(lens, window + 1)
            visible = visible if chunk <= 0 else np.minimum(visible, chunk)
            planned = plan.plan_splits(visible, self.num_kv_heads, self.num_processors)
            split_len = torch.full((1,), planned.split_len, dtype=torch.int32, device=self.device)
            decode.splits[key] = Splits(planned.num_splits, split_len)
        return decode.splits[key]


def _refresh(static: torch.Tensor, current: torch.Tensor) -> None:
    """Bring a tensor that a graph reads up to date, unless the caller has written it in place."""
    if static.data_ptr() != current.data_ptr():
        static.copy_(current)
