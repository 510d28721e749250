"""What the Triton backend does for one layer: which kernel, over which keys, with which options.

Legend: T tokens, B requests, H query heads, K kv heads, d head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sglang.srt.layers.attention.attention_kind import ROPE_PARTS
from sglang.srt.layers.attention.layer_inputs import check_layer, pool_buffers
from sglang.srt.layers.attention.long_prompt import attend_long_prompt, suits_long_prompt
from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.decode import DecodeOptions, decode_attention
from sglang.srt.layers.attention.triton_ops.extend import (
    ExtendBatch,
    ExtendOptions,
    count_tile_tokens,
    extend_attention,
)
from sglang.srt.layers.attention.triton_ops.metadata import (
    ExtendMetadata,
    build_cross_metadata,
    find_tiles,
)
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.utils.upload import upload

if TYPE_CHECKING:
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

_KEYWORDS = ("sinks", *ROPE_PARTS)


class TritonLayerCall:
    """One layer in one step, whose metadata the backend has. Raises ValueError for what the kernels do not do."""

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
        check_layer("triton", layer, kwargs, _KEYWORDS, backend.attention_chunk_size)
        self.sinks: torch.Tensor | None = kwargs.get("sinks")
        self.is_encoder = layer.attn_type == AttentionType.ENCODER_ONLY
        # Encoder tokens have no order that a window could count in.
        has_order = not (self.is_encoder or layer.is_cross_attention)
        self.window = (layer.sliding_window_size or -1) if has_order else -1
        self.chunk = (backend.attention_chunk_size or 0) if has_order and layer.use_irope else 0

    def decode(self, q: torch.Tensor) -> torch.Tensor:
        """q [B, H, d] -> [B, H, d_v], from the pool alone."""
        decode = self.metadata.decode
        assert decode is not None, "the metadata is not that of a decode"
        is_cross = self.layer.is_cross_attention
        splits = self.backend.find_splits(decode, self.window, self.chunk, is_cross)
        keys, values = pool_buffers(self.layer, self.batch)
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
        pool = pool_buffers(self.layer, self.batch) if has_pool else None
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

    def _scales(self, keys: torch.Tensor) -> tuple[float, float]:
        """Factors of stored keys and values; those of a floating point pool are stored as they are."""
        if keys.element_size() > 1:
            return 1.0, 1.0
        k_scale, v_scale = self.layer.k_scale_float, self.layer.v_scale_float
        return (1.0 if k_scale is None else k_scale), (1.0 if v_scale is None else v_scale)
