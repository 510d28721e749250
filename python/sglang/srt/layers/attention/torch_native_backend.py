"""Attention in plain torch: the oracle of every other backend, and the backend of a CPU.

Per request: gather its keys and values from the pool by the row table, then `attend`. Requests are
handled one after the other, so that gathered keys are still in the processor's cache when they are
used. Two shorter ways, with the same result: on a CPU plain causal attention reads the pool in place
(`torch_runs`), and short decodes are padded into one call. Legend: T tokens, B requests, H query heads, K
kv heads, d head dim, n new tokens of a request, m its keys.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.layers.attention.attention_kind import ROPE_PARTS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.fp8_reads import as_stored, decoded
from sglang.srt.layers.attention.layer_inputs import (
    check_layer,
    join_rope,
    pool_buffers,
    save_new,
)
from sglang.srt.layers.attention.torch_metadata import RequestSpan, StepMetadata
from sglang.srt.layers.attention.torch_ops import AttendOptions, attend
from sglang.srt.layers.attention.torch_runs import PoolHeads, Slots
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

# A decode whose keys and values take at most so many bytes in one layer, padded, is one call: then calls
# cost more than the padding and the keys stay in the processor's cache anyway.
_MAX_PADDED_BYTES = 1 << 22
_MAX_PADDED_BYTES_PER_REQUEST = 192 << 10
# Query rows per call where a mask is needed; bounds the mask.
_MASKED_ROWS = 1024
# Masks of at most so many elements are kept for the other layers of the step.
_MAX_KEPT_MASK = 1 << 22
# Keywords of layers; the first are fields of `AttendOptions`, in their order.
_SCORE_OPTIONS = ("sinks", "alibi_slopes", "block_sparse")
_KEYWORDS = (*_SCORE_OPTIONS, *ROPE_PARTS)


class TorchNativeAttnBackend(AttentionBackend):
    """See the module docstring. Supports windows, logit caps, sinks, cross-attention and shared
    caches.

    `attention_chunk_size`: width of the chunks of layers with `use_irope`.
    """

    def __init__(self, attention_chunk_size: int | None = None) -> None:
        self.attention_chunk_size = attention_chunk_size
        self.forward_metadata: StepMetadata | None = None
        self._heads_by_layer: dict[int, PoolHeads] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Start a step. No device synchronisation on a GPU, here or later."""
        self.forward_metadata = StepMetadata(forward_batch)

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
        q, k, options = self._prepare(q, k, layer, kwargs)
        metadata = self._metadata()
        if not _is_padding_cheaper(metadata.num_padded, len(q), layer, q.dtype):
            return self._forward_spans(q, k, v, layer, forward_batch, save_kv_cache, options)
        padded = metadata.padded
        if save_kv_cache:
            save_new(k, v, layer, forward_batch)
        keys, values = pool_buffers(layer, forward_batch)
        num_requests, shape = q.shape[0], (q.shape[0], -1)
        visible = padded.visible(layer.sliding_window_size)
        out = attend(
            q.unsqueeze(1),
            decoded(keys.index_select(0, padded.slots), q.dtype, layer.k_scale_float).view(
                *shape, *keys.shape[1:]
            ),
            decoded(values.index_select(0, padded.slots), q.dtype, layer.v_scale_float).view(
                *shape, *values.shape[1:]
            ),
            options,
            mask=visible,
        )
        return out.reshape(num_requests, -1)

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
        q, k, options = self._prepare(q, k, layer, kwargs)
        return self._forward_spans(q, k, v, layer, forward_batch, save_kv_cache, options)

    def _prepare(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        layer: RadixAttention,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None, AttendOptions]:
        """q as [T, H, d], with the parts of split rotary heads joined; refuses what is not
        implemented."""
        check_layer("torch_native", layer, kwargs, _KEYWORDS, self.attention_chunk_size)
        q, k = join_rope(q, k, layer, kwargs)
        extras = (kwargs.get(name) for name in _SCORE_OPTIONS)
        return q, k, AttendOptions(layer.scaling, layer.logit_cap or 0.0, *extras)

    def _forward_spans(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
        options: AttendOptions,
    ) -> torch.Tensor:
        """One request after the other. q [T, H, d] -> [T, H * d_v]."""
        if k is not None and v is not None and save_kv_cache:
            save_new(k, v, layer, forward_batch)
            k, v = as_stored(k, v, layer, forward_batch.token_to_kv_pool)
        metadata = self._metadata()
        if k is not None and v is not None and _can_read_runs(q, layer, forward_batch, options):
            runs, window = metadata.runs, layer.sliding_window_size or -1
            if window <= 0 or runs.longest <= window + 1:
                heads = self._pool_heads(layer, forward_batch)
                return runs.attend(q, (k, v), heads, options.scale)
        out = q.new_empty(q.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        call = _LayerCall(self, metadata, layer, forward_batch, options)
        for span in metadata.spans:
            rows = slice(span.row, span.row + span.num_new)
            fresh_k = None if k is None or layer.is_cross_attention else k[rows]
            fresh_v = None if v is None or layer.is_cross_attention else v[rows]
            call.attend_span(span, q[rows], fresh_k, fresh_v, out[rows])
        return out.flatten(1)

    def _pool_heads(self, layer: RadixAttention, forward_batch: ForwardBatch) -> PoolHeads:
        keys, values = pool_buffers(layer, forward_batch)
        heads = self._heads_by_layer.get(layer.layer_id)
        if heads is None or heads.rows[0] is not keys:
            heads = PoolHeads(keys, values, layer.tp_q_head_num)
            self._heads_by_layer[layer.layer_id] = heads
        return heads

    def _metadata(self) -> StepMetadata:
        assert self.forward_metadata is not None, "init_forward_metadata was not called"
        return self.forward_metadata


class _LayerCall:
    """One layer's attention in one step."""

    def __init__(
        self,
        backend: TorchNativeAttnBackend,
        metadata: StepMetadata,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        options: AttendOptions,
    ) -> None:
        self.metadata = metadata
        self.layer = layer
        self.forward_batch = forward_batch
        self.options = options
        self.window = layer.sliding_window_size or -1
        self.chunk = backend.attention_chunk_size if layer.use_irope else None

    def attend_span(
        self,
        span: RequestSpan,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """q [n, H, d] and fresh k, v [n, K, d] of one request; writes out [n, H, d_v]."""
        if self.layer.is_cross_attention:
            self._attend_encoder(span, q, out)
        elif self.layer.attn_type == AttentionType.ENCODER_ONLY:
            keys, values = (k, v) if k is not None else self._gather(span.slots, 0, span.seq_len, q)
            self._write(out, q, keys, values)
        elif span.num_new == 1 and not self._bidirectional(span):
            first = self._first_visible(span.prefix_len)
            self._write(out, q, *self._gather(span.slots, first, span.seq_len, q))
        elif self._sees_only_fresh(span, k):
            self._write(out, q, k, v, is_causal=True)
        else:
            self._attend_masked(span, q, k, v, out)

    def _sees_only_fresh(self, span: RequestSpan, k: torch.Tensor | None) -> bool:
        """A whole prompt within one window: plain causal attention over the tensors at hand."""
        fits_window = self.window <= 0 or span.seq_len <= self.window + 1
        fits_chunk = self.chunk is None or span.seq_len <= self.chunk
        has_all = k is not None and span.prefix_len == 0
        return has_all and fits_window and fits_chunk and not self._bidirectional(span)

    def _attend_encoder(self, span: RequestSpan, q: torch.Tensor, out: torch.Tensor) -> None:
        for first, end, low, high in span.encoder_views:
            if span.encoder_slots is None or low == high:
                out[first:end] = 0  # no encoder tokens, or none before these tokens
                continue
            keys, values = self._gather(span.encoder_slots, low, high, q)
            self._write(out[first:end], q[first:end], keys, values)

    def _attend_masked(
        self,
        span: RequestSpan,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Blocks of query rows, each over the keys that some row of it sees."""
        if k is not None and v is not None and span.prefix_len == 0:
            keys, values, offset = k, v, 0
        else:
            offset = self._first_key(span, 0)
            keys, values = self._gather(span.slots, offset, span.seq_len, q)
        for start in range(0, span.num_new, _MASKED_ROWS):
            end = min(start + _MASKED_ROWS, span.num_new)
            low = self._first_key(span, start)
            spans = self._bidirectional(span)
            high = span.seq_len if spans else span.prefix_len + end
            mask = self._mask(span, start, end, low, high, q.device)
            part = slice(low - offset, high - offset)
            self._write(out[start:end], q[start:end], keys[part], values[part], mask=mask)

    def _first_key(self, span: RequestSpan, row: int) -> int:
        """The first key position that query row `row` or a later one of the request may see."""
        first = self._first_visible(span.prefix_len + row)
        starts = [start for start, _ in self._bidirectional(span)]
        return min([first, *starts])

    def _first_visible(self, position: int) -> int:
        """The first key position that a query at `position` sees."""
        first = 0
        if self.window > 0:
            first = max(first, position - self.window)
        if self.chunk is not None:
            first = max(first, position // self.chunk * self.chunk)
        return first

    def _bidirectional(self, span: RequestSpan) -> list[tuple[int, int]]:
        if self.layer.attn_type != AttentionType.DECODER_BIDIRECTIONAL:
            return []
        return span.bidirectional

    def _mask(
        self,
        span: RequestSpan,
        start: int,
        end: int,
        low: int,
        high: int,
        device: torch.device,
    ) -> torch.Tensor:
        """Visibility [1, rows, keys] of keys low .. high for query rows start .. end."""
        spans = self._bidirectional(span)
        key = (span.row, start, low, high, self.window, self.chunk or 0, len(spans))
        if key in self.metadata.masks:
            return self.metadata.masks[key]
        query = torch.arange(span.prefix_len + start, span.prefix_len + end, device=device)[:, None]
        keys = torch.arange(low, high, device=device)[None, :]
        visible = keys <= query
        if self.window > 0:
            visible &= keys >= query - self.window
        if self.chunk is not None:
            visible &= keys >= query // self.chunk * self.chunk
        for first, last in spans:
            visible |= ((query >= first) & (query < last)) & ((keys >= first) & (keys < last))
        visible = visible.unsqueeze(0)
        if visible.numel() <= _MAX_KEPT_MASK:
            self.metadata.masks[key] = visible
        return visible

    def _gather(
        self, slots: Slots, start: int, end: int, q: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [m, K, d] and values [m, K, d_v] of the positions start .. end, in the dtype of
        q."""
        keys, values = pool_buffers(self.layer, self.forward_batch)
        if isinstance(slots, slice):
            run = slice(slots.start + start, slots.start + end)
            keys, values = keys[run], values[run]
        else:
            part = slots[start:end]
            keys, values = keys.index_select(0, part), values.index_select(0, part)
        layer = self.layer
        return (
            decoded(keys, q.dtype, layer.k_scale_float),
            decoded(values, q.dtype, layer.v_scale_float),
        )

    def _write(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> None:
        assert k is not None and v is not None, "keys and values come together"
        out.copy_(attend(q[None], k[None], v[None], self.options, mask, is_causal)[0])


def _can_read_runs(
    q: torch.Tensor, layer: RadixAttention, batch: ForwardBatch, options: AttendOptions
) -> bool:
    """Whether torch's fused attention can have this layer's keys as they lie in the pool, beside new ones."""
    is_causal = layer.attn_type == AttentionType.DECODER or (
        layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL and not batch.bidirectional_spans
    )
    is_plain = is_causal and options.is_plain
    if not (is_plain and q.is_cpu) or layer.is_cross_attention or layer.use_irope:
        return False
    if batch.encoder_lens_cpu is not None:
        return False
    same_dims = layer.qk_head_dim == layer.v_head_dim
    return same_dims and batch.token_to_kv_pool.get_key_buffer(layer.layer_id).dtype == q.dtype


def _is_padding_cheaper(
    num_padded: int, num_requests: int, layer: RadixAttention, dtype: torch.dtype
) -> bool:
    if num_padded == 0 or layer.is_cross_attention or layer.use_irope:
        return False
    slot_bytes = layer.tp_k_head_num * (layer.qk_head_dim + layer.v_head_dim) * dtype.itemsize
    limit = min(_MAX_PADDED_BYTES, num_requests * _MAX_PADDED_BYTES_PER_REQUEST)
    return num_padded * slot_bytes <= limit
