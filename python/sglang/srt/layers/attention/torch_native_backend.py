"""Attention in plain torch: the oracle of every other backend, and the backend of a CPU.

Per request: gather its keys and values from the pool by the row table, then `attend`. Requests are
handled one after the other, so that gathered keys are still in the processor's cache when they are
used. Two shorter ways, with the same result: on a CPU plain causal attention reads the pool in place
(`torch_runs`), and short decodes are padded into one call. Legend: T tokens, B requests, H query heads, K
kv heads, d head dim, n new tokens of a request, m its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.fp8_reads import as_stored, decoded
from sglang.srt.layers.attention.torch_ops import AttendOptions, attend
from sglang.srt.layers.attention.torch_runs import PoolHeads, RowSpan, StepRuns
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

# Slots of the pool: a slice where they are consecutive (read without a copy), else int32 [m].
Slots = slice | torch.Tensor


@dataclass
class RequestSpan:
    """One request of a step. Positions count the request's own tokens, without encoder tokens."""

    row: int  # first row of T
    num_new: int
    prefix_len: int
    slots: Slots  # of positions 0 .. prefix_len + num_new - 1
    encoder_slots: Slots | None = None
    # (first, end, low, high): new tokens first .. end - 1 see encoder tokens low .. high - 1.
    encoder_views: list[tuple[int, int, int, int]] = field(default_factory=list)
    bidirectional: list[tuple[int, int]] = field(default_factory=list)

    @property
    def seq_len(self) -> int:
        return self.prefix_len + self.num_new


@dataclass
class PaddedDecode:
    """All requests of a short decode in one rectangle. `slots` int32 [B * m], `visible` bool [B, 1,
    m]."""

    slots: torch.Tensor
    lens: torch.Tensor  # int64 [B, 1]
    positions: torch.Tensor  # int64 [1, m]
    visible: dict[int, torch.Tensor] = field(default_factory=dict)  # by window


class StepMetadata:
    """What the layers of one step share; each part is made when the first layer asks for it."""

    def __init__(self, batch: ForwardBatch) -> None:
        self._batch = batch
        self._spans: list[RequestSpan] | None = None
        self._padded: PaddedDecode | None = None
        self._runs: StepRuns | None = None
        self.num_padded = _count_padded(batch)  # slots of the rectangle, 0 where it is no use
        self.masks: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def spans(self) -> list[RequestSpan]:
        if self._spans is None:
            self._spans = _build_spans(self._batch)
        return self._spans

    @property
    def runs(self) -> StepRuns:
        """Only for tensors on a CPU."""
        if self._runs is None:
            self._runs = _build_runs(self._batch)
        return self._runs

    @property
    def padded(self) -> PaddedDecode:
        if self._padded is None:
            self._padded = _build_padded(self._batch)
        return self._padded


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
        if k is not None and v is not None and save_kv_cache:
            _save(k, v, layer, forward_batch)
        keys, values = _buffers(layer, forward_batch)
        num_requests, shape = q.shape[0], (q.shape[0], -1)
        visible = _padded_mask(padded, layer.sliding_window_size)
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
        sinks = kwargs.pop("sinks", None)
        slopes, pattern = kwargs.pop("alibi_slopes", None), kwargs.pop("block_sparse", None)
        q_rope, k_rope = kwargs.pop("q_rope", None), kwargs.pop("k_rope", None)
        unknown = [name for name, value in kwargs.items() if value is not None]
        if unknown:
            raise ValueError(f"the torch_native attention backend does not support {unknown}")
        if layer.xai_temperature_len > 0:
            raise ValueError("the torch_native attention backend has no xai_temperature_len")
        if layer.use_irope and self.attention_chunk_size is None:
            raise ValueError("use_irope needs attention_chunk_size in the model config")
        if q_rope is not None:
            q = torch.cat([q.view(len(q), layer.tp_q_head_num, -1), _heads_of(q_rope, layer)], -1)
        if k_rope is not None and k is not None:
            k = torch.cat([k, k_rope.view(len(k), layer.tp_k_head_num, -1)], dim=-1)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        return q, k, AttendOptions(layer.scaling, layer.logit_cap or 0.0, sinks, slopes, pattern)

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
            _save(k, v, layer, forward_batch)
            k, v = as_stored(k, v, layer, forward_batch.token_to_kv_pool)
        metadata = self._metadata()
        if _can_read_runs(q, k, v, layer, forward_batch, options):
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
        keys, values = _buffers(layer, forward_batch)
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
        keys, values = _buffers(self.layer, self.forward_batch)
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


def _build_spans(batch: ForwardBatch) -> list[RequestSpan]:
    assert batch.seq_lens_cpu is not None and batch.req_pool_indices is not None
    seq_lens: list[int] = batch.seq_lens_cpu.tolist()
    new_lens = _new_lens(batch)
    encoder_lens = batch.encoder_lens_cpu or [0] * len(seq_lens)
    longest = max(e + s for e, s in zip(encoder_lens, seq_lens, strict=True))
    table = _read_table(batch, longest)
    spans, row = [], 0
    for i, (seq_len, num_new, encoder_len) in enumerate(
        zip(seq_lens, new_lens, encoder_lens, strict=True)
    ):
        span = RequestSpan(
            row,
            num_new,
            seq_len - num_new,
            _compact(table[i, encoder_len : encoder_len + seq_len]),
            _compact(table[i, :encoder_len]) if encoder_len else None,
            [(0, num_new, 0, encoder_len)]
            if batch.encoder_views is None
            else batch.encoder_views[i],
        )
        if batch.bidirectional_spans is not None:
            span.bidirectional = batch.bidirectional_spans[i]
        spans.append(span)
        row += num_new
    return spans


