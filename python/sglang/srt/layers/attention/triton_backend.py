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
from sglang.srt.layers.attention.long_prompt import attend_long_prompt, suits_long_prompt
from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.decode import DecodeOptions, decode_attention
from sglang.srt.layers.attention.triton_ops.extend import (
    ExtendBatch,
    ExtendOptions,
    count_tile_tokens,
    extend_attention,
)
from sglang.srt.layers.attention.triton_ops.graph_extend import (
    GraphExtend,
    build_graph_extend,
    update_graph_extend,
)
from sglang.srt.layers.attention.triton_ops.metadata import (
    DecodeMetadata,
    ExtendMetadata,
    Splits,
    StepMetadata,
    build_cross_metadata,
    build_decode_metadata,
    build_extend_metadata,
    find_tiles,
)
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.utils.upload import upload

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
        call = _LayerCall(self, layer, forward_batch, kwargs)
        q, k = call.join_rope(q, k)
        if k is not None and v is not None and save_kv_cache:
            call.save(k, v)
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
        call = _LayerCall(self, layer, forward_batch, kwargs)
        q, k = call.join_rope(q, k)
        if k is not None and v is not None and save_kv_cache:
            call.save(k, v)
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


class _LayerCall:
    """One layer's attention in one step."""

    def __init__(
        self,
        backend: TritonAttnBackend,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        kwargs: dict[str, Any],
    ) -> None:
        assert backend.forward_metadata is not None, "init_forward_metadata was not called"
        self.backend = backend
        self.metadata = backend.forward_metadata
        self.layer = layer
        self.batch = forward_batch
        self.sinks: torch.Tensor | None = kwargs.pop("sinks", None)
        self.q_rope: torch.Tensor | None = kwargs.pop("q_rope", None)
        self.k_rope: torch.Tensor | None = kwargs.pop("k_rope", None)
        unknown = [name for name, value in kwargs.items() if value is not None]
        if unknown:
            raise ValueError(
                f"the triton attention backend does not support {', '.join(unknown)}; choose "
                "--attention-backend torch_native"
            )
        if layer.xai_temperature_len > 0:
            raise ValueError("the triton attention backend has no xai_temperature_len")
        if layer.use_irope and backend.attention_chunk_size is None:
            raise ValueError("use_irope needs attention_chunk_size in the model config")
        self.is_encoder = layer.attn_type == AttentionType.ENCODER_ONLY
        # Encoder tokens have no order that a window could count in.
        has_order = not (self.is_encoder or layer.is_cross_attention)
        self.window = (layer.sliding_window_size or -1) if has_order else -1
        self.chunk = (backend.attention_chunk_size or 0) if has_order and layer.use_irope else 0

    def join_rope(
        self, q: torch.Tensor, k: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """q as [T, H, d]; rotary parts that come apart are joined to q and k."""
        layer, num_heads = self.layer, self.layer.tp_q_head_num
        if self.q_rope is not None:
            parts = [x.reshape(len(x), num_heads, -1) for x in (q, self.q_rope)]
            q = torch.cat(parts, dim=-1)
        if self.k_rope is not None and k is not None:
            k_rope = self.k_rope.reshape(len(k), layer.tp_k_head_num, -1)
            k = torch.cat([k, k_rope], dim=-1)
        return q.reshape(-1, num_heads, layer.qk_head_dim), k

    def save(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write new keys and values to their slots."""
        layer, batch = self.layer, self.batch
        if self.is_encoder:
            return
        loc = batch.encoder_out_cache_loc if layer.is_cross_attention else batch.out_cache_loc
        if _is_scaled(self._buffers()[0]):
            batch.token_to_kv_pool.set_kv_buffer(layer, loc, k, v, layer.k_scale, layer.v_scale)
        else:
            batch.token_to_kv_pool.set_kv_buffer(layer, loc, k, v)

    def decode(self, q: torch.Tensor) -> torch.Tensor:
        """q [B, H, d] -> [B, H, d_v], from the pool alone."""
        decode = self.metadata.decode
        assert decode is not None, "the metadata is not that of a decode"
        is_cross = self.layer.is_cross_attention
        splits = self.backend.find_splits(decode, self.window, self.chunk, is_cross)
        keys, values = self._buffers()
        k_scale, v_scale = self._scales(keys)
        lens: torch.Tensor | None = decode.lens
        offsets = decode.encoder_lens
        if is_cross:
            lens = decode.encoder_lens if decode.view_lens is None else decode.view_lens
            offsets = decode.view_starts
        assert lens is not None, "cross-attention needs encoder_lens"
        return decode_attention(
            q,
            keys,
            values,
            self.batch.req_to_token_pool.req_to_token,
            decode.rows,
            lens,
            offsets,
            splits.num_splits,
            splits.split_len,
            DecodeOptions(
                self.layer.scaling,
                self.layer.logit_cap or 0.0,
                self.window,
                self.chunk,
                self.sinks,
                k_scale,
                v_scale,
            ),
        )

    def extend(
        self, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
    ) -> torch.Tensor:
        """q [T, H, d] and fresh k, v [T, K, d] -> [T, H, d_v]."""
        extend = self.metadata.extend
        assert extend is not None, "the metadata is not that of an extend"
        if self.layer.is_cross_attention:
            if extend.cross is None:
                extend.cross = build_cross_metadata(self.batch, extend)
            return self._extend_tiles(q, None, None, extend.cross, None, with_decodes=True)
        spans = self._spans(extend, len(q))
        splits_off = extend.num_decodes and not self.is_encoder
        if not splits_off or spans is not None or self.metadata.custom_mask is not None:
            return self._extend_tiles(q, k, v, extend, spans, with_decodes=True)
        out = self._extend_tiles(q, k, v, extend, spans, with_decodes=False)
        num_decodes = extend.num_decodes
        out[-num_decodes:] = self.decode(q[-num_decodes:])
        return out

    def _extend_tiles(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        extend: ExtendMetadata,
        spans: torch.Tensor | None,
        with_decodes: bool,
    ) -> torch.Tensor:
        layer, metadata = self.layer, self.metadata
        if k is not None and v is not None and self._is_long_prompt(extend, q):
            return attend_long_prompt(q, k, v, layer.scaling)
        is_cross = layer.is_cross_attention
        is_causal = not (self.is_encoder or is_cross)
        new = None if k is None or v is None else (k, v)
        has_pool = not (self.is_encoder and new is not None)
        pool = self._buffers() if has_pool else None
        k_scale, v_scale = self._scales(pool[0]) if pool is not None else (1.0, 1.0)
        group = layer.tp_q_head_num // layer.tp_k_head_num
        most = int(extend.new_lens_cpu.max()) * group
        config = plan.extend_config(most, layer.qk_head_dim, layer.v_head_dim, q.element_size())
        return extend_attention(
            q,
            new,
            pool,
            self._extend_batch(extend, new is not None, has_pool),
            find_tiles(extend, count_tile_tokens(group, config), with_decodes),
            ExtendOptions(
                layer.scaling,
                layer.logit_cap or 0.0,
                self.window,
                self.chunk,
                self.sinks,
                k_scale,
                v_scale,
                is_causal=is_causal,
                spans=spans,
                mask=metadata.custom_mask if is_causal else None,
                mask_starts=metadata.mask_indptr,
            ),
            config,
        )

    def _is_long_prompt(self, extend: ExtendMetadata, q: torch.Tensor) -> bool:
        """One whole prompt without options, long enough for torch's fused attention to be faster?"""
        layer = self.layer
        is_plain = (
            layer.attn_type == AttentionType.DECODER
            and not layer.is_cross_attention
            and self.sinks is None
            and not layer.logit_cap
            and self.chunk == 0
            and (self.window <= 0 or self.window >= len(q))
            and self.metadata.custom_mask is None
            and layer.v_head_dim == layer.qk_head_dim
        )
        is_one = len(extend.new_lens_cpu) == 1 and extend.prefix_lens_cpu[0] == 0
        return is_plain and is_one and suits_long_prompt(q)

    def _extend_batch(self, extend: ExtendMetadata, has_new: bool, has_pool: bool) -> ExtendBatch:
        bases, pool_lens = extend.prefix_lens, extend.prefix_lens
        offsets = extend.encoder_lens
        if self.layer.is_cross_attention:
            pool_lens = extend.seq_lens
        elif not has_pool:
            bases = pool_lens = extend.zeros
        elif not has_new:
            pool_lens = extend.seq_lens
        return ExtendBatch(
            self.batch.req_to_token_pool.req_to_token if has_pool else None,
            extend.starts if extend.rows is None else extend.rows,
            extend.starts,
            extend.new_lens,
            bases,
            pool_lens,
            offsets if has_pool else None,
        )

    def _spans(self, extend: ExtendMetadata, num_tokens: int) -> torch.Tensor | None:
        """The image span that each token is in, int32 [T, 2]; None where no span matters."""
        spans = self.batch.bidirectional_spans
        is_wanted = self.layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL
        if not is_wanted or spans is None or not any(spans):
            return None
        if extend.spans is None:
            table = np.zeros((num_tokens, 2), np.int32)
            row = 0
            for i, request_spans in enumerate(spans):
                num_new, prefix = int(extend.new_lens_cpu[i]), int(extend.prefix_lens_cpu[i])
                for first, last in request_spans:
                    begin, end = max(first - prefix, 0), min(last - prefix, num_new)
                    if begin < end:
                        table[row + begin : row + end] = first, last
                row += num_new
            extend.spans = upload(table, torch.int32, self.backend.device)
        return extend.spans

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        pool, layer_id = self.batch.token_to_kv_pool, self.layer.layer_id
        return pool.get_key_buffer(layer_id), pool.get_value_buffer(layer_id)

    def _scales(self, keys: torch.Tensor) -> tuple[float, float]:
        """Factors of stored keys and values; those of a floating point pool are stored as they are."""
        if not _is_scaled(keys):
            return 1.0, 1.0
        k_scale, v_scale = self.layer.k_scale_float, self.layer.v_scale_float
        return (1.0 if k_scale is None else k_scale), (1.0 if v_scale is None else v_scale)


def _refresh(static: torch.Tensor, current: torch.Tensor) -> None:
    """Bring a tensor that a graph reads up to date, unless the caller has written it in place."""
    if static.data_ptr() != current.data_ptr():
        static.copy_(current)


def _is_scaled(buffer: torch.Tensor) -> bool:
    return buffer.element_size() == 1
