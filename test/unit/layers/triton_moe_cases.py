"""The Triton kernels of experts against plain torch; run by `test_triton_moe.py` in Triton's interpreter, and by
`test/gpu/test_moe_gpu.py` on a GPU.

In the interpreter it needs TRITON_INTERPRET=1 before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sglang.srt.layers.moe import experts as experts_module
from sglang.srt.layers.moe import fused_experts
from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.experts import run_plain
from sglang.srt.layers.moe.fused_experts import run_fused
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.fused_moe_triton import layer as layer_module
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Tile, Tiles
from sglang.srt.layers.moe.topk import StandardTopKOutput, TopK
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.fp8_math import round_weight
from sglang.srt.layers.triton_ops.moe import sort
from sglang.srt.layers.triton_ops.moe.route import choose_experts
from sglang.srt.layers.triton_ops.moe.sort import most_blocks, sort_by_expert
from sglang.srt.layers.triton_ops.moe.total import Share, add_up

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
# The interpreter computes bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16] + ([] if IS_INTERPRETED else [torch.bfloat16])
E4M3 = torch.float8_e4m3fn
# Of the largest result: roundings inside, and the order of sums; codes on fp8 units are summed with fewer bits.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
CODES_TOLERANCE = TOLERANCE if IS_INTERPRETED else dict.fromkeys(DTYPES, 3e-2)
SINGLE = Tiles(1, Tile(8, 32, 1, 4, 1), Tile(8, 64, 1, 4, 1))
SMALL = Tiles(16, Tile(32, 32, 1, 4, 2), Tile(32, 32, 2, 4, 2))
LARGE = Tiles(32, Tile(16, 32, 3, 4, 3), Tile(32, 64, 2, 4, 2))


@pytest.fixture(autouse=True)
def on_the_device():
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.inference_mode():
        yield


def check(actual: torch.Tensor, expected: torch.Tensor, bounds: dict[torch.dtype, float]) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    largest = expected.float().abs().max().item() if expected.numel() else 0.0
    bound = bounds[actual.dtype] * max(largest, 1e-6)
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=bound)


# --- sorting


def choices(num_tokens: int, top_k: int, num_experts: int, kind: str = "mixed") -> torch.Tensor:
    """Ids int32 [T, k]: different experts for each token; "one": all on expert 1; "gaps": even experts only; "elsewhere": some out of range."""
    if kind == "one":
        return torch.ones(num_tokens, top_k, dtype=torch.int32)
    ids = torch.rand(num_tokens, num_experts).argsort(1)[:, :top_k].int()
    if kind == "gaps":
        ids = ids // 2 * 2
    if kind == "elsewhere":
        ids = ids - num_experts // 2  # from the view of a rank that holds the upper half
        ids[0] = -1
    return ids


@pytest.mark.parametrize("in_three", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 4, 16), (1, 8, 16, 16), (37, 3, 5, 16), (70, 4, 8, 32), (40, 1, 1, 64)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["mixed", "one", "gaps", "elsewhere"])
def test_choices_are_sorted(monkeypatch, in_three, shape, kind):
    num_tokens, top_k, num_experts, size = shape
    if kind == "one" and num_experts == 1:
        kind = "mixed"
    monkeypatch.setattr(sort, "_CHUNK", 64)  # so that there are several
    monkeypatch.setattr(sort, "_MAX_ONE_LAUNCH", 0 if in_three else 4096)
    ids = choices(num_tokens, top_k, num_experts, kind)
    num_local = max(1, num_experts // 2) if kind == "elsewhere" else num_experts
    blocks = sort_by_expert(ids, num_local, size)
    used = int(blocks.count)
    flat = ids.flatten().tolist()
    expected = {e: [c for c, found in enumerate(flat) if found == e] for e in range(num_local)}
    wanted = sum(-(-len(found) // size) for found in expected.values())
    assert used == wanted <= blocks.max_blocks == most_blocks(len(flat), num_local, size)
    owners = blocks.experts[:used].tolist()
    assert owners == sorted(owners)
    slots = blocks.choices.view(-1, size)[:used].tolist()
    for expert, found in expected.items():
        mine = [c for owner, row in zip(owners, slots, strict=True) if owner == expert for c in row]
        assert sorted(c for c in mine if c != len(flat)) == found
        assert mine[len(found) :] == [len(flat)] * (len(mine) - len(found))


def test_the_bound_of_blocks_is_reached():
    """One choice for each expert but one, which has the rest."""
    ids = torch.cat([torch.arange(6), torch.zeros(26)]).int().view(-1, 1)
    blocks = sort_by_expert(ids, 6, 16)
    assert int(blocks.count) == 7 and blocks.max_blocks == 7


# --- products


@dataclass(frozen=True)
class Case:
    tokens: int
    experts: int
    top_k: int
    hidden: int
    inner: int
    weights: str = "plain"  # "channel", "static", "block"
    ids: str = "mixed"
    tiles: Tiles | None = SMALL
    config: dict[str, Any] = field(default_factory=dict)
    has_bias: bool = False

    def __str__(self) -> str:
        sizes = f"{self.tokens}x{self.top_k}of{self.experts}-{self.hidden}-{self.inner}"
        tiles = "rule" if self.tiles is None else f"m{self.tiles.block_m}"
        extras = [*self.config, *(["bias"] if self.has_bias else [])]
        return "-".join([sizes, self.weights, self.ids, tiles, *extras])


SWIGLU_OAI = {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 0.7}
PLAIN = {"is_gated": False, "activation": "relu2"}
ON_INPUT = {"apply_router_weight_on_input": True}
SCALED = {"routed_scaling_factor": 2.5}
CASES = [
    Case(1, 4, 1, 32, 16),
    Case(1, 16, 8, 64, 32, tiles=SINGLE),
    Case(3, 8, 2, 40, 24, tiles=SINGLE),
    Case(2, 6, 3, 33, 19, tiles=SINGLE, has_bias=True, config=SWIGLU_OAI),
    Case(2, 8, 4, 48, 32, tiles=SINGLE, ids="elsewhere", config=SCALED),
    Case(2, 5, 2, 48, 20, tiles=SINGLE, config=PLAIN),
    Case(2, 5, 2, 48, 20, tiles=SINGLE, config=ON_INPUT),
    Case(2, 8, 2, 48, 32, "channel", tiles=SINGLE),
    Case(2, 8, 2, 48, 32, "static", tiles=SINGLE, has_bias=True),
    Case(2, 8, 2, 48, 32, "block", tiles=SINGLE),
    Case(5, 16, 8, 48, 32),
    Case(17, 5, 2, 72, 40, tiles=LARGE),
    Case(70, 4, 2, 48, 32, tiles=LARGE),
    Case(33, 5, 3, 50, 27, has_bias=True),
    Case(40, 6, 2, 48, 32, ids="one"),
    Case(12, 16, 4, 32, 16, ids="gaps"),
    Case(25, 8, 3, 48, 32, ids="elsewhere", config=SCALED),
    Case(9, 6, 2, 48, 32, config=SWIGLU_OAI, has_bias=True),
    Case(9, 6, 2, 48, 32, config=PLAIN),
    Case(9, 6, 2, 48, 32, config={"is_gated": False, "activation": "relu"}),
    Case(9, 6, 2, 48, 32, config={"activation": "gelu"}),
    Case(9, 6, 2, 48, 32, config={"activation": "gelu_pytorch_tanh"}),
    Case(9, 6, 2, 48, 32, config=ON_INPUT | SCALED),
    Case(9, 6, 2, 48, 32, ids="elsewhere", config={"no_combine": True}),
    Case(30, 6, 2, 64, 48, "channel", tiles=LARGE),
    Case(30, 6, 2, 64, 48, "channel", ids="elsewhere", has_bias=True),
    Case(11, 6, 2, 40, 24, "channel", config=ON_INPUT),
    Case(11, 6, 2, 64, 32, "static"),
    Case(30, 6, 2, 64, 48, "block", tiles=LARGE),
    Case(11, 6, 2, 48, 32, "block", ids="elsewhere", config=SWIGLU_OAI, has_bias=True),
    Case(1, 4, 2, 24, 8, tiles=None),
    Case(2, 4, 2, 64, 32, tiles=None),
    Case(12, 4, 2, 64, 32, "channel", tiles=None),
    Case(64, 4, 2, 32, 32, tiles=None),
]
LARGE_SHAPES = [
    Case(tokens, 128, 8, 2048, 768, weights, tiles=None)
    for tokens in (1, 3, 8, 64, 600, 2048)
    for weights in ("plain", "channel", "block")
] + [
    Case(1, 8, 2, 4096, 14336, tiles=None),
    Case(64, 8, 2, 4096, 1792, tiles=None),
    Case(4, 32, 4, 2880, 2880, tiles=None, config=SWIGLU_OAI, has_bias=True),
    Case(300, 32, 4, 2880, 2880, tiles=None, config=SWIGLU_OAI, has_bias=True),
    Case(20, 128, 8, 2048, 96, tiles=None, ids="elsewhere"),
]
if not IS_INTERPRETED:
    CASES += LARGE_SHAPES


def make_matrix(case: Case, rows: int, columns: int, dtype: torch.dtype) -> ExpertMatrix:
    num_experts = case.experts // 2 if case.ids == "elsewhere" else case.experts
    weight = torch.randn(num_experts, rows, columns) / columns**0.5
    bias = torch.randn(num_experts, rows).to(dtype) / 4 if case.has_bias else None
    if case.weights == "plain":
        return ExpertMatrix(weight.to(dtype), bias)
    if case.weights == "block":
        block = (8, 16) if IS_INTERPRETED else (128, 128)
        scale = torch.rand(num_experts, -(-rows // block[0]), -(-columns // block[1])) + 0.5
        return ExpertMatrix(weight.to(E4M3), bias, scale, block)
    rounded = [round_weight(matrix, "channel") for matrix in weight]
    # fp8 codes are stacked as bytes: not every device stacks them.
    codes = torch.stack([code.view(torch.uint8) for code, _ in rounded]).view(E4M3)
    scale = torch.stack([scale for _, scale in rounded])
    given = torch.rand(num_experts, 1) / 50 + 0.01 if case.weights == "static" else None
    return ExpertMatrix(codes, bias, scale, input_scale=given)


# In the interpreter, whose time goes with the number of programs, only every eighth case in all dtypes.
PAIRS = [
    (case, dtype)
    for i, case in enumerate(CASES)
    for dtype in (DTYPES if i % 8 == 2 or not IS_INTERPRETED else DTYPES[:1])
]


@pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=str)
def test_experts(case, dtype):
    config = MoeRunnerConfig(**case.config)
    halves = 2 if config.is_gated else 1
    first = make_matrix(case, halves * case.inner, case.hidden, dtype)
    second = make_matrix(case, case.hidden, case.inner, dtype)
    x = torch.randn(case.tokens, case.hidden).to(dtype)
    ids = choices(case.tokens, case.top_k, case.experts, case.ids)
    weights = torch.rand(case.tokens, case.top_k)
    got = run_fused(x, first, second, weights, ids, config, case.tiles)
    want = run_plain(x, first, second, weights, ids, config)
    assert want.abs().max() > 0.01
    check(got, want, TOLERANCE if case.weights in ("plain", "block") else CODES_TOLERANCE)


def test_numbers_and_codes_meet_their_oracles():
    """Products of plain torch in double precision on the same numbers: the reference of the reference."""
    case = Case(6, 4, 2, 48, 32, "block")
    first, second = (
        make_matrix(case, 64, 48, torch.float32),
        make_matrix(case, 48, 32, torch.float32),
    )
    x, ids = torch.randn(6, 48), choices(6, 2, 4)
    weights = torch.rand(6, 2)
    numbers = []
    for matrix in (first, second):
        rows, columns = matrix.block_size
        scale = matrix.scale.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        weight = matrix.weight.double()
        numbers.append(weight * scale[:, : weight.shape[1], : weight.shape[2]].double())
    want = torch.zeros(6, 48, dtype=torch.float64)
    for t in range(6):
        for k in range(2):
            gate, up = (numbers[0][ids[t, k].long()] @ x[t].double()).chunk(2)
            hidden = gate * gate.sigmoid() * up
            want[t] += weights[t, k] * (numbers[1][ids[t, k].long()] @ hidden)
    got = run_fused(x, first, second, weights, ids, MoeRunnerConfig(), SMALL)
    check(got, want.float(), TOLERANCE)


@pytest.mark.parametrize("tiles", [SINGLE, SMALL])
def test_no_tokens_and_no_experts_here(tiles):
    first, second = ExpertMatrix(torch.randn(3, 32, 24)), ExpertMatrix(torch.randn(3, 24, 16))
    config = MoeRunnerConfig()
    empty = torch.empty(0, 2, dtype=torch.int32)
    out = run_fused(torch.randn(0, 24), first, second, torch.rand(0, 2), empty, config, tiles)
    assert out.shape == (0, 24)
    # Weights that are no numbers belong to somebody else.
    nowhere, weights = torch.full((5, 2), 7, dtype=torch.int32), torch.full((5, 2), torch.nan)
    out = run_fused(torch.randn(5, 24), first, second, weights, nowhere, config, tiles)
    assert not out.any()


@pytest.mark.parametrize("tiles", [SINGLE, SMALL])
def test_a_bad_row_stays_alone(tiles):
    first, second = ExpertMatrix(torch.randn(3, 32, 24)), ExpertMatrix(torch.randn(3, 24, 16))
    x = torch.randn(6, 24)
    x[2] = torch.nan
    ids = choices(6, 2, 3)
    out = run_fused(x, first, second, torch.rand(6, 2), ids, MoeRunnerConfig(), tiles)
    assert out.isnan().any(1).tolist() == [False, False, True, False, False, False]


def test_rows_apart():
    """Activations and weights that are parts of wider tensors."""
    first = ExpertMatrix(torch.randn(4, 32, 60)[:, :, 10:34])
    second = ExpertMatrix(torch.randn(4, 24, 16))
    x, ids = torch.randn(7, 50)[:, 3:27], choices(7, 2, 4)
    weights = torch.rand(7, 2)
    for tiles in (SINGLE, SMALL):
        got = run_fused(x, first, second, weights, ids, MoeRunnerConfig(), tiles)
        check(got, run_plain(x, first, second, weights, ids, MoeRunnerConfig()), TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_are_added_up(dtype):
    parts, ids = torch.randn(12, 1030).to(dtype), choices(4, 3, 8, "elsewhere")
    weights = torch.rand(4, 3)
    is_here = ((ids >= 0) & (ids < 4)).float()
    scaled = parts.float().view(4, 3, -1) * (weights * is_here)[..., None] * 0.5
    got = add_up(parts, ids, 4, Share(weights, 0.5), sums=True)
    check(got, scaled.sum(1).to(dtype), TOLERANCE)
    check(add_up(parts, ids, 4, Share(weights, 0.5), sums=False), scaled.to(dtype), TOLERANCE)


# --- routing


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES[2:]])
@pytest.mark.parametrize("sizes", [(1, 4, 1), (3, 60, 6), (2, 128, 8), (1, 300, 10)])
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_routing(dtype, sizes, scoring_func, renormalize, has_bias):
    num_tokens, num_experts, top_k = sizes
    # Apart from one another, so that there are no ties in any dtype.
    order = torch.rand(num_tokens, num_experts).argsort(1)
    logits = (order.float() * 4 / num_experts - 2).to(dtype)
    bias = torch.rand(num_experts) / num_experts / 1e3 if has_bias else None
    topk = TopK(top_k, scoring_func=scoring_func, renormalize=renormalize, correction_bias=bias)
    want = topk.forward_native(logits, logits)
    weights, ids = choose_experts(
        logits,
        top_k,
        is_sigmoid=scoring_func == "sigmoid",
        renormalize=renormalize,
        correction_bias=bias,
    )
    assert ids.dtype == torch.int32 and weights.dtype == torch.float32
    ours, theirs = ids.long().sort(1), want.topk_ids.long().sort(1)
    assert torch.equal(ours.values, theirs.values)
    torch.testing.assert_close(
        weights.gather(1, ours.indices), want.topk_weights.gather(1, theirs.indices)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's own arithmetic
def test_ids_are_valid_whatever_the_logits_hold():
    logits = torch.randn(4, 12)
    logits[0] = torch.nan
    logits[1, 3:] = float("-inf")
    logits[2] = float("-inf")
    for is_sigmoid in (False, True):
        weights, ids = choose_experts(logits, 5, is_sigmoid=is_sigmoid, renormalize=True)
        assert ((ids >= 0) & (ids < 12)).all()
        assert set(ids[1, :3].tolist()) == {0, 1, 2} and weights[0].isnan().all()
    assert choose_experts(logits[:0], 5, is_sigmoid=False, renormalize=True)[1].shape == (0, 5)


# --- layers


@pytest.fixture
def never_asks(monkeypatch):
    """Layers take the path of a GPU wherever they are, and reading ids on the host is an error."""

    def refuse(*args: object) -> None:
        raise AssertionError("the ids were read on the host")

    monkeypatch.setattr(fused_experts, "_is_gpu", lambda device: True)
    monkeypatch.setattr(experts_module, "_used_experts", refuse)


D, WIDTH, E, K, T = 32, 48, 6, 2, 5


def by_loop(x, numbers, out, inputs=lambda rows: rows):
    """Token by token; `inputs` rounds what a matrix reads."""
    result = torch.zeros(len(x), D)
    for t in range(len(x)):
        for k in range(K):
            e, row = int(out.topk_ids[t, k]), inputs(x[t : t + 1])
            hidden = torch.nn.functional.silu(row @ numbers["w1"][e].T) * (row @ numbers["w3"][e].T)
            result[t] += out.topk_weights[t, k] * (inputs(hidden) @ numbers["w2"][e].T)[0]
    return result


def make_layer(config: Any, tensors: dict[str, dict[str, torch.Tensor]]) -> FusedMoE:
    """`tensors`: kind -> w1, w3, w2 of all experts."""
    layer = FusedMoE(E, D, WIDTH, layer_id=0, top_k=K, quant_config=config, prefix="m.experts")
    for kind, shards in tensors.items():
        for shard, stacked in shards.items():
            param = getattr(layer, f"{'w2' if shard == 'w2' else 'w13'}_{kind}")
            for expert in range(E):
                param.weight_loader(param, stacked[expert], f"{expert}.{shard}", shard, expert)
    layer.quant_method.process_weights_after_loading(layer)
    assert layer.why_waits_for_host() is None
    return layer


def random_experts() -> dict[str, torch.Tensor]:
    shapes = {"w1": (E, WIDTH, D), "w3": (E, WIDTH, D), "w2": (E, D, WIDTH)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def routing(num_tokens: int = T) -> StandardTopKOutput:
    ids = choices(num_tokens, K, E)
    return StandardTopKOutput(torch.rand(num_tokens, K), ids, torch.randn(num_tokens, E))


def rounded(rows: torch.Tensor) -> torch.Tensor:
    scale = rows.abs().amax(-1, True) / 448
    return (rows / scale).to(E4M3).float() * scale


@pytest.mark.parametrize("num_tokens", [1, T])
@pytest.mark.parametrize("kind", ["plain", "online", "block"])
def test_layers_take_the_path(never_asks, kind, num_tokens):
    numbers = weights = random_experts()
    x, out = torch.randn(num_tokens, D), routing(num_tokens)
    if kind == "plain":
        layer = make_layer(None, {"weight": weights})
        want = by_loop(x, numbers, out)
    elif kind == "online":
        layer = make_layer(Fp8Config(), {"weight": weights})
        want = by_loop(x, {n: rounded(w) for n, w in weights.items()}, out, rounded)
    else:
        scales = {
            n: torch.rand(E, w.shape[1] // 8, w.shape[2] // 16) + 0.5 for n, w in weights.items()
        }
        codes = {n: w.to(E4M3) for n, w in weights.items()}
        numbers = {
            n: codes[n].float() * scales[n].repeat_interleave(8, 1).repeat_interleave(16, 2)
            for n in codes
        }
        config = Fp8Config(True, weight_block_size=[8, 16])
        layer = make_layer(config, {"weight": codes, "weight_scale_inv": scales})
        want = by_loop(x, numbers, out)
    # A GPU rounds a few activations to the neighbouring code.
    is_exact = IS_INTERPRETED or kind != "online"
    check(layer(x, out), want, {torch.float32: 1e-4 if is_exact else 3e-2})


@pytest.mark.parametrize(("ep_size", "tp_size"), [(2, 1), (3, 2)])
def test_ranks_add_up(never_asks, monkeypatch, ep_size, tp_size):
    weights, x, out = random_experts(), torch.randn(T, D), routing()
    total = torch.zeros(T, D)
    for ep_rank in range(ep_size):
        for tp_rank in range(tp_size):
            for name, value in {
                "get_moe_expert_parallel_world_size": ep_size,
                "get_moe_expert_parallel_rank": ep_rank,
                "get_moe_tensor_parallel_world_size": tp_size,
                "get_moe_tensor_parallel_rank": tp_rank,
            }.items():
                monkeypatch.setattr(layer_module, name, lambda value=value: value)
            total += make_layer(None, {"weight": weights})(x, out)
    check(total, by_loop(x, weights, out), {torch.float32: 1e-4})
