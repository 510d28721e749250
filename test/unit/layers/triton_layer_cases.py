"""The Triton kernels of layers against their plain torch forms; run by `test_triton_layers.py` in Triton's interpreter, and by
`test/gpu/test_layers_gpu.py` on a GPU.

In the interpreter it needs TRITON_INTERPRET=1 before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from sglang.srt.layers import gated_linear
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.attention.vision import _attend_by_sequence
from sglang.srt.layers.few_rows_tiles import Tile, rule
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.layers.triton_ops import choose, few_rows, graph_inputs
from sglang.srt.layers.triton_ops.choose import Draw, choose_tokens
from sglang.srt.layers.triton_ops.few_rows import one_row_gated_linear, one_row_linear
from sglang.srt.layers.triton_ops.few_rows_linear import few_rows_linear
from sglang.srt.layers.triton_ops.gated import gated_activation
from sglang.srt.layers.triton_ops.graph_inputs import fill_graph_inputs
from sglang.srt.layers.triton_ops.norm import rms_norm
from sglang.srt.layers.triton_ops.norm_rope import HeadNorm, norm_rope_store
from sglang.srt.layers.triton_ops.vision_attention import attend_within
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.models.common.mlp import GatedMLP

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] + ([] if IS_INTERPRETED else [torch.bfloat16])
# One rounding of the result, and the order of a sum.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    torch.manual_seed(0)
    if IS_INTERPRETED:  # whose time goes with the width of a block
        monkeypatch.setattr(choose, "_BLOCK", 1024)
        monkeypatch.setattr(choose, "_DRAW_BLOCK", 64)
    with torch.device(DEVICE), torch.inference_mode():
        yield


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    bound = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def native_norm(cls, width, **kwargs):
    norm = cls(width, **kwargs)
    norm.weight.data.copy_(torch.randn(width))
    settle()
    return norm


def settle() -> None:
    """Kernels take parameters for written long ago (`dependent_launch`)."""
    if not IS_INTERPRETED:
        torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 96, 1000])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm(dtype, width, has_residual):
    norm = native_norm(RMSNorm, width, eps=1e-5)
    norm.weight.data = norm.weight.to(dtype)
    settle()
    x = (torch.randn(5, width) * 3).to(dtype)
    residual = torch.randn(5, width).to(dtype) if has_residual else None
    got, total = rms_norm(x, norm.weight, 1e-5, residual)
    want = norm.forward_native(x, residual)
    if residual is None:
        check(got, want)
        assert total is x
    else:
        check(got, want[0])
        assert torch.equal(total, want[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_options(dtype):
    x = torch.randn(3, 4, 64).to(dtype)
    rounding = native_norm(RMSNorm, 64, cast_x_before_out_mul=True)
    rounding.weight.data = rounding.weight.to(dtype)
    settle()
    weight = rounding.weight
    check(
        rms_norm(x, weight, 1e-6, round_before_weight=True)[0], rounding.forward_native(x).to(dtype)
    )
    unweighted = RMSNorm(64, has_weight=False)
    check(rms_norm(x, None, 1e-6)[0], unweighted.forward_native(x))
    for cls in (GemmaRMSNorm, Gemma3RMSNorm):
        gemma = native_norm(cls, 64)
        check(rms_norm(x, gemma.weight, 1e-6, weight_offset=1.0)[0], gemma.forward_native(x))


def test_rms_norm_of_rows_apart():
    """Rows of a wider matrix, as the heads of a projection are."""
    wide = torch.randn(6, 80)
    norm = native_norm(RMSNorm, 32)
    check(
        rms_norm(wide[:, 10:42], norm.weight, 1e-6)[0],
        norm.forward_native(wide[:, 10:42].contiguous()),
    )
    empty = rms_norm(wide[:0, :32], norm.weight, 1e-6, wide[:0, :32])
    assert empty[0].shape == empty[1].shape == (0, 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name, layer",
    [
        ("silu", SiluAndMul()),
        ("gelu_tanh", GeluAndMul("tanh")),
        ("gelu", GeluAndMul("none")),
    ],
)
def test_gated_activations(dtype, name, layer):
    x = (torch.randn(3, 2 * 1100) * 4).to(dtype)
    check(gated_activation(x, name), layer.forward_native(x))
    assert gated_activation(x[:0], name).shape == (0, 1100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("heads", [(8, 4), (3, 1), (6, 2)])
def test_norm_rope_store(dtype, has_norm, heads):
    num_q, num_kv, dim, num_tokens, num_slots = *heads, 32, 5, 11
    qkv = torch.randn(num_tokens, (num_q + 2 * num_kv) * dim).to(dtype)
    sizes = [num_q * dim, num_kv * dim, num_kv * dim]
    positions = torch.tensor([0, 7, 63, 7, 12])
    slots = torch.tensor([3, 0, 10, 5, 1])
    rope = get_rope(dim, dim, 64, 10000.0)
    q_norm, k_norm = native_norm(RMSNorm, dim, eps=1e-5), native_norm(RMSNorm, dim, eps=1e-5)
    q, k, v = qkv.clone().split(sizes, dim=-1)
    if has_norm:
        q = q_norm.forward_native(q.reshape(-1, dim)).view(q.shape)
        k = k_norm.forward_native(k.reshape(-1, dim)).view(k.shape)
    want_q, want_k = rope.forward_native(positions, q, k)
    pools = [torch.zeros(num_slots, num_kv, dim, dtype=dtype) for _ in range(2)]

    got = qkv.clone().split(sizes, dim=-1)
    norm = HeadNorm(q_norm.weight, k_norm.weight, 1e-5) if has_norm else None
    norm_rope_store(*got, positions, rope.cos_sin_cache, norm, *pools, slots)
    check(got[0], want_q)
    check(got[1], want_k)
    assert torch.equal(got[2], v)
    assert torch.equal(pools[0][slots], got[1].view(num_tokens, num_kv, dim))
    assert torch.equal(pools[1][slots], v.reshape(num_tokens, num_kv, dim))
    unused = [s for s in range(num_slots) if s not in slots.tolist()]
    assert not pools[0][unused].any() and not pools[1][unused].any()


@pytest.mark.parametrize("interleaved", [False, True])
def test_norm_rope_store_by_three_positions(interleaved):
    """The rows that a step's layers share stand in the place of the table."""
    num_q, num_kv, dim, num_tokens = 4, 2, 32, 5
    scaling = {"mrope_section": [6, 5, 5], "mrope_interleaved": interleaved}
    rope = get_rope(dim, dim, 64, 10000.0, rope_scaling=scaling)
    positions = torch.tensor([[3, 4, 4, 4, 40], [3, 4, 5, 4, 40], [3, 4, 4, 21, 40]])
    qkv = torch.randn(num_tokens, (num_q + 2 * num_kv) * dim).half()
    parts = qkv.clone().split([num_q * dim, num_kv * dim, num_kv * dim], dim=-1)
    pools = [torch.zeros(8, num_kv, dim).half() for _ in range(2)]
    slots = torch.tensor([3, 0, 7, 5, 1])
    batch = ForwardBatch(ForwardMode.EXTEND)
    want_q, want_k = rope.forward_native(positions, *(part.clone() for part in parts[:2]))
    for _ in range(2):  # the second layer finds the rows of the first
        got = [part.clone() for part in parts]
        table, rows = rope.table_of(positions, batch)
        norm_rope_store(*got, rows, table, None, *pools, slots)
        check(got[0], want_q)
        check(got[1], want_k)
    assert torch.equal(pools[0][slots].flatten(1), got[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_out, width", [(40, 96), (7, 1500), (33, 9000)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_one_row_linear(dtype, num_out, width, has_bias):
    x = torch.randn(1, width).to(dtype)
    weight = (torch.randn(num_out, width) / width**0.5).to(dtype)
    bias = torch.randn(num_out).to(dtype) if has_bias else None
    settle()
    want = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    check(one_row_linear(x, weight, bias), want.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_out, width", [(40, 96), (7, 1500), (33, 9000)])
@pytest.mark.parametrize("name", ["silu", "gelu_tanh", "gelu"])
def test_one_row_gated_linear(dtype, num_out, width, name):
    """The same as the product and the activation one after the other, but for the order of sums."""
    x = torch.randn(1, width).to(dtype)
    weight = (torch.randn(2 * num_out, width) * 3 / width**0.5).to(dtype)
    bias = torch.randn(2 * num_out).to(dtype)
    settle()
    for added in (None, bias):
        want = gated_activation(one_row_linear(x, weight, added), name)
        check(one_row_gated_linear(x, weight, added, name), want)


class OtherActivation(SiluAndMul):
    pass


@pytest.mark.parametrize(
    "why_apart", ["", "two rows", "watched", "watched activation", "another activation"]
)
def test_gated_mlp_of_one_row(monkeypatch, why_apart):
    mlp = GatedMLP(96, 40, "silu", bias=True).half()
    for parameter in mlp.parameters():
        parameter.data.copy_(torch.randn(parameter.shape) / 5)
    settle()
    x = torch.randn(2 if why_apart == "two rows" else 1, 96).half()
    gate_up, _ = mlp.gate_up_proj(x)
    want, _ = mlp.down_proj(mlp.act_fn.forward_native(gate_up))
    if why_apart.startswith("watched"):
        seen = mlp.act_fn if "activation" in why_apart else mlp.gate_up_proj
        seen.register_forward_hook(lambda *_: None)
    if why_apart == "another activation":
        mlp.act_fn = OtherActivation()
    calls = []
    monkeypatch.setattr(gated_linear, "suits_one_row_kernel", lambda x, weight: len(x) == 1)

    def note(*args):
        calls.append(args)
        return one_row_gated_linear(*args)

    monkeypatch.setattr(few_rows, "one_row_gated_linear", note)
    check(mlp(x), want)
    assert len(calls) == (not why_apart)


def few_rows_case(dtype, num_rows, num_out, width, has_bias, tile):
    """Rows of a wider matrix. Twice the same, so that counters that were not set back would show."""
    x = torch.randn(num_rows, width + 16).to(dtype)[:, :width]
    weight = (torch.randn(num_out, width) / width**0.5).to(dtype)
    bias = torch.randn(num_out).to(dtype) if has_bias else None
    settle()
    got = few_rows_linear(x, weight, bias, tile)
    added = None if bias is None else bias.double()
    want = torch.nn.functional.linear(x.double(), weight.double(), added)
    check(got, want.to(dtype))
    assert torch.equal(got, few_rows_linear(x, weight, bias, tile))


# Whole tiles; one tile's inputs shared evenly; several tiles whole; shares that end anywhere within tiles.
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize == 2])
@pytest.mark.parametrize("chunk", [4, 2, 8, 3, 7])
@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("num_rows, has_bias", [(2, True), (19, False)])
def test_few_rows_linear(dtype, chunk, is_swapped, num_rows, has_bias):
    block_n = 64 if is_swapped else 32
    tile = Tile(block_n, 64, chunk, is_swapped, num_warps=4, num_stages=3)
    few_rows_case(dtype, num_rows, 3 * block_n + 5, 256, has_bias, tile)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize == 2])
