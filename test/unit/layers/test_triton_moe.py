"""The Triton kernels of experts in Triton's interpreter, their tiles, and when layers take them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from triton_interpreter import output_of, run_cases

from sglang.srt.layers.moe import fused_experts, tiles
from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.fused_experts import why_not_fused
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Shape, Tile, Tiles, choose_tiles
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from sglang.srt.model_executor.cuda_graph_runner import why_not_captured

has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="the package triton is not installed")


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    # Memory that nobody wrote holds huge numbers: a kernel must not touch them.
    output = output_of(run_cases("triton_moe_cases.py", MALLOC_PERTURB_="128"))
    assert " passed" in output and "skipped" not in output


# --- when


def matrices(dtype: torch.dtype = torch.float32, **kwargs) -> tuple[ExpertMatrix, ExpertMatrix]:
    first, second = torch.zeros(2, 32, 16, dtype=dtype), torch.zeros(2, 16, 16, dtype=dtype)
    return ExpertMatrix(first, **kwargs), ExpertMatrix(second, **kwargs)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_experts, "_is_gpu", lambda device: True)


def test_a_cpu_computes_in_plain_torch() -> None:
    reason = why_not_fused(*matrices(), MoeRunnerConfig(), torch.float32)
    assert reason == "they are on 'cpu', not on a GPU"


@needs_triton
@pytest.mark.parametrize(
    ("kwargs", "config", "dtype", "reason"),
    [
        ({}, {}, torch.float32, None),
        ({}, {"gemm1_alpha": 1.7, "is_gated": True}, torch.float32, None),
        ({}, {"activation": "swish"}, torch.float32, "no kernel has the activation 'swish'"),
        ({}, {}, torch.float64, "activations of torch.float64"),
        ({}, {}, torch.bfloat16, "weights are torch.float32 and activations torch.bfloat16"),
        (
            {"scale": torch.ones(2, 2, 2), "block_size": (16, 8)},
            {},
            torch.float32,
            "blocks of 8 columns",
        ),
    ],
)
def test_what_kernels_decline(as_on_a_gpu, kwargs, config, dtype, reason) -> None:
    found = why_not_fused(*matrices(**kwargs), MoeRunnerConfig(**config), dtype)
    assert found is None if reason is None else reason in (found or "")


@needs_triton
def test_weights_in_pieces_are_declined(as_on_a_gpu) -> None:
    first, second = matrices()
    turned = ExpertMatrix(second.weight.transpose(1, 2))
    found = why_not_fused(first, turned, MoeRunnerConfig(), torch.float32)
    assert found is not None and "one piece" in found


@needs_triton
def test_graphs_hold_experts_that_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(FusedMoE(4, 16, 16, layer_id=0, prefix="layers.3.experts"))
    reason = why_not_captured(model)
    assert reason is not None and "(layers.3.experts)" in reason and "not on a GPU" in reason
    monkeypatch.setattr(fused_experts, "_is_gpu", lambda device: True)
    assert why_not_captured(model) is None
    odd = FusedMoE(4, 16, 16, layer_id=1, prefix="layers.4.experts", activation="swish")
    reason = why_not_captured(torch.nn.Sequential(model, odd))
    assert reason is not None and "(layers.4.experts)" in reason and "'swish'" in reason


def test_other_methods_are_taken_to_wait() -> None:
    class Method(FusedMoEMethodBase):
        def create_weights(self, *args: object, **kwargs: object) -> None: ...
        def create_moe_runner(self, *args: object) -> None: ...
        def apply(self, *args: object, **kwargs: object) -> None: ...

    assert "Method" in (Method().why_waits_for_host(torch.nn.Identity()) or "")


def test_routing_for_a_gpu_serves_a_cpu() -> None:
    topk, logits = TopK(2), torch.randn(3, 8)
    got = topk.forward_cuda(logits, logits, num_token_non_padded=torch.tensor(2))
    want = topk.forward_native(logits, logits, num_token_non_padded=torch.tensor(2))
    assert torch.equal(got.topk_ids, want.topk_ids) and (got.topk_ids[2] == -1).all()


# --- tiles


def shape(num_tokens: int, **kwargs) -> Shape:
    """Qwen3-30B-A3B on one GPU in bfloat16."""
    sizes = dict(
        num_tokens=num_tokens,
        num_choices=8 * num_tokens,
        num_experts=128,
        num_local=128,
        hidden=2048,
        inner=768,
        is_gated=True,
        row_bytes=2,
        weight_bytes=2,
    )
    return Shape(**sizes | kwargs)


def test_blocks_grow_with_the_choices_of_an_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TUNED", {})
    choose_tiles.cache_clear()
    found = [choose_tiles(shape(n)).block_m for n in (1, 4, 8, 64, 128, 256, 2048, 8192)]
    assert found == [1, 1, 16, 16, 16, 32, 64, 128]
    assert choose_tiles(shape(1, may_be_single=False)).block_m == 16
    choose_tiles.cache_clear()


@pytest.mark.parametrize("num_tokens", [2, 8, 64, 600, 2048, 8192])
@pytest.mark.parametrize("bytes_of", [(2, 2), (4, 4), (1, 1), (2, 1)])
@pytest.mark.parametrize("shared_memory", [227 * 1024, 99 * 1024])
def test_tiles_fit(num_tokens, bytes_of, shared_memory) -> None:
    row, weight = bytes_of
    for inner, num_experts in ((768, 8), (96, 128), (14336, 8), (24, 4)):
        asked = shape(
            num_tokens,
            inner=inner,
            num_experts=num_experts,
            num_local=num_experts,
            row_bytes=row,
            weight_bytes=weight,
            shared_memory=shared_memory,
            may_be_single=False,
        )
        found = choose_tiles(asked)
        for tile, halves in ((found.first, 2), (found.second, 1)):
            stage = tile.block_k * (found.block_m * row + halves * tile.block_n * weight)
            assert stage * tile.num_stages <= shared_memory and tile.num_stages >= 2
            assert tile.block_n >= 16 and tile.block_k >= (32 if row == 1 else 16)
            assert all(n & (n - 1) == 0 for n in (found.block_m, tile.block_n, tile.block_k))


def test_few_choices_still_fill_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TUNED", {})
    choose_tiles.cache_clear()
    for num_tokens in (1, 2, 8, 64):
        found = choose_tiles(shape(num_tokens))
        blocks = min(8 * num_tokens, 128)
        for tile, num_out in ((found.first, 768), (found.second, 2048)):
            assert blocks * -(-num_out // tile.block_n) >= 2 * 132
    choose_tiles.cache_clear()


def test_measured_tiles_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {8: (1, (1, 512, 1, 8, 1), (2, 256, 1, 4, 1)), 512: (16, (32, 64, 1, 4, 5), (64,) * 5)}
    monkeypatch.setattr(tiles, "TUNED", {shape(1).key: fields})
    choose_tiles.cache_clear()
    single = Tiles(1, Tile(1, 512, 1, 8, 1), Tile(2, 256, 1, 4, 1))
    grouped = Tiles(16, Tile(32, 64, 1, 4, 5), Tile(64, 64, 64, 64, 64))
    assert choose_tiles(shape(1)) == single
    assert choose_tiles(shape(2)) == choose_tiles(shape(64)) == choose_tiles(shape(999)) == grouped
    assert choose_tiles(shape(1, may_be_single=False)).block_m == 16
    assert choose_tiles(shape(64, inner=96)) != grouped
    choose_tiles.cache_clear()