def _can_read_runs(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: RadixAttention,
    batch: ForwardBatch,
    options: AttendOptions,
) -> bool:
    """Whether torch's fused attention can have this layer's keys as they lie in the pool."""
    is_causal = layer.attn_type == AttentionType.DECODER or (
        layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL and not batch.bidirectional_spans
    )
    is_plain = is_causal and options.is_plain
    if not (is_plain and q.is_cpu) or layer.is_cross_attention or layer.use_irope:
        return False
    if k is None or v is None or batch.encoder_lens_cpu is not None:
        return False
    same_dims = layer.qk_head_dim == layer.v_head_dim
    return same_dims and batch.token_to_kv_pool.get_key_buffer(layer.layer_id).dtype == q.dtype


def _build_runs(batch: ForwardBatch) -> StepRuns:
    assert batch.seq_lens_cpu is not None
    seq_lens: list[int] = batch.seq_lens_cpu.tolist()
    new_lens = _new_lens(batch)
    table = _read_table(batch, max(seq_lens)).numpy()
    spans, row = [], 0
    for i, (seq_len, num_new) in enumerate(zip(seq_lens, new_lens, strict=True)):
        spans.append(RowSpan(row, num_new, table[i, :seq_len]))
        row += num_new
    return StepRuns(spans)


def _new_lens(batch: ForwardBatch) -> list[int]:
    if batch.forward_mode.is_decode():
        return [1] * batch.batch_size
    assert batch.extend_seq_lens_cpu is not None, "an extend needs extend_seq_lens_cpu"
    return batch.extend_seq_lens_cpu


def _read_table(batch: ForwardBatch, longest: int) -> torch.Tensor:
    """Slots int32 [B, longest]; none for a model that keeps no cache."""
    if batch.req_to_token_pool is None:
        return torch.empty(batch.batch_size, 0, dtype=torch.int32)
    return batch.req_to_token_pool.req_to_token[batch.req_pool_indices, :longest]


def _compact(slots: torch.Tensor) -> Slots:
    """A slice when the slots are consecutive. Only asked on the host, where looking costs
    nothing."""
    length = slots.shape[0]
    if slots.device.type != "cpu" or length == 0:
        return slots
    first = int(slots[0])
    if int(slots[-1]) - first != length - 1:
        return slots
    is_run = bool((slots[1:] - slots[:-1] == 1).all())
    return slice(first, first + length) if is_run else slots


def _count_padded(batch: ForwardBatch) -> int:
    """Slots of the rectangle around all requests of a decode; 0 if it is mostly padding, or there is one request."""
    if not batch.forward_mode.is_decode() or batch.encoder_lens_cpu is not None:
        return 0
    assert batch.seq_lens_cpu is not None
    lens: list[int] = batch.seq_lens_cpu.tolist()
    size = max(lens, default=0) * len(lens)
    return size if len(lens) > 1 and 2 * sum(lens) >= size else 0


def _is_padding_cheaper(
    num_padded: int, num_requests: int, layer: RadixAttention, dtype: torch.dtype
) -> bool:
    if num_padded == 0 or layer.is_cross_attention or layer.use_irope:
        return False
    slot_bytes = layer.tp_k_head_num * (layer.qk_head_dim + layer.v_head_dim) * dtype.itemsize
    limit = min(_MAX_PADDED_BYTES, num_requests * _MAX_PADDED_BYTES_PER_REQUEST)
    return num_padded * slot_bytes <= limit


def _build_padded(batch: ForwardBatch) -> PaddedDecode:
    """The rectangle of a decode."""
    assert batch.seq_lens_cpu is not None and batch.seq_lens is not None
    longest = int(batch.seq_lens_cpu.max())
    table = _read_table(batch, longest)
    positions = torch.arange(longest, device=table.device)[None]
    seq_lens = batch.seq_lens[:, None]
    # Past the end of a request stands its own first slot: entries there may be stale.
    slots = torch.where(positions < seq_lens, table, table[:, :1])
    return PaddedDecode(slots.flatten(), seq_lens, positions)


def _padded_mask(padded: PaddedDecode, window: int | None) -> torch.Tensor:
    """Visibility [B, 1, m], computed once per window size and step."""
    window = window or -1
    if window not in padded.visible:
        visible = padded.positions < padded.lens
        if window > 0:
            visible &= padded.positions >= padded.lens - 1 - window
        padded.visible[window] = visible.unsqueeze(1)
    return padded.visible[window]


def _heads_of(x: torch.Tensor, layer: RadixAttention) -> torch.Tensor:
    return x.view(len(x), layer.tp_q_head_num, -1)


def _save(
    k: torch.Tensor, v: torch.Tensor, layer: RadixAttention, forward_batch: ForwardBatch
) -> None:
    """Write new keys and values to their slots."""
    if layer.attn_type == AttentionType.ENCODER_ONLY:
        return
    loc = forward_batch.out_cache_loc
    if layer.is_cross_attention:
        loc = forward_batch.encoder_out_cache_loc
    forward_batch.token_to_kv_pool.set_kv_buffer(layer, loc, k, v)


def _buffers(
    layer: RadixAttention, forward_batch: ForwardBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    pool = forward_batch.token_to_kv_pool
    return pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