@pytest.mark.parametrize("chunk", [5, 2, 7])
def test_few_rows_linear_whose_width_ends_within_a_piece(dtype, chunk):
    few_rows_case(dtype, 33, 70, 64 * 4 + 16, True, Tile(32, 64, chunk, False, 4, 3))
    few_rows_case(dtype, 33, 70, 48, True, Tile(32, 64, 1, False, 4, 2))


@pytest.mark.parametrize("num_rows", [2, 30, 64, 128])
@pytest.mark.parametrize("num_out, width", [(144, 512), (96, 48)])
def test_few_rows_linear_by_the_rule(num_rows, num_out, width):
    tile = rule(num_rows, num_out, width)
    few_rows_case(torch.float16, num_rows, num_out, width, False, tile)


@pytest.mark.parametrize("vocab", [10, 1024, 5001])
def test_greedy_choice(vocab):
    logits = torch.randn(4, vocab)
    logits[1, vocab - 1] = 50.0
    logits[2, [3, vocab - 2]] = 60.0  # a tie: the first wins
    ids, bad = choose_tokens(logits)
    assert ids.tolist() == logits.argmax(-1).tolist() and ids[2] == 3 and ids[1] == vocab - 1
    assert not bad.any()


def test_bad_rows_are_flagged_and_have_a_valid_id():
    logits = torch.randn(5, 5000)
    logits[0, 4500] = float("nan")
    logits[1] = float("-inf")
    logits[2, 7] = float("inf")
    logits[3, :4999] = float("-inf")
    top_k = torch.full((5, 1), 5000)
    for draw in (None, Draw(None, top_k, 1)):
        ids, bad = choose_tokens(logits, draw)
        assert bad.tolist() == [True, True, True, False, False]
        assert ((ids >= 0) & (ids < 5000)).all() and ids[3] == 4999


