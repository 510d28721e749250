"""The torch attention backend against attention written out for one query at a time."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from triton_interpreter import ROOT

sys.path.insert(0, str(ROOT / "test" / "gpu"))

import attention_cases  # noqa: E402
from stale_cases import stale_cases  # noqa: E402

from sglang.srt.layers.attention import torch_native_backend, torch_ops  # noqa: E402
from sglang.srt.layers.attention.registry import (  # noqa: E402
    ATTENTION_BACKENDS,
    create_attention_backend,
    register_attention_backend,
)
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode  # noqa: E402

HEADS, KV_HEADS, DIM = 4, 2, 8
NUM_SLOTS, MAX_LEN = 256, 64


class Pool:
    """Keys and values of one layer."""

    def __init__(self, dim=DIM, v_dim=DIM, dtype=torch.float32):
        self.k = torch.zeros(NUM_SLOTS, KV_HEADS, dim, dtype=dtype)
        self.v = torch.zeros(NUM_SLOTS, KV_HEADS, v_dim, dtype=dtype)

    def set_kv_buffer(self, layer, loc, k, v):
        self.k[loc], self.v[loc] = k.to(self.k.dtype), v.to(self.v.dtype)

    def get_key_buffer(self, layer_id):
        return self.k

    def get_value_buffer(self, layer_id):
        return self.v


class World:
    """Requests with known keys and values, laid out in a pool; and the expected outputs."""

    def __init__(self, seq_lens, scattered=True, dtype=torch.float32, **layer):
        torch.manual_seed(sum(seq_lens))
        self.seq_lens = seq_lens
        self.dtype = dtype
        self.layer = RadixAttention(
            HEADS, DIM, layer.pop("scaling", DIM**-0.5), KV_HEADS, layer_id=0, **layer
        )
        self.pool = Pool(v_dim=self.layer.v_head_dim, dtype=dtype)
        self.table = torch.zeros(len(seq_lens), MAX_LEN, dtype=torch.int32)
        order = torch.randperm(NUM_SLOTS - 1) if scattered else torch.arange(NUM_SLOTS - 1)
        self.slots, used = [], 0
        self.k = [torch.randn(n, KV_HEADS, DIM, dtype=dtype) for n in seq_lens]
        self.v = [torch.randn(n, KV_HEADS, self.layer.v_head_dim, dtype=dtype) for n in seq_lens]
        self.q = [torch.randn(n, HEADS, DIM, dtype=dtype) for n in seq_lens]
        for row, length in enumerate(seq_lens):
            slots = (order[used : used + length] + 1).int()
            used += length
            self.table[row, :length] = slots
            self.slots.append(slots.long())

    def batch(self, prefix_lens, mode=ForwardMode.EXTEND, **fields):
        """Tokens from the prefix on are new; those before are in the pool."""
        for row, prefix in enumerate(prefix_lens):
            old = self.slots[row][:prefix]
            Pool.set_kv_buffer(self.pool, None, old, self.k[row][:prefix], self.v[row][:prefix])
        lens = [n - p for n, p in zip(self.seq_lens, prefix_lens, strict=True)]
        return ForwardBatch(
            forward_mode=mode,
            batch_size=len(lens),
            req_pool_indices=torch.arange(len(lens)),
            seq_lens=torch.tensor(self.seq_lens),
            seq_lens_cpu=torch.tensor(self.seq_lens),
            out_cache_loc=torch.cat([s[p:] for s, p in zip(self.slots, prefix_lens, strict=True)]),
            extend_seq_lens_cpu=None if mode.is_decode() else lens,
            extend_prefix_lens_cpu=None if mode.is_decode() else prefix_lens,
            req_to_token_pool=SimpleNamespace(req_to_token=self.table),
            token_to_kv_pool=self.pool,
            **fields,
        )

    def run(
        self, prefix_lens, mode=ForwardMode.EXTEND, backend=None, new_kv=True, fields=None, **kw
    ):
        batch = self.batch(prefix_lens, mode, **(fields or {}))
        batch.attn_backend = backend or TorchNativeAttnBackend()
        batch.attn_backend.init_forward_metadata(batch)

        def new(tensors):
            parts = [t[p:] for t, p in zip(tensors, prefix_lens, strict=True)]
            return torch.cat(parts).flatten(1)

        k, v = (new(self.k), new(self.v)) if new_kv else (None, None)
        return self.layer(new(self.q), k, v, batch, **kw)

    def expected(self, prefix_lens, sees=None, sinks=None):
        """`sees(query position, key position)`, by default causal."""
        rows = []
        for row, prefix in enumerate(prefix_lens):
            for position in range(prefix, self.seq_lens[row]):
                keys = [
                    j
                    for j in range(self.seq_lens[row])
                    if (sees(row, position, j) if sees else j <= position)
                ]
                rows.append(self._one(row, position, keys, sinks))
        return torch.stack(rows).to(self.dtype)

    def _one(self, row, position, keys, sinks):
        out = []
        for head in range(HEADS):
            kv = head * KV_HEADS // HEADS
            q = self.q[row][position, head].double()
            scores = self.k[row][keys, kv].double() @ q * self.layer.scaling
            if self.layer.logit_cap > 0:
                scores = self.layer.logit_cap * torch.tanh(scores / self.layer.logit_cap)
            extra = 0.0 if sinks is None else math.exp(sinks[head])
            weights = scores.exp() / (scores.exp().sum() + extra)
            out.append(weights @ self.v[row][keys, kv].double())
        return torch.cat(out)


def _close(actual, expected):
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[actual.dtype]
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("prefixes", [[0, 0, 0], [4, 0, 6], [9, 3, 6]])
def test_extend(dtype, scattered, prefixes):
    world = World([10, 4, 7], scattered, dtype)
    _close(world.run(prefixes), world.expected(prefixes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("seq_lens", [[12], [9, 10, 7], [40, 2, 3], [1, 1]])
@pytest.mark.parametrize("padded_bytes", [0, 1 << 20])
def test_decode_one_by_one_and_padded(monkeypatch, dtype, scattered, seq_lens, padded_bytes):
    monkeypatch.setattr(torch_native_backend, "_MAX_PADDED_BYTES", padded_bytes)
    world = World(seq_lens, scattered, dtype)
    prefixes = [n - 1 for n in seq_lens]
    _close(world.run(prefixes, ForwardMode.DECODE), world.expected(prefixes))


def test_padding_ignores_stale_entries_of_the_row_table():
    world = World([9, 7])
    world.table[1, 7:] = 255
    world.pool.k[255] = world.pool.v[255] = float("nan")
    _close(world.run([8, 6], ForwardMode.DECODE), world.expected([8, 6]))


@pytest.mark.parametrize("window", [1, 3, 7, 50])
@pytest.mark.parametrize("rows", [1024, 4])
def test_sliding_window_counts_earlier_tokens(monkeypatch, window, rows):
    monkeypatch.setattr(torch_native_backend, "_MASKED_ROWS", rows)
    world = World([20, 11], sliding_window_size=window)

    def sees(row, position, key):
        return position - window <= key <= position

    for prefixes in ([0, 0], [5, 8]):
        _close(world.run(prefixes), world.expected(prefixes, sees))
    for padded_bytes in (0, 1 << 20):
        monkeypatch.setattr(torch_native_backend, "_MAX_PADDED_BYTES", padded_bytes)
        out = world.run([19, 10], ForwardMode.DECODE)
        _close(out, world.expected([19, 10], sees))


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("scores", [1 << 25, 64])
def test_logit_cap_and_sinks(monkeypatch, cap, with_sinks, scores):
    monkeypatch.setattr(torch_ops, "_MAX_SCORES", scores)
    world = World([9, 6], logit_cap=cap, sliding_window_size=4, scaling=0.7)
    sinks = torch.randn(HEADS) if with_sinks else None

    def sees(row, position, key):
        return position - 4 <= key <= position

    for prefixes in ([0, 0], [4, 1]):
        expected = world.expected(prefixes, sees, sinks)
        _close(world.run(prefixes, sinks=sinks), expected)
    out = world.run([8, 5], ForwardMode.DECODE, sinks=sinks)
    _close(out, world.expected([8, 5], sees, sinks))


def test_other_value_width():
    world = World([9, 6], v_head_dim=5)
    for prefixes in ([0, 0], [4, 1]):
        assert world.run(prefixes).shape == (15 - sum(prefixes), HEADS * 5)
        _close(world.run(prefixes), world.expected(prefixes))
    _close(world.run([8, 5], ForwardMode.DECODE), world.expected([8, 5]))


def test_cache_is_written_unless_told_not_to():
    world = World([6])
    world.run([2], save_kv_cache=False)
    assert not world.pool.k[world.slots[0][2:]].any()
    world.run([2])
    assert torch.equal(world.pool.k[world.slots[0]], world.k[0])
    assert torch.equal(world.pool.v[world.slots[0]], world.v[0])


def test_without_keys_the_cache_of_another_layer_is_read():
    world = World([9, 6])
    world.run([0, 0])  # fills the pool
    _close(world.run([0, 2], new_kv=False), world.expected([0, 2]))
    _close(world.run([8, 5], ForwardMode.DECODE, new_kv=False), world.expected([8, 5]))


def test_mixed_batches_decode_beside_extends():
    world = World([9, 6, 12])
    prefixes = [0, 5, 11]
    _close(world.run(prefixes, ForwardMode.MIXED), world.expected(prefixes))


def test_encoder_only_sees_everything_and_keeps_nothing():
    world = World([5, 3], attn_type=AttentionType.ENCODER_ONLY)
    world.pool.set_kv_buffer = None
    _close(world.run([0, 0]), world.expected([0, 0], lambda *_: True))


def test_encoder_only_needs_no_row_table():
    world = World([5, 3], attn_type=AttentionType.ENCODER_ONLY)
    batch = world.batch([0, 0])
    batch.req_to_token_pool = batch.token_to_kv_pool = None
    batch.attn_backend = TorchNativeAttnBackend()
    batch.attn_backend.init_forward_metadata(batch)
    out = world.layer(*(torch.cat(t).flatten(1) for t in (world.q, world.k, world.v)), batch)
    _close(out, world.expected([0, 0], lambda *_: True))


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("window", [-1, 3])
def test_bidirectional_spans(prefix, window):
    kind = AttentionType.DECODER_BIDIRECTIONAL
    world = World([12, 5], attn_type=kind, sliding_window_size=window)
    spans = [[(3, 8)], []]

    def sees(row, position, key):
        in_image = row == 0 and 3 <= position < 8 and 3 <= key < 8
        low = position - window if window > 0 else 0
        return in_image or low <= key <= position

    out = world.run([prefix, 0], fields={"bidirectional_spans": spans})
    _close(out, world.expected([prefix, 0], sees))


@pytest.mark.parametrize("mode", [ForwardMode.EXTEND, ForwardMode.DECODE])
def test_cross_attention_reads_encoder_slots_before_the_own_tokens(mode):
    """Encoder tokens come first in the row; a request without any gets zeros."""
    world = World([6, 4], is_cross_attention=True)
    encoder_lens = [5, 0]
    keys, values = torch.randn(5, KV_HEADS, DIM), torch.randn(5, KV_HEADS, DIM)
    loc = torch.tensor([200, 210, 205, 201, 250])
    table = torch.zeros_like(world.table)
    table[0, :5], table[0, 5:11] = loc.int(), world.table[0, :6]
    table[1, :4] = world.table[1, :4]
    world.table = table
    fields = {"encoder_lens_cpu": encoder_lens, "encoder_out_cache_loc": loc}
    prefixes = [5, 3] if mode.is_decode() else [0, 0]
    batch = world.batch(prefixes, mode, **fields)
    backend = batch.attn_backend = TorchNativeAttnBackend()
    backend.init_forward_metadata(batch)
    q = torch.cat([t[p:] for t, p in zip(world.q, prefixes, strict=True)]).flatten(1)
    out = world.layer(q, keys.flatten(1), values.flatten(1), batch)
    world.k[0], world.v[0] = keys, values
    first = torch.stack([world._one(0, i, range(5), None) for i in range(prefixes[0], 6)])
    _close(out[: len(first)], first.float())
    assert not out[len(first) :].any()
    assert torch.equal(world.pool.k[loc], keys)


def test_self_attention_skips_the_encoder_slots():
    world = World([6])
    table = torch.full_like(world.table, 255)
    table[0, 3:9] = world.table[0, :6]
    world.table = table
    world.pool.k[255] = float("nan")
    fields = {"encoder_lens_cpu": [3]}
    _close(world.run([2], fields=fields), world.expected([2]))
    _close(world.run([5], ForwardMode.DECODE, fields=fields), world.expected([5]))


def test_local_chunks():
    world = World([11, 6], use_irope=True)
    backend = TorchNativeAttnBackend(attention_chunk_size=4)

    def sees(row, position, key):
        return position // 4 * 4 <= key <= position

    for prefixes in ([0, 0], [5, 2]):
        _close(world.run(prefixes, backend=backend), world.expected(prefixes, sees))
    out = world.run([10, 5], ForwardMode.DECODE, backend=backend)
    _close(out, world.expected([10, 5], sees))
    with pytest.raises(ValueError, match="attention_chunk_size"):
        world.run([0, 0])


def test_split_rotary_heads_are_joined():
    whole = World([7])
    batch = whole.batch([3])
    backend = batch.attn_backend = TorchNativeAttnBackend()
    backend.init_forward_metadata(batch)
    q, k, v = whole.q[0][3:], whole.k[0][3:], whole.v[0][3:]
    out = whole.layer(
        q[..., :6].contiguous(),
        k[..., :6].contiguous(),
        v,
        batch,
        q_rope=q[..., 6:].contiguous(),
        k_rope=k[..., 6:].contiguous(),
    )
    _close(out, whole.expected([3]))


def test_a_cache_of_another_dtype_is_converted():
    world = World([9, 6])
    world.pool = Pool(dtype=torch.bfloat16)
    world.k = [k.bfloat16().float() for k in world.k]
    world.v = [v.bfloat16().float() for v in world.v]
    _close(world.run([4, 3]), world.expected([4, 3]))
    _close(world.run([8, 5], ForwardMode.DECODE), world.expected([8, 5]))


def test_idle_and_unknown_keywords():
    world = World([3])
    idle = ForwardBatch(ForwardMode.IDLE, attn_backend=TorchNativeAttnBackend())
    idle.attn_backend.init_forward_metadata(idle)
    empty = torch.empty(0, KV_HEADS * DIM)
    out = world.layer(torch.empty(0, HEADS * DIM), empty, empty, idle)
    assert out.shape == (0, HEADS * DIM)
    with pytest.raises(ValueError, match="topk_indices"):
        world.run([0], topk_indices=torch.zeros(1))


def test_registry():
    config = SimpleNamespace(facts=SimpleNamespace(attention_chunk_size=8))
    backend = create_attention_backend("torch_native", SimpleNamespace(model_config=config))
    assert isinstance(backend, TorchNativeAttnBackend)
    assert backend.attention_chunk_size == 8
    with pytest.raises(ValueError, match="'abacus' is not supported; supported: .*torch_native"):
        create_attention_backend("abacus", None)
    register_attention_backend("fake")(lambda runner: runner)
    try:
        assert create_attention_backend("fake", 7) == 7
    finally:
        del ATTENTION_BACKENDS["fake"]


def test_graphs_are_refused():
    with pytest.raises(NotImplementedError, match="TorchNativeAttnBackend"):
        TorchNativeAttnBackend().init_cuda_graph_state(1, 1)


STALE_LENS = ((37, 5, 70, 130, 9), (20, 4, 0, 128, 8))
STALE = [
    *stale_cases(*STALE_LENS, (1, 3)),
    *stale_cases(*STALE_LENS, (1, 3), (64,), layer={"sliding_window_size": 20}, has_sinks=True),
    *stale_cases(*STALE_LENS, (1, 3), (64,), heads=(4, 1), dims=(48, 32), is_latent=True),
    *stale_cases(*STALE_LENS, (1, 3), (64,), is_fp8=True),
]


@pytest.mark.parametrize("padded_bytes", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", STALE, ids=lambda case: f"{case.name}, {case.dims[0]}")
def test_what_is_no_number_stays_with_its_request(monkeypatch, case, dtype, padded_bytes):
    """Behind the end of a page, and beside a request; one by one, padded, and read in place."""
    monkeypatch.setattr(torch_native_backend, "_MAX_PADDED_BYTES", padded_bytes)
    world = attention_cases.World(case, dtype, "cpu")
    found = world.errors(world.run(TorchNativeAttnBackend()))
    assert attention_cases.is_within(found, dtype), found
