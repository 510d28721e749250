"""Kernels that begin while the one before still runs: in captured graphs they give, bit for bit, what they give one after the other.

Needs a Hopper GPU or newer. Kernels that write late, and what a missing wait would read instead of their results, make mistakes visible.
"""

# ruff: noqa: E402
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
    pytest.skip("no Hopper GPU or newer", allow_module_level=True)

import triton
import triton.language as tl

from sglang.srt.distributed.device_communicators.peer_memory import PeerMemory, inbox_words
from sglang.srt.layers.attention.triton_ops.decode import DecodeOptions, decode_attention
from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.fused_experts import run_fused
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Tile, Tiles
from sglang.srt.layers.triton_ops.choose import Draw, choose_tokens
from sglang.srt.layers.triton_ops.few_rows import one_row_gated_linear, one_row_linear
from sglang.srt.layers.triton_ops.gated import gated_activation
from sglang.srt.layers.triton_ops.graph_inputs import fill_graph_inputs
from sglang.srt.layers.triton_ops.moe.route import choose_experts
from sglang.srt.layers.triton_ops.norm import rms_norm
from sglang.srt.layers.triton_ops.norm_rope import HeadNorm, norm_rope_store
from sglang.srt.utils import dependent_launch
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

DEVICE = "cuda"
DTYPE = torch.bfloat16
DELAY_NS = 60_000
NUM_REPLAYS = 30
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.inference_mode():
        yield


# --- late kernels