def test_draws_follow_the_distribution_and_the_seed():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
    temperature, count = 0.7, 300 if IS_INTERPRETED else 30000
    logits = (probabilities.log() * temperature).repeat(count, 1)
    draw = Draw(torch.full((count, 1), temperature), torch.full((count, 1), 5), seed=11)
    ids, bad = choose_tokens(logits, draw)
    found = torch.bincount(ids, minlength=5) / count
    # Five standard deviations of the largest.
    bound = 5 * (0.25 / count) ** 0.5
    assert (found - probabilities).abs().max() < bound and found[4] == 0 and not bad.any()
    assert torch.equal(ids, choose_tokens(logits, draw)[0])
    other = Draw(draw.temperature, draw.top_k, seed=12)
    assert (ids != choose_tokens(logits, other)[0]).float().mean() > 0.4


def test_greedy_rows_among_drawn_ones():
    logits = torch.zeros(64, 300)
    logits[:, 77] = 0.5
    top_k = torch.full((64, 1), 300)
    top_k[::2] = 1
    ids, _ = choose_tokens(logits, Draw(torch.ones(64, 1), top_k, seed=3))
    assert (ids[::2] == 77).all() and len(ids[1::2].unique()) > 20


def test_graph_inputs_are_padded():
    buffer = torch.full((graph_inputs.NUM_LINES, 160), 9, dtype=torch.int64)
    lines = [torch.arange(10 * i, 10 * i + 3) for i in range(5)]
    fill_graph_inputs(buffer, *lines, size=140, padding_len=1)
    assert buffer[:, :3].tolist() == [line.tolist() for line in lines]
    padding = torch.tensor([0, 0, 1, 0, 0])
    assert torch.equal(buffer[:, 3:140], padding[:, None].expand(-1, 137))
    assert (buffer[:, 140:] == 9).all()


