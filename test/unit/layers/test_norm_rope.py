"""Norm, rotation and cache write in one go on a CPU against the separate layers."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.norm_rope import norm_rope_and_store
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.models.utils import apply_qk_norm

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 32, 5
SIZES = [HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM]


TEXT = torch.tensor([3, 4, 5, 0, 40])
# Time, height and width of a picture's tokens between text.
AXES = torch.tensor([[3, 4, 4, 4, 40], [3, 4, 5, 4, 40], [3, 4, 4, 21, 40]])
TURNED = {"mrope_section": [6, 5, 5]}
ROPES = {
    "one position": (TEXT, None),
    "three positions": (AXES, TURNED),
    "three positions, interleaved": (AXES, TURNED | {"mrope_interleaved": True}),
    "three positions, text": (TEXT, TURNED),
}


class _Layer:
    """One layer's parts with random norms; `qkv` is what its projection gave."""

    def __init__(self, dtype: torch.dtype, with_norm: bool, rope: str = "one position") -> None:
        torch.manual_seed(0)
        self.attn = RadixAttention(HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=0)
        self.positions, scaling = ROPES[rope]
        self.rope = get_rope(DIM, DIM, 64, 10000.0, rope_scaling=scaling)
        self.norms = (None, None)
        if with_norm:
            self.norms = tuple(RMSNorm(DIM).to(dtype) for _ in range(2))
            for norm in self.norms:
                norm.weight.data.normal_(1.0, 0.3)
        self.qkv = torch.randn(TOKENS, sum(SIZES)).to(dtype)
        self.pool = MHATokenToKVPool(16, 1, dtype, KV_HEADS, DIM, 1, "cpu")
        self.batch = ForwardBatch(
            ForwardMode.EXTEND,
            token_to_kv_pool=self.pool,
            out_cache_loc=torch.tensor([2, 9, 4, 11, 1]),
        )

    def run(self, q, k, v) -> bool:
        parts = (self.attn, self.batch, self.rope, *self.norms)
        return norm_rope_and_store(self.positions, q, k, v, *parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("rope", ROPES)
def test_equals_the_separate_layers(dtype, with_norm, rope):
    layer = _Layer(dtype, with_norm, rope)
    q, k, v = layer.qkv.float().split(SIZES, dim=-1)
    if with_norm:
        q, k = apply_qk_norm(q, k, *(norm.float() for norm in layer.norms), DIM)
        layer = _Layer(dtype, with_norm, rope)
    q, k = layer.rope(layer.positions, q, k)
    got_q, got_k, got_v = layer.qkv.clone().split(SIZES, dim=-1)
    assert layer.run(got_q, got_k, got_v)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got_q.float(), q, rtol=2 * eps, atol=2 * eps)
    torch.testing.assert_close(got_k.float(), k, rtol=2 * eps, atol=2 * eps)
    slots = layer.batch.out_cache_loc
    assert torch.equal(layer.pool.get_key_buffer(0)[slots].flatten(1), got_k)
    assert torch.equal(layer.pool.get_value_buffer(0)[slots].flatten(1), v.to(dtype))


def test_layers_share_the_rows_of_a_step():
    """Other positions, and another forward of the same batch, have rows of their own."""
    layer = _Layer(torch.bfloat16, False, "three positions")
    table, rows = layer.rope.table_of(AXES, layer.batch)
    assert table.is_contiguous() and rows.tolist() == list(range(TOKENS))
    again, _ = layer.rope.table_of(AXES, layer.batch)
    assert again is table
    other, _ = layer.rope.table_of(AXES + 1, layer.batch)
    assert not torch.equal(other, table)
    layer.batch.rope_tables.clear()
    assert layer.rope.table_of(AXES, layer.batch)[0] is not table


def test_a_model_runs_with_rows_of_its_own():
    """What a graph captures begins without the rows of the run before it."""
    seen = []

    class Model:
        def forward(self, ids, positions, batch):
            seen.append(dict(batch.rope_tables))
            batch.rope_tables["rotary module"] = (positions,)

    runner = ModelRunner.__new__(ModelRunner)
    runner.model, runner._wants_pp_proxy = Model(), False
    batch = ForwardBatch(ForwardMode.DECODE, positions=TEXT)
    runner._run_model(batch)
    runner._run_model(batch)
    assert seen == [{}, {}]


def test_float32_and_separate_tensors_go_layer_by_layer():
    layer = _Layer(torch.float32, True)
    assert not layer.run(*layer.qkv.split(SIZES, dim=-1))
    layer = _Layer(torch.bfloat16, True)
    q, k, v = (part.contiguous() for part in layer.qkv.split(SIZES, dim=-1))
    kept = q.clone()
    assert not layer.run(q, k, v) and torch.equal(q, kept)
    assert not layer.pool.get_key_buffer(0).any()