@triton.jit
def _late_copy_kernel(
    source,
    target,
    count,
    DELAY: tl.constexpr,
    WAITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Lets the next kernel begin at once, then copies bytes, DELAY nanoseconds after the kernels before have ended."""
    launch_dependents(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WAITS:
        wait_for_earlier(PDL)
    if DELAY > 0:
        start = tl.extra.cuda.globaltimer()
        now = start
        while now - start < DELAY:
            now = tl.extra.cuda.globaltimer()
    value = tl.load(source + index, mask=index < count)
    tl.store(target + index, value, mask=index < count)


def late_copy(
    source: torch.Tensor, target: torch.Tensor, delay: int | None = None, waits: bool = True
) -> None:
    """`waits` False breaks the rule."""
    source, target = (x.view(torch.uint8).flatten() for x in (source, target))
    delay = DELAY_NS if delay is None else delay
    _late_copy_kernel[(triton.cdiv(len(source), 8192),)](
        source,
        target,
        len(source),
        DELAY=delay,
        WAITS=waits,
        BLOCK=8192,
        num_warps=8,
        **launch_options(source.device),
    )


# --- recording


@contextlib.contextmanager
def early(is_early: bool) -> Iterator[None]:
    with mock.patch.object(dependent_launch, "launches_early", lambda device: is_early):
        yield


class Recorded:
    """A graph of `call`, which gives tensors."""

    def __init__(self, call: Callable[[], list[torch.Tensor]], is_early: bool) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with early(is_early):
            call()  # compiles
            torch.cuda.synchronize()
            with torch.cuda.graph(self.graph):
                self.results = call()

    def replay(self, poisoned: list[torch.Tensor]) -> list[torch.Tensor]:
        for tensor in [*poisoned, *self.results]:
            poison(tensor)
        self.graph.replay()
        return [tensor.clone() for tensor in self.results]


def poison(tensor: torch.Tensor) -> None:
    """Wrong in every place, but no index that leads out of a tensor."""
    tensor.fill_(torch.nan if tensor.is_floating_point() else 0)


def differences(got: list[torch.Tensor], want: list[torch.Tensor]) -> list[int]:
    assert len(got) == len(want)
    pairs = enumerate(zip(got, want, strict=True))
    return [i for i, (a, b) in pairs if not torch.equal(a.view(torch.uint8), b.view(torch.uint8))]


# --- each kernel behind one that writes its inputs late


@dataclass
class Case:
    """`make` draws the inputs of `call`, which may change them and gives its results."""

    make: Callable[[], Tensors]
    call: Callable[[Tensors], list[torch.Tensor]]


def find_differences(case: Case) -> list[int]:
    """Results, by number, that differ in some replay; the inputs as a last reader finds them come last."""
    sources = case.make()
    static = {name: tensor.clone() for name, tensor in sources.items()}
    # What the kernels before wrote must be there for those behind, too.
    first = next(iter(sources))
    echo = torch.empty_like(sources[first])
    before = torch.empty_like(sources[first])

    def call() -> list[torch.Tensor]:
        for name, tensor in static.items():
            late_copy(sources[name], tensor)
        late_copy(static[first], before)  # reads what the kernels then change
        results = case.call(static)
        late_copy(before, echo, delay=0)
        return [*results, before, echo]

    recorded = {is_early: Recorded(call, is_early) for is_early in (False, True)}
    found: set[int] = set()
    for _ in range(NUM_REPLAYS):
        for name, tensor in case.make().items():
            sources[name].copy_(tensor)
        got, want = (recorded[is_early].replay(list(static.values())) for is_early in (True, False))
        assert all(x.isfinite().all() for x in want if x.is_floating_point())
        assert torch.equal(want[-1], sources[first])
        found.update(differences(got, want))
    return sorted(found)


def rows(num_rows: int, width: int) -> Callable[[], Tensors]:
    return lambda: {"x": torch.randn(num_rows, width).to(DTYPE)}


def product_case(num_out: int, width: int, has_bias: bool) -> Case:
    weight = (torch.randn(num_out, width) / width**0.5).to(DTYPE)
    bias = torch.randn(num_out).to(DTYPE) if has_bias else None
    return Case(rows(1, width), lambda t: [one_row_linear(t["x"], weight, bias)])


def gated_product_case(num_out: int, width: int, activation: str) -> Case:
    weight = (torch.randn(2 * num_out, width) / width**0.5).to(DTYPE)

    def call(t: Tensors) -> list[torch.Tensor]:
        return [one_row_gated_linear(t["x"], weight, None, activation)]

    return Case(rows(1, width), call)


def rank_sum_case(num_rows: int, width: int) -> Case:
    """Of a group of one, which finds nothing in its inbox; its sum, added and normed, is a sum of the next call."""
    weight = torch.randn(width).to(DTYPE)
    inbox = torch.zeros(inbox_words(1), dtype=torch.int64)
    peers = PeerMemory(0, 1, torch.tensor([inbox.data_ptr()]), inbox)

    def make() -> Tensors:
        return {name: torch.randn(num_rows, width).to(DTYPE) for name in ("x", "residual")}

    def call(t: Tensors) -> list[torch.Tensor]:
        normed, total = peers.all_reduce_add_norm(t["x"], t["residual"], weight, 1e-6)
        return [normed, total, peers.all_reduce(normed)]

    return Case(make, call)


def norm_case(num_rows: int, width: int) -> Case:
    weight = torch.randn(width).to(DTYPE)

    def make() -> Tensors:
        return {name: torch.randn(num_rows, width).to(DTYPE) for name in ("x", "residual")}

    return Case(make, lambda t: list(rms_norm(t["x"], weight, 1e-6, t["residual"])))


def rope_case(num_tokens: int) -> Case:
    num_q, num_kv, dim, num_slots = 8, 4, 64, 32
    norm = HeadNorm(torch.randn(dim).to(DTYPE), torch.randn(dim).to(DTYPE), 1e-6)

    def make() -> Tensors:
        return {
            "qkv": torch.randn(num_tokens, (num_q + 2 * num_kv) * dim).to(DTYPE),
            "table": torch.randn(64, dim),
            "positions": torch.randint(1, 64, (num_tokens,)),
            "slots": 1 + torch.randperm(num_slots - 1)[:num_tokens],
            "keys": torch.randn(num_slots, num_kv, dim).to(DTYPE),
            "values": torch.randn(num_slots, num_kv, dim).to(DTYPE),
        }

    def call(t: Tensors) -> list[torch.Tensor]:
        parts = t["qkv"].split([num_q * dim, num_kv * dim, num_kv * dim], dim=-1)
        pools = t["keys"], t["values"]
        norm_rope_store(*parts, t["positions"], t["table"], norm, *pools, t["slots"])
        return [t["qkv"], *pools]

    return Case(make, call)


def attention_case(
    num_splits: int, num_heads: int = 8, num_kv: int = 4, dim: int = 64, split_len: int = 64
) -> Case:
    batch, num_slots = 3, 512

    def make() -> Tensors:
        return {
            "q": torch.randn(batch, num_heads, dim).to(DTYPE),
            "keys": torch.randn(num_slots, num_kv, dim).to(DTYPE),
            "values": torch.randn(num_slots, num_kv, dim).to(DTYPE),
            "table": torch.randint(1, num_slots, (4, 256), dtype=torch.int32),
            "rows": 1 + torch.randperm(3),
            "lens": torch.randint(1, 256, (batch,)),
            "split_len": torch.tensor([256 if num_splits == 1 else split_len], dtype=torch.int32),
        }

    def call(t: Tensors) -> list[torch.Tensor]:
        tensors = [t[name] for name in ("q", "keys", "values", "table", "rows", "lens")]
        return [
            decode_attention(*tensors, None, num_splits, t["split_len"], DecodeOptions(dim**-0.5))
        ]

    return Case(make, call)


def choice_case(is_drawn: bool) -> Case:
    def make() -> Tensors:
        return {
            "logits": torch.randn(3, 9000),
            "temperature": torch.rand(3, 1) + 0.5,
            "top_k": torch.tensor([[1], [9000], [9000]]),
        }

    def call(t: Tensors) -> list[torch.Tensor]:
        draw = Draw(t["temperature"], t["top_k"], seed=7) if is_drawn else None
        return list(choose_tokens(t["logits"], draw))

    return Case(make, call)


def fill_case() -> Case:
    def make() -> Tensors:
        return {name: torch.randint(1, 99, (5,)) for name in ("ids", "rows", "lens", "at", "slots")}

    def call(t: Tensors) -> list[torch.Tensor]:
        buffer = torch.empty(5, 16, dtype=torch.int64)
        fill_graph_inputs(buffer, *t.values(), size=16, padding_len=1)
        return [buffer]

    return Case(make, call)


SINGLE = Tiles(1, Tile(2, 128, 1, 4, 1), Tile(2, 128, 1, 4, 1))
GROUPED = Tiles(16, Tile(32, 64, 1, 4, 3), Tile(32, 64, 2, 4, 3))


def make_experts(num_experts: int, width: int, inner: int) -> tuple[ExpertMatrix, ExpertMatrix]:
    first = torch.randn(num_experts, 2 * inner, width) / width**0.5
    second = torch.randn(num_experts, width, inner) / inner**0.5
    return ExpertMatrix(first.to(DTYPE)), ExpertMatrix(second.to(DTYPE))


def experts_case(num_tokens: int, tiles: Tiles) -> Case:
    matrices, config = make_experts(16, 256, 128), MoeRunnerConfig(num_experts=16)

    def make() -> Tensors:
        return {
            "x": torch.randn(num_tokens, 256).to(DTYPE),
            "logits": torch.randn(num_tokens, 16).to(DTYPE),
        }

    def call(t: Tensors) -> list[torch.Tensor]:
        weights, ids = choose_experts(t["logits"], 4, is_sigmoid=False, renormalize=True)
        return [weights, ids, run_fused(t["x"], *matrices, weights, ids, config, tiles)]

    return Case(make, call)


CASES: dict[str, Callable[[], Case]] = {
    "product 2048x1024": lambda: product_case(2048, 1024, False),
    "product 1024x3072": lambda: product_case(1024, 3072, True),
    "product 512x14336": lambda: product_case(512, 14336, False),
    "product 77x1500": lambda: product_case(77, 1500, True),
    "gated product 3072x1024": lambda: gated_product_case(3072, 1024, "silu"),
    "gated product 1031x4096": lambda: gated_product_case(1031, 4096, "gelu_tanh"),
    "sum of ranks 1x4096": lambda: rank_sum_case(1, 4096),
    "sum of ranks 64x1024": lambda: rank_sum_case(64, 1024),
    "norm 1x1024": lambda: norm_case(1, 1024),
    "norm 700x4096": lambda: norm_case(700, 4096),
    "activation": lambda: Case(rows(3, 6144), lambda t: [gated_activation(t["x"], "silu")]),
    "rope 1": lambda: rope_case(1),
    "rope 9": lambda: rope_case(9),
    "attention in one": lambda: attention_case(1),
    "attention split": lambda: attention_case(4),
    "attention in many splits": lambda: attention_case(16, split_len=16),
    "attention of many heads": lambda: attention_case(4, 16, 1, 128),
    "greedy choice": lambda: choice_case(False),
    "drawn choice": lambda: choice_case(True),
    "inputs": fill_case,
    "experts of one token": lambda: experts_case(1, SINGLE),
    "experts in groups": lambda: experts_case(24, GROUPED),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_waits_for_those_before(name: str) -> None:
    case = CASES[name]()
    torch.cuda.synchronize()  # parameters
    assert not find_differences(case)


def test_a_missing_wait_is_found() -> None:
    """Else nothing begins early, or the tests above are blind."""

    def call(t: Tensors) -> list[torch.Tensor]:
        out = torch.empty_like(t["x"])
        late_copy(t["x"], out, delay=0, waits=False)
        return [out]

    assert 0 in find_differences(Case(rows(2, 512), call))


# --- a step of a model


WIDTH, NUM_Q, NUM_KV, DIM, INNER, VOCAB, NUM_SLOTS = 512, 8, 4, 64, 1024, 5000, 1024


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Several rows go to a kernel that knows nothing of all this."""
    return one_row_linear(x, weight) if len(x) == 1 else torch.nn.functional.linear(x, weight)


def gated_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if len(x) == 1:
        return one_row_gated_linear(x, weight, None, "silu")
    return gated_activation(linear(x, weight), "silu")


class Layer:
    def __init__(self, tiles: Tiles | None) -> None:
        def matrix(num_out: int, width: int) -> torch.Tensor:
            return (torch.randn(num_out, width) / width**0.5).to(DTYPE)

        self.tiles = tiles
        self.norms = [torch.rand(WIDTH).to(DTYPE) + 0.5 for _ in range(2)]
        self.heads = HeadNorm(*(torch.rand(DIM).to(DTYPE) + 0.5 for _ in range(2)), eps=1e-6)
        self.qkv, self.o = matrix((NUM_Q + 2 * NUM_KV) * DIM, WIDTH), matrix(WIDTH, NUM_Q * DIM)
        self.gate_up, self.down = matrix(2 * INNER, WIDTH), matrix(WIDTH, INNER)
        self.router, self.experts = matrix(16, WIDTH), make_experts(16, WIDTH, 128)
        self.pools = [torch.randn(NUM_SLOTS, NUM_KV, DIM).to(DTYPE) for _ in range(2)]

    def forward(self, x: torch.Tensor, residual: torch.Tensor, step: Step) -> tuple[Any, Any]:
        x, residual = step.keep(*rms_norm(x, self.norms[0], 1e-6, residual))
        (qkv,) = step.keep(linear(x, self.qkv))
        q, k, v = qkv.split([NUM_Q * DIM, NUM_KV * DIM, NUM_KV * DIM], dim=-1)
        positions, slots = step.lines[3], step.lines[4]
        norm_rope_store(q, k, v, positions, step.angles, self.heads, *self.pools, slots)
        attended = decode_attention(
            q.view(-1, NUM_Q, DIM),
            *self.pools,
            step.table,
            step.lines[1],
            step.lines[2],
            None,
            8,
            step.split_len,
            DecodeOptions(DIM**-0.5),
        )
        (x,) = step.keep(linear(*step.keep(attended.flatten(1)), self.o))
        x, residual = step.keep(*rms_norm(x, self.norms[1], 1e-6, residual))
        if self.tiles is None:
            (x,) = step.keep(gated_linear(x, self.gate_up))
            return step.keep(linear(x, self.down))[0], residual
        logits = linear(x, self.router)
        weights, ids = choose_experts(logits, 4, is_sigmoid=False, renormalize=True)
        config = MoeRunnerConfig(num_experts=16)
        (x,) = step.keep(run_fused(x, *self.experts, weights, ids, config, self.tiles))
        return x, residual


class Step:
    """What runs in one go, from the inputs to the next ids. Results between are kept where asked for, so that they can be poisoned."""

    def __init__(self, batch: int, keeps: bool, is_late: bool) -> None:
        self.batch, self.keeps, self.is_late = batch, keeps, is_late
        tiles = SINGLE if batch == 1 else GROUPED
        self.layers = [Layer(None), Layer(tiles), Layer(None), Layer(tiles)]
        self.embedding = torch.randn(VOCAB, WIDTH).to(DTYPE)
        self.norm, self.head = torch.ones(WIDTH).to(DTYPE), torch.randn(VOCAB, WIDTH).to(DTYPE)
        self.angles = torch.randn(512, DIM)
        self.table = torch.randint(1, NUM_SLOTS, (batch + 1, 512), dtype=torch.int32)
        self.buffer = torch.zeros(5, 16, dtype=torch.int64)
        self.split_len = torch.tensor([64], dtype=torch.int32)
        self.inputs = [torch.ones(batch, dtype=torch.int64) for _ in range(5)]
        self.dummies = torch.zeros(2, 64)
        self.kept: list[torch.Tensor] = []

    @property
    def lines(self) -> torch.Tensor:
        return self.buffer[:, : self.batch]

    def keep(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.keeps:
            self.kept += tensors
        if self.is_late:  # a kernel between all others that takes its time
            late_copy(self.dummies[0], self.dummies[1], delay=DELAY_NS // 10)
        return tensors

    def run(self) -> list[torch.Tensor]:
        self.kept = []
        fill_graph_inputs(self.buffer, *self.inputs, size=self.batch, padding_len=1)
        x = self.embedding.index_select(0, self.lines[0])
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer.forward(x, residual, self)
        x, _ = self.keep(*rms_norm(x, self.norm, 1e-6, residual))
        logits = linear(x, self.head).float()
        return [logits, *choose_tokens(logits), *self.kept]

    def draw_inputs(self) -> None:
        lens = torch.randint(1, 500, (self.batch,))
        fresh = [
            torch.randint(0, VOCAB, (self.batch,)),
            1 + torch.randperm(self.batch),
            lens,
            lens - 1,
            1 + torch.randperm(NUM_SLOTS - 1)[: self.batch],
        ]
        for line, values in zip(self.inputs, fresh, strict=True):
            line.copy_(values)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    ("keeps", "is_late"),
    [(True, False), (True, True), (False, False), (False, True)],
    ids=["poisoned", "poisoned and late", "memory used again", "memory used again, late"],
)
def test_a_step_of_a_model(batch: int, keeps: bool, is_late: bool) -> None:
    step = Step(batch, keeps, is_late)
    pools = [pool for layer in step.layers for pool in layer.pools]
    saved = [pool.clone() for pool in pools]
    torch.cuda.synchronize()  # parameters
    recorded = {is_early: Recorded(step.run, is_early) for is_early in (False, True)}
    chosen = set()
    for _ in range(NUM_REPLAYS):
        step.draw_inputs()
        results = []
        for is_early in (False, True):
            for pool, content in zip(pools, saved, strict=True):
                pool.copy_(content)
            got = recorded[is_early].replay([step.buffer])
            results.append([*got, *(pool.clone() for pool in pools)])
        want, got = results
        assert want[0].isfinite().all() and not want[2].any()
        assert not differences(got, want)
        chosen.update(want[1].tolist())
    assert len(chosen) > 5, "the steps are all alike"