@pytest.mark.parametrize("num_apart", [3, 40])
def test_graph_inputs_with_three_axes(num_apart):
    """`num_apart`: numbers from one axis to the next, as in a part of a wider buffer."""
    buffer = torch.full((graph_inputs.AXES.stop, 160), 9, dtype=torch.int64)
    lines = [torch.arange(10 * i, 10 * i + 3) for i in range(5)]
    axes = torch.arange(3 * num_apart).view(3, num_apart)[:, :3]
    fill_graph_inputs(buffer, *lines, size=140, padding_len=1, axes=axes)
    assert buffer[:5, :3].tolist() == [line.tolist() for line in lines]
    assert torch.equal(buffer[graph_inputs.AXES, :3], axes)
    assert not buffer[graph_inputs.AXES, 3:140].any()
    assert (buffer[:, 140:] == 9).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 72, 128])
@pytest.mark.parametrize("lens", [(5,), (64, 1, 70), (130, 0, 3, 64)])
def test_attention_within_sequences(dtype, dim, lens):
    """q, k and v are columns of one projection, as in a tower; sequences end within blocks and at their borders."""
    boundaries = [0, *itertools.accumulate(lens)]
    qkv = torch.randn(boundaries[-1], 2, 3 * dim).to(dtype)
    q, k, v = qkv.split(dim, dim=-1)
    starts = torch.tensor(boundaries, dtype=torch.int32)
    got = attend_within(q, k, v, starts, max(lens))
    check(got, _attend_by_sequence(q, k, v, boundaries))


def test_attention_without_rows():
    empty = torch.zeros(0, 2, 16)
    assert attend_within(empty, empty, empty, torch.zeros(2, dtype=torch.int32), 0).shape == (
        0,
        2,
        16,
    )
