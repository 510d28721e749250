"""Eight-bit layers against plain torch, their parameters on several ranks, the cache, and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE, UnquantizedFusedMoEMethod
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.parameter import unfilled_shards
from sglang.srt.layers.quantization import get_quantization_config
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.layers.quantization.fp8_math import round_rows
from sglang.srt.layers.quantization.skipped_modules import SkippedModules
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.mem_cache.fp8_pool import Fp8MHATokenToKVPool, Fp8MLATokenToKVPool
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.kv_pool import choose_kv_dtype, create_kv_pool, kv_bytes_per_token
from sglang.srt.platforms import CpuPlatform
from sglang.srt.utils.errors import ConfigError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E, K, D, WIDTH, T = 4, 2, 32, 48, 7


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def codes(x: torch.Tensor, scale: Any) -> torch.Tensor:
    return (x / scale).clamp(-448, 448).to(E4M3)


def rounded(x: torch.Tensor, scale: Any = None) -> torch.Tensor:
    """Each row as it is after rounding."""
    if scale is None:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return codes(x, scale).float() * scale


def load(layer: Any, **tensors: Any) -> None:
    """Give parameters their tensors: one, or one for each shard."""
    for name, given in tensors.items():
        param = getattr(layer, name)
        for shard, tensor in given.items() if isinstance(given, dict) else [(None, given)]:
            param.weight_loader(param, tensor, *([] if shard is None else [shard]))


def finish(layer: Any) -> Any:
    layer.quant_method.process_weights_after_loading(layer)
    return layer


# --- linear layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_when_loaded(dtype: torch.dtype) -> None:
    layer = ReplicatedLinear(D, WIDTH, params_dtype=dtype, quant_config=Fp8Config())
    weight, bias = torch.randn(WIDTH, D, dtype=dtype), torch.randn(WIDTH, dtype=dtype)
    load(layer, weight=weight, bias=bias)
    finish(layer)
    x = torch.randn(2, T, D, dtype=dtype) * 100
    out, _ = layer(x)
    expected = F.linear(rounded(x.float()), rounded(weight.float()), bias.float())
    assert out.dtype == dtype and out.shape == (2, T, WIDTH)
    exact = dtype == torch.float32
    torch.testing.assert_close(
        out.float(),
        expected,
        rtol=1e-5 if exact else torch.finfo(dtype).eps,
        atol=1e-3 * (1.0 if exact else 10.0),
    )
    with pytest.raises(ValueError, match="cannot be replaced"):
        layer.weight.weight_loader(layer.weight, weight)


def test_rows_of_zeros_and_no_rows() -> None:
    layer = ReplicatedLinear(D, WIDTH, bias=False, quant_config=Fp8Config())
    weight = torch.randn(WIDTH, D)
    weight[3] = 0
    load(layer, weight=weight)
    finish(layer)
    assert not layer(torch.zeros(2, D))[0].any()
    assert not layer(torch.randn(2, D))[0][:, 3].any()
    assert layer(torch.zeros(0, D))[0].shape == (0, WIDTH)
    assert round_rows(torch.full((1, D), torch.nan))[1].isnan().all(), "NaN must not be hidden"


@pytest.mark.parametrize("sizes", [(D, 24), (20, WIDTH), (D, 1)])
def test_odd_shapes_stay_plain(sizes: tuple[int, int]) -> None:
    layer = ReplicatedLinear(*sizes, bias=False, quant_config=Fp8Config())
    weight, x = torch.randn(sizes[1], sizes[0]), torch.randn(T, sizes[0])
    load(layer, weight=weight)
    finish(layer)
    torch.testing.assert_close(layer(x)[0], F.linear(x, weight))


def test_parts_of_a_stored_layer_have_scales_of_their_own() -> None:
    config = Fp8Config(True, activation_scheme="static")
    layer = QKVParallelLinear(D, 8, 4, 2, bias=False, quant_config=config, prefix="a.qkv_proj")
    sizes, factors, inputs = {"q": 32, "k": 16, "v": 16}, {"q": 0.5, "k": 2.0, "v": 1.0}, [3, 9, 5]
    weights = {name: torch.randn(size, D).to(E4M3) for name, size in sizes.items()}
    load(layer, weight=weights, weight_scale={n: torch.tensor(f) for n, f in factors.items()})
    assert unfilled_shards(layer.input_scale) == {"q", "k", "v"}
    given = {n: torch.tensor([i / 100]) for n, i in zip("qkv", inputs, strict=True)}
    load(layer, input_scale=given)
    finish(layer)
    x = torch.randn(T, D) * 20
    expected = torch.cat([weights[name].float() * factors[name] for name in "qkv"])
    expected = F.linear(rounded(x, 0.09), expected)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-5, atol=1e-4)


def test_one_scale_of_a_layer_that_is_fused_on_disk() -> None:
    config = Fp8Config(True, activation_scheme="static")
    layer = MergedColumnParallelLinear(D, [16, 32], bias=False, quant_config=config)
    weight = torch.randn(48, D).to(E4M3)
    load(layer, weight=weight, weight_scale=torch.tensor(0.25), input_scale=torch.tensor(0.1))
    assert not any(unfilled_shards(p) for p in layer.parameters())
    x = torch.randn(T, D)
    expected = F.linear(rounded(x, 0.1), weight.float() * 0.25)
    torch.testing.assert_close(finish(layer)(x)[0], expected)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_row_scales_are_cut_over_ranks(rank: int, flat: bool) -> None:
    place: Any = {"tp_rank": rank, "tp_size": 2, "quant_config": Fp8Config(True), "bias": False}
    weight, scale = torch.randn(64, D).to(E4M3), torch.rand(64, 1) + 0.5
    on_disk = scale.flatten() if flat else scale
    x = torch.randn(T, D)
    column = ColumnParallelLinear(D, 64, **place)
    load(column, weight=weight, weight_scale=on_disk)
    full = F.linear(rounded(x), weight.float() * scale)
    torch.testing.assert_close(column(x)[0], full[:, 32 * rank : 32 * rank + 32])
    row = RowParallelLinear(D, 64, **place, reduce_results=False)
    load(row, weight=weight, weight_scale=on_disk)
    half = slice(16 * rank, 16 * rank + 16)
    expected = F.linear(rounded(x[:, half]), weight[:, half].float() * scale)
    torch.testing.assert_close(row(x[:, half])[0], expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_block_scales_are_cut_over_ranks(rank: int) -> None:
    config = Fp8Config(True, weight_block_size=[8, 16])
    place: Any = {"tp_rank": rank, "tp_size": 2, "quant_config": config, "bias": False}
    weight, scale = torch.randn(64, D).to(E4M3), torch.rand(8, 2) + 0.5
    numbers = weight.float() * scale.repeat_interleave(8, 0).repeat_interleave(16, 1)
    x = torch.randn(T, D)
    merged = MergedColumnParallelLinear(D, [32, 32], **place)
    halves, scales = weight.chunk(2), scale.chunk(2)
    load(merged, weight=dict(enumerate(halves)), weight_scale_inv=dict(enumerate(scales)))
    mine = slice(16 * rank, 16 * rank + 16)
    expected = torch.cat([half[mine] for half in numbers.chunk(2)])
    torch.testing.assert_close(merged(x)[0], F.linear(x, expected))
    row = RowParallelLinear(D, 64, **place, reduce_results=False)
    load(row, weight=weight, weight_scale_inv=scale)
    torch.testing.assert_close(row(x[:, mine])[0], F.linear(x[:, mine], numbers[:, mine]))


def test_blocks_must_not_be_cut() -> None:
    config = Fp8Config(True, weight_block_size=[16, 16])
    place: Any = {"tp_rank": 0, "tp_size": 2, "quant_config": config, "prefix": "a.b"}
    with pytest.raises(ConfigError, match="a.b: output parts of 24 .* no multiple of 16"):
        ColumnParallelLinear(D, 48, **place)
    with pytest.raises(ConfigError, match="a.b: input parts of 8 .* no multiple of 16"):
        RowParallelLinear(16, 32, **place)
    with pytest.raises(ConfigError, match="output parts of 24"):
        MergedColumnParallelLinear(D, [24, 16], quant_config=config, prefix="a.b")
    # The last part may end within a block.
    layer = MergedColumnParallelLinear(D, [16, 24], quant_config=config, prefix="a.b")
    assert layer.weight_scale_inv.shape == (3, 2)


# --- experts


def make_experts(config: Any) -> FusedMoE:
    return FusedMoE(E, D, WIDTH, layer_id=0, top_k=K, quant_config=config, prefix="m.experts")


def load_experts(layer: FusedMoE, kind: str, tensors: dict[str, torch.Tensor]) -> None:
    """`tensors`: w1, w3, w2 of all experts."""
    for shard, stacked in tensors.items():
        param = getattr(layer, f"{'w2' if shard == 'w2' else 'w13'}_{kind}")
        for expert in range(E):
            param.weight_loader(param, stacked[expert], f"{expert}.{shard}", shard, expert)


def routing() -> StandardTopKOutput:
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(T)]).int()
    return StandardTopKOutput(torch.rand(T, K), ids, torch.randn(T, E))


def by_loop(
    x: torch.Tensor, numbers: dict[str, torch.Tensor], out: StandardTopKOutput, inputs: Any
) -> torch.Tensor:
    """Token by token; `inputs` rounds what a matrix of an expert reads."""
    result = torch.zeros(T, D)
    for t in range(T):
        for k in range(K):
            e = int(out.topk_ids[t, k])
            row = inputs(x[t : t + 1], "w13", e)
            hidden = F.silu(row @ numbers["w1"][e].T) * (row @ numbers["w3"][e].T)
            result[t] += out.topk_weights[t, k] * (inputs(hidden, "w2", e) @ numbers["w2"][e].T)[0]
    return result


def random_experts() -> dict[str, torch.Tensor]:
    shapes = {"w1": (E, WIDTH, D), "w3": (E, WIDTH, D), "w2": (E, D, WIDTH)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize("scheme", ["channel", "tensor"])
def test_experts_are_rounded_when_loaded(scheme: str) -> None:
    layer, weights = make_experts(Fp8Config(weight_scheme=scheme)), random_experts()
    load_experts(layer, "weight", weights)
    finish(layer)
    numbers = {name: rounded(weight) for name, weight in weights.items()}
    if scheme == "tensor":
        both = torch.cat([weights["w1"], weights["w3"]], 1).abs().amax((1, 2), True) / 448
        scales = {"w1": both, "w3": both, "w2": weights["w2"].abs().amax((1, 2), True) / 448}
        numbers = {name: rounded(weights[name], scale) for name, scale in scales.items()}
    x, out = torch.randn(T, D), routing()
    expected = by_loop(x, numbers, out, lambda rows, name, e: rounded(rows))
    torch.testing.assert_close(layer(x, out), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_stored_experts(per_row: bool, static: bool) -> None:
    layer = make_experts(Fp8Config(True, "static" if static else "dynamic"))
    weights = random_experts()
    scales = {n: w.abs().amax((2,) if per_row else (1, 2), True) / 448 for n, w in weights.items()}
    load_experts(layer, "weight", {n: codes(w, scales[n]) for n, w in weights.items()})
    on_disk = {n: s if per_row else s.flatten() for n, s in scales.items()}
    load_experts(layer, "weight_scale", on_disk)
    given = {"w1": torch.rand(E) / 50 + 0.01, "w3": torch.rand(E) / 50 + 0.01}
    given["w2"] = torch.rand(E) / 50 + 0.01
    if static:
        assert len(unfilled_shards(layer.w13_input_scale)) == 2 * E
        load_experts(layer, "input_scale", given)
    assert not any(unfilled_shards(p) for p in layer.parameters())

    def inputs(rows: torch.Tensor, name: str, e: int) -> torch.Tensor:
        if not static:
            return rounded(rows)
        scale = given["w2"][e] if name == "w2" else torch.maximum(given["w1"][e], given["w3"][e])
        return rounded(rows, scale)

    x, out = torch.randn(T, D), routing()
    numbers = {n: rounded(w, scales[n]) for n, w in weights.items()}
    expected = by_loop(x, numbers, out, inputs)
    torch.testing.assert_close(finish(layer)(x, out), expected, rtol=1e-4, atol=1e-4)


def test_experts_in_blocks_and_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = Fp8Config(True, weight_block_size=[8, 16]), random_experts()
    scales = {n: torch.rand(E, w.shape[1] // 8, w.shape[2] // 16) + 0.5 for n, w in weights.items()}
    stored = {n: w.to(E4M3) for n, w in weights.items()}
    numbers = {
        n: stored[n].float() * scales[n].repeat_interleave(8, 1).repeat_interleave(16, 2)
        for n in stored
    }
    x, out = torch.randn(T, D), routing()
    expected = by_loop(x, numbers, out, lambda rows, name, e: rows)
    layer = make_experts(config)
    load_experts(layer, "weight", stored)
    load_experts(layer, "weight_scale_inv", scales)
    torch.testing.assert_close(finish(layer)(x, out), expected, rtol=1e-4, atol=1e-4)

    total = torch.zeros(T, D)
    module = "sglang.srt.layers.moe.fused_moe_triton.layer.get_moe_tensor_parallel"
    for rank in range(3):
        monkeypatch.setattr(f"{module}_world_size", lambda: 3)
        monkeypatch.setattr(f"{module}_rank", lambda rank=rank: rank)
        part = make_experts(config)
        load_experts(part, "weight", stored)
        load_experts(part, "weight_scale_inv", scales)
        total += finish(part)(x, out)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(f"{module}_world_size", lambda: 4)
    with pytest.raises(ConfigError, match="m.experts: output parts of 12"):
        make_experts(config)


def test_experts_must_be_what_the_config_promises() -> None:
    layer = make_experts(Fp8Config(True))
    with pytest.raises(ValueError, match="torch.bfloat16 where the config promises"):
        load_experts(layer, "weight", {"w1": torch.zeros(E, WIDTH, D, dtype=torch.bfloat16)})
    layer = make_experts(Fp8Config(True, weight_block_size=[8, 16]))
    with pytest.raises(ValueError, match="expects shape|must be"):
        load_experts(layer, "weight_scale_inv", {"w2": torch.ones(E)})


# --- which layers


def test_what_is_skipped() -> None:
    packed = {"qkv_proj": ["q_proj", "k_proj"], "gate_up_proj": ["gate_up_proj"]}
    entries = [
        "lm_head",
        "model.layers.1",
        "mlp.down_proj",
        "re:.*visual.*",
        "a.q_proj",
        "a.k_proj",
    ]
    skipped = SkippedModules(entries, packed)
    for name in (
        "lm_head",
        "model.layers.1.mlp.gate_up_proj",
        "model.layers.7.mlp.down_proj",
        "visual.x",
        "a.qkv_proj",
    ):
        assert skipped.has(name), name
    for name in ("model.layers.10.o_proj", "b.qkv_proj", "model.down_proj", "my_lm_head"):
        assert not skipped.has(name), name
    assert skipped.has_experts("model.layers.1.mlp.experts")
    assert SkippedModules(["m.experts.0.w1"], {}).has_experts("m.experts")
    assert not SkippedModules(["m.experts_2"], {}).has_experts("m.experts")
    with pytest.raises(ConfigError, match="b.qkv_proj is fused of .* only b.k_proj"):
        SkippedModules(["b.k_proj"], packed).has("b.qkv_proj")


def test_methods_of_layers() -> None:
    assert get_quantization_config("fp8") is Fp8Config
    config = Fp8Config.from_config({"quant_method": "fp8", "modules_to_not_convert": ["m"]})
    assert isinstance(make_experts(config).quant_method, UnquantizedFusedMoEMethod)
    plain = ReplicatedLinear(D, D, quant_config=config, prefix="m.gate")
    assert isinstance(plain.quant_method, UnquantizedLinearMethod)
    assert ParallelLMHead(64, D, quant_config=config).weight.dtype == torch.get_default_dtype()
    with pytest.raises(ConfigError, match="weight_scheme='row'"):
        Fp8Config(weight_scheme="row")


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [((0.5, 2.0), (0.5, 2.0)), ((-1, -1), (1.0, 1.0)), ((0.5, -1), (0.5, 0.5)), ((-1, 2), (2, 2))],
)
def test_scales_of_attention(loaded: tuple[float, float], expected: tuple[float, float]) -> None:
    layer = RadixAttention(2, 8, 1.0, 2, layer_id=3, quant_config=Fp8Config(True))
    assert not unfilled_shards(layer.k_scale)
    layer.k_scale.data.fill_(loaded[0])
    layer.v_scale.data.fill_(loaded[1])
    finish(layer)
    assert (layer.k_scale_float, layer.v_scale_float) == expected
    assert (layer.k_scale.item(), layer.v_scale.item()) == expected
    layer.k_scale.data.fill_(0)
    with pytest.raises(ConfigError, match="layer 3 .* positive"):
        finish(layer)


# --- the cache


def _layer(layer_id: int, k_scale: float) -> Any:
    scale = torch.tensor(k_scale)
    return SimpleNamespace(
        layer_id=layer_id, k_scale=scale, k_scale_float=k_scale, v_scale=None, v_scale_float=None
    )


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("loc_dtype", [torch.int32, torch.int64])
def test_pools_keep_scaled_codes(dtype: torch.dtype, loc_dtype: torch.dtype) -> None:
    pool = Fp8MHATokenToKVPool(16, 4, dtype, 2, 8, 3, "cpu", v_head_dim=4)
    layer = _layer(1, 0.5)
    k, v = torch.randn(2, 2, 8) * 3, torch.randn(2, 2, 4)
    k[0, 0, 0], v[0, 0, 0] = 1e6, -1e6
    loc = torch.tensor([5, 9], dtype=loc_dtype)
    largest = torch.finfo(dtype).max
    for given, k_scale in ((None, 0.5), (layer.k_scale, 0.5), (0.25, 0.25), (torch.tensor(4.0), 4)):
        pool.set_kv_buffer(layer, loc, k, v, given)
        keys, values = pool.get_kv_buffer(1)
        expected = (k / k_scale).clamp(-largest, largest).to(dtype)
        assert torch.equal(keys[loc.long()].float(), expected.float())
        assert torch.equal(values[loc.long()].float(), v.clamp(-largest, largest).to(dtype).float())
        assert keys.dtype == dtype and keys.float().isfinite().all()
    assert pool.total_bytes == 16 * MHATokenToKVPool.bytes_per_token(2, 8, 3, dtype, 4)
    assert MHATokenToKVPool.bytes_per_token(2, 8, 3, dtype, 4) == 2 * 12 * 3
    with pytest.raises(ValueError, match="bfloat16 is not supported"):
        Fp8MHATokenToKVPool(16, 4, torch.bfloat16, 2, 8, 3, "cpu")


@pytest.mark.parametrize("is_split", [True, False])
def test_latent_pools_keep_scaled_codes(is_split: bool) -> None:
    pool = Fp8MLATokenToKVPool(16, 4, E4M3, 6, 2, 3, "cpu")
    layer = _layer(2, 2.0)
    rows, loc = torch.randn(3, 1, 8), torch.tensor([4, 7, 15])
    if is_split:
        pool.set_mla_kv_buffer(layer, loc, rows[..., :6], rows[:, 0, 6:])
    else:
        pool.set_kv_buffer(layer, loc, rows, rows[..., :6])
    expected = (rows / 2).to(E4M3).float()
    assert torch.equal(pool.get_key_buffer(2)[loc].float(), expected)
    assert torch.equal(pool.get_value_buffer(2)[loc].float(), expected[..., :6])


def test_the_flag_chooses_the_pool() -> None:
    cpu = CpuPlatform()
    backends = ("torch_native", "triton", "flashinfer")
    assert choose_kv_dtype("auto", backends, cpu) is None
    assert choose_kv_dtype("auto", ("fa3",), cpu) is None
    assert choose_kv_dtype("bf16", backends, cpu) == torch.bfloat16
    assert choose_kv_dtype("fp8_e5m2", backends, cpu) == E5M2
    assert choose_kv_dtype("fp8_e4m3", backends, cpu, "scales.json") == E4M3
    with pytest.raises(ConfigError, match="fp8_e4m3 is not implemented .*'fa3'"):
        choose_kv_dtype("fp8_e4m3", ("triton", "fa3"), cpu)
    for name in ("auto", "fp8_e5m2"):
        with pytest.raises(ConfigError, match=f"param-path is for .* '{name}'"):
            choose_kv_dtype(name, backends, cpu, "scales.json")
    with pytest.raises(ConfigError, match="'fp4_e2m1' is not implemented"):
        choose_kv_dtype("fp4_e2m1", backends, cpu)


@pytest.mark.parametrize(
    ("capability", "refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False)]
)
def test_a_gpu_must_convert_from_e4m3(monkeypatch, capability, refused) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu: Any = SimpleNamespace(is_cuda=True, device="cuda:1")
    assert choose_kv_dtype("fp8_e5m2", ["triton"], gpu) == E5M2
    if not refused:
        assert choose_kv_dtype("fp8_e4m3", ["triton"], gpu) == E4M3
        return
    with pytest.raises(
        ConfigError, match=rf"this one has {capability[0]}\.{capability[1]}; choose"
    ):
        choose_kv_dtype("fp8_e4m3", ["triton"], gpu)


def test_sizes_by_dtype() -> None:
    config: Any = SimpleNamespace(
        facts=SimpleNamespace(mla=None, head_dim=8, num_hidden_layers=3),
        get_num_kv_heads=lambda tp_size: 2,
    )
    assert kv_bytes_per_token(config, 1, E4M3) * 2 == kv_bytes_per_token(config, 1, torch.bfloat16)
    pool = create_kv_pool(config, 1, 32, 1, E5M2, "cpu")
    assert type(pool) is Fp8MHATokenToKVPool and pool.total_bytes == 32 * 3 * 2 * 16
    config.facts.mla = SimpleNamespace(kv_lora_rank=6, qk_rope_head_dim=2)
    assert type(create_kv_pool(config, 1, 32, 1, E4M3, "cpu")) is Fp8MLATokenToKVPool
    assert kv_bytes_per_token(config, 1, E4M3) == 3 * 8


def test_formats_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="'awq' is not supported; supported: fp8"):
        get_quantization_config("awq")
