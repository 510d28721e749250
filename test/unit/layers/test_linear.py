"""Linear layers: products, the cutting over ranks, and the strictness of their loaders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sglang.srt.layers.linear import (
    ColumnParallelBatchedLinear,
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    MergedColumnParallelRepeatedLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.parameter import (
    PackedvLLMParameter,
    PerTensorScaleParameter,
    expected_shards,
    filled_shards,
    unfilled_shards,
)
from sglang.srt.layers.quantization.base_config import LinearMethodBase, QuantizationConfig


def _load(layer, weight, bias=None, *shard):
    layer.weight.weight_loader(layer.weight, weight, *shard)
    if bias is not None:
        layer.bias.weight_loader(layer.bias, bias, *shard)


@pytest.mark.parametrize("kind", [ReplicatedLinear, ColumnParallelLinear, RowParallelLinear])
@pytest.mark.parametrize("skip_bias_add", [False, True])
def test_single_rank_is_torch_linear(kind, skip_bias_add):
    layer = kind(6, 4, skip_bias_add=skip_bias_add)
    weight, bias, x = torch.randn(4, 6), torch.randn(4), torch.randn(3, 6)
    _load(layer, weight, bias)
    out, left = layer(x)
    torch.testing.assert_close(out, F.linear(x, weight, None if skip_bias_add else bias))
    assert (left is layer.bias) if skip_bias_add else (left is None)


def test_no_bias_and_empty_input():
    layer = ColumnParallelLinear(6, 4, bias=False)
    _load(layer, torch.randn(4, 6))
    out, left = layer(torch.empty(0, 6))
    assert layer.bias is None and left is None and out.shape == (0, 4)


def test_params_dtype_overrides_the_default():
    layer = ReplicatedLinear(6, 4, params_dtype=torch.float16)
    assert layer.weight.dtype == layer.bias.dtype == torch.float16


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_column_ranks_concatenate_to_the_whole(tp_size):
    weight, bias, x = torch.randn(8, 6), torch.randn(8), torch.randn(3, 6)
    parts = []
    for rank in range(tp_size):
        layer = ColumnParallelLinear(6, 8, tp_rank=rank, tp_size=tp_size)
        _load(layer, weight, bias)
        assert layer.output_size_per_partition == 8 // tp_size
        parts.append(layer(x)[0])
    torch.testing.assert_close(torch.cat(parts, -1), F.linear(x, weight, bias))


@pytest.mark.parametrize("input_is_parallel", [True, False])
def test_row_ranks_sum_to_the_whole_with_one_bias(input_is_parallel):
    weight, bias, x = torch.randn(4, 8), torch.randn(4), torch.randn(3, 8)
    total = torch.zeros(3, 4)
    for rank in range(2):
        layer = RowParallelLinear(
            8, 4, input_is_parallel=input_is_parallel, tp_rank=rank, tp_size=2
        )
        _load(layer, weight, bias)
        part = x[:, rank * 4 : rank * 4 + 4] if input_is_parallel else x
        total += layer(part, skip_all_reduce=True)[0]
    torch.testing.assert_close(total, F.linear(x, weight, bias))


@pytest.mark.parametrize("fused", [False, True])
def test_merged_column_layout(fused):
    gate, up, bias = torch.randn(4, 6), torch.randn(8, 6), torch.randn(12)
    for rank in range(2):
        layer = MergedColumnParallelLinear(6, [4, 8], tp_rank=rank, tp_size=2)
        if fused:
            _load(layer, torch.cat([gate, up]), bias)
        else:
            _load(layer, gate, bias[:4], 0)
            assert unfilled_shards(layer.weight) == {1}
            _load(layer, up, bias[4:], 1)
        expected = torch.cat([gate[rank * 2 :][:2], up[rank * 4 :][:4]])
        assert torch.equal(layer.weight, expected)
        assert torch.equal(layer.bias[:2], bias[rank * 2 :][:2])
        assert expected_shards(layer.weight) == filled_shards(layer.weight) == {0, 1}


def _qkv_heads(total_heads, total_kv, dim, v_dim, hidden):
    return (
        torch.randn(total_heads, dim, hidden),
        torch.randn(total_kv, dim, hidden),
        torch.randn(total_kv, v_dim, hidden),
    )


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("fused", [False, True])
def test_qkv_heads_of_each_rank(tp_size, fused):
    q, k, v = _qkv_heads(8, 2, dim=4, v_dim=3, hidden=6)
    for rank in range(tp_size):
        layer = QKVParallelLinear(
            6, 4, 8, 2, bias=False, tp_rank=rank, tp_size=tp_size, v_head_size=3
        )
        whole = [t.flatten(0, 1) for t in (q, k, v)]
        if fused:
            _load(layer, torch.cat(whole))
        else:
            for shard, tensor in zip("qkv", whole, strict=True):
                _load(layer, tensor, None, shard)
        heads = slice(rank * 8 // tp_size, (rank + 1) * 8 // tp_size)
        first_kv = rank * 2 // tp_size
        kv = slice(first_kv, first_kv + max(1, 2 // tp_size))
        expected = torch.cat([q[heads].flatten(0, 1), k[kv].flatten(0, 1), v[kv].flatten(0, 1)])
        assert torch.equal(layer.weight, expected)
        assert layer.num_kv_head_replicas == max(1, tp_size // 2)
        assert not unfilled_shards(layer.weight)
        assert layer.q_proj_shard_size == 32 // tp_size


def test_presharded_tensors_are_not_cut():
    layer = ColumnParallelLinear(
        6, 8, bias=False, tp_rank=1, tp_size=2, use_presharded_weights=True
    )
    mine = torch.randn(4, 6)
    _load(layer, mine)
    assert torch.equal(layer.weight, mine)
    qkv = QKVParallelLinear(6, 2, 4, 2, bias=False, tp_rank=1, tp_size=2, load_presharded_attn=True)
    k = torch.randn(2, 6)
    _load(qkv, k, None, "k")
    assert torch.equal(qkv.weight[4:6], k)


@pytest.mark.parametrize(
    ("layer", "shape", "args", "words"),
    [
        (
            lambda: ReplicatedLinear(6, 4, prefix="a.b"),
            (6, 4),
            (),
            ["a.b.weight", "(4, 6)", "(6, 4)"],
        ),
        (
            lambda: ColumnParallelLinear(6, 4, prefix="c"),
            (5, 6),
            (),
            ["c.weight", "must be 4", "(5, 6)"],
        ),
        (
            lambda: RowParallelLinear(6, 4, prefix="r"),
            (4, 5),
            (),
            ["r.weight", "must be 6", "(4, 5)"],
        ),
        (
            lambda: MergedColumnParallelLinear(6, [4, 8], prefix="m"),
            (7, 6),
            (1,),
            ["m.weight, shard 1", "must be 8", "(7, 6)"],
        ),
        (
            lambda: QKVParallelLinear(6, 2, 4, 2, prefix="p.qkv"),
            (4, 5),
            ("k",),
            ["p.qkv.weight, shard k", "(4, 6)", "(4, 5)"],
        ),
        (lambda: QKVParallelLinear(6, 2, 4, 2, prefix="q"), (15, 6), (), ["q.weight", "8 + 4 + 4"]),
        (lambda: QKVParallelLinear(6, 2, 4, 2, prefix="q"), (4, 6), ("x",), ["'x'", "q, k, v"]),
        (lambda: MergedColumnParallelLinear(6, [4, 8]), (4, 6), (2,), ["shard 2", "[0, 1]"]),
    ],
)
def test_wrong_shapes_are_refused_by_name(layer, shape, args, words):
    layer = layer()
    with pytest.raises(ValueError) as error:
        layer.weight.weight_loader(layer.weight, torch.zeros(shape), *args)
    for word in words:
        assert word in str(error.value)
    assert not filled_shards(layer.weight)


def test_padded_width_fills_with_zeros_only_across_ranks():
    narrow = torch.ones(7, 6)
    layer = MergedColumnParallelLinear(6, [8, 8], bias=False, tp_rank=1, tp_size=2)
    _load(layer, narrow, None, 0)
    assert layer.weight[:4].sum(1).tolist() == [6, 6, 6, 0]
    row = RowParallelLinear(8, 6, bias=False, tp_rank=1, tp_size=2)
    _load(row, narrow.t())
    assert row.weight.sum(0).tolist() == [6, 6, 6, 0]
    alone = MergedColumnParallelLinear(6, [8, 8], bias=False)
    with pytest.raises(ValueError, match="must be 8"):
        _load(alone, narrow, None, 0)


def test_indivisible_size_is_refused():
    with pytest.raises(
        ValueError, match="tp_size=2 does not divide the output size 7 of a linear layer"
    ):
        ColumnParallelLinear(6, 7, tp_rank=0, tp_size=2)


def test_repeated_and_batched_layers():
    layer = MergedColumnParallelRepeatedLinear(6, [4, 2], [3])
    parts = [torch.randn(n, 6) for n in (4, 2, 3)]
    for shard, part in enumerate(parts):
        _load(layer, part, None, shard)
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), F.linear(x, torch.cat(parts)))
    batched = ColumnParallelBatchedLinear(2, 6, 4, torch.float32)
    weights = torch.randn(2, 4, 6)
    for i in range(2):
        _load(batched, weights[i], None, i)
    xs = torch.randn(2, 3, 6)
    torch.testing.assert_close(batched(xs), torch.einsum("bti,boi->bto", xs, weights))
    assert not unfilled_shards(batched.weight)


class _PackedMethod(LinearMethodBase):
    """Two 4-bit values to a byte along the output, and one scale per fused part."""

    def create_weights(self, layer, input_size_per_partition, output_partition_sizes, **extra):
        loader = extra["weight_loader"]
        shape = (sum(output_partition_sizes) // 2, input_size_per_partition)
        layer.qweight = PackedvLLMParameter(
            data=torch.zeros(shape, dtype=torch.uint8),
            input_dim=1,
            output_dim=0,
            packed_dim=0,
            packed_factor=2,
            weight_loader=loader,
        )
        layer.scale = PerTensorScaleParameter(
            data=torch.zeros(len(output_partition_sizes)), weight_loader=loader
        )

    def apply(self, layer, x, bias=None):
        return x


class _PackedConfig(QuantizationConfig):
    method: LinearMethodBase | None = _PackedMethod()

    def get_name(self):
        return "packed"

    def get_supported_act_dtypes(self):
        return [torch.float32]

    @classmethod
    def get_min_capability(cls):
        return 0

    @staticmethod
    def get_config_filenames():
        return []

    @classmethod
    def from_config(cls, config):
        return cls()

    def get_quant_method(self, layer, prefix):
        return self.method

    def get_scaled_act_names(self):
        return []


def test_quantized_parameters_are_placed_by_their_attributes():
    layer = MergedColumnParallelLinear(
        6, [4, 8], bias=False, quant_config=_PackedConfig(), tp_rank=1, tp_size=2
    )
    up = torch.arange(4 * 6, dtype=torch.uint8).view(4, 6)
    layer.qweight.weight_loader(layer.qweight, up, 1)
    layer.scale.weight_loader(layer.scale, torch.tensor(0.5), 1)
    assert torch.equal(layer.qweight[1:], up[2:]) and not layer.qweight[:1].any()
    assert layer.scale.tolist() == [0.0, 0.5]
    assert unfilled_shards(layer.qweight) == unfilled_shards(layer.scale) == {0}


def test_quantization_must_name_a_method():
    config = _PackedConfig()
    config.method = None
    with pytest.raises(ValueError, match="a.b: quantization 'packed' has no method"):
        ReplicatedLinear(6, 4, quant_config=config, prefix="a.b")
