"""Norm, rotation and cache write in one go on a CPU against the separate layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.norm_rope import norm_rope_and_store
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.models.utils import apply_qk_norm

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 32, 5
SIZES = [HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM]


class _Layer:
    """One layer's parts with random norms; `qkv` is what its projection gave."""

    def __init__(self, dtype: torch.dtype, with_norm: bool) -> None:
        torch.manual_seed(0)
        self.attn = RadixAttention(HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=0)
        self.rope = get_rope(DIM, DIM, 64, 10000.0)
        self.norms = (None, None)
        if with_norm:
            self.norms = tuple(RMSNorm(DIM).to(dtype) for _ in range(2))
            for norm in self.norms:
                norm.weight.data.normal_(1.0, 0.3)
        self.qkv = torch.randn(TOKENS, sum(SIZES)).to(dtype)
        self.positions = torch.tensor([3, 4, 5, 0, 40])
        self.pool = MHATokenToKVPool(16, 1, dtype, KV_HEADS, DIM, 1, "cpu")
        self.batch = SimpleNamespace(
            token_to_kv_pool=self.pool, out_cache_loc=torch.tensor([2, 9, 4, 11, 1])
        )

    def run(self, q, k, v) -> bool:
        parts = (self.attn, self.batch, self.rope, *self.norms)
        return norm_rope_and_store(self.positions, q, k, v, *parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_norm", [False, True])
def test_equals_the_separate_layers(dtype, with_norm):
    layer = _Layer(dtype, with_norm)
    q, k, v = layer.qkv.float().split(SIZES, dim=-1)
    if with_norm:
        q, k = apply_qk_norm(q, k, *(norm.float() for norm in layer.norms), DIM)
        layer = _Layer(dtype, with_norm)
    q, k = layer.rope(layer.positions, q, k)
    got_q, got_k, got_v = layer.qkv.clone().split(SIZES, dim=-1)
    assert layer.run(got_q, got_k, got_v)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got_q.float(), q, rtol=2 * eps, atol=2 * eps)
    torch.testing.assert_close(got_k.float(), k, rtol=2 * eps, atol=2 * eps)
    slots = layer.batch.out_cache_loc
    assert torch.equal(layer.pool.get_key_buffer(0)[slots].flatten(1), got_k)
    assert torch.equal(layer.pool.get_value_buffer(0)[slots].flatten(1), v.to(dtype))


def test_float32_and_separate_tensors_go_layer_by_layer():
    layer = _Layer(torch.float32, True)
    assert not layer.run(*layer.qkv.split(SIZES, dim=-1))
    layer = _Layer(torch.bfloat16, True)
    q, k, v = (part.contiguous() for part in layer.qkv.split(SIZES, dim=-1))
    kept = q.clone()
    assert not layer.run(q, k, v) and torch.equal(q, kept)
    assert not layer.pool.get_key_buffer(0).any()
