"""Linear layers, cut over tensor-parallel ranks.

`y = x W^T + b` with W [out, in]. Column layers cut W along out, row layers along in and sum the
partial results. Every forward returns the pair (output, bias that the caller must still add or
None).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    split_tensor_along_last_dim,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from sglang.srt.layers.dp_attention import get_attention_tp_group
from sglang.srt.layers.parameter import ShardId, expect_shards, mark_filled
from sglang.srt.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.weight_placement import (
    copy_into,
    place_shard,
    rescale_span,
    slice_for_rank,
)
from sglang.srt.utils import set_weight_attrs
from sglang.srt.utils.errors import ConfigError


class LinearBase(torch.nn.Module):
    """Sizes, dtype and the method that stores and applies the weight."""

    # Whether the output's rows must lie in memory one after the other; see `matmul.linear`.
    needs_rows = True

    def __init__(
        self,
        input_size: int,
        output_size: int,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.skip_bias_add = skip_bias_add
        self.params_dtype = params_dtype or torch.get_default_dtype()
        self.quant_config = quant_config
        self.prefix = prefix
        self.quant_method = _choose_method(self, quant_config, prefix)

    def _create_parameters(
        self,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        bias: bool,
        shards: list[ShardId] | None = None,
        **extra_weight_attrs: Any,
    ) -> None:
        self.quant_method.create_weights(
            layer=self,
            input_size_per_partition=input_size_per_partition,
            output_partition_sizes=output_partition_sizes,
            input_size=self.input_size,
            output_size=self.output_size,
            params_dtype=self.params_dtype,
            weight_loader=self.weight_loader,
            **extra_weight_attrs,
        )
        if bias:
            size = sum(output_partition_sizes)
            self.bias = Parameter(torch.empty(size, dtype=self.params_dtype), requires_grad=False)
            set_weight_attrs(self.bias, {"output_dim": 0, "weight_loader": self.weight_loader})
        else:
            self.register_parameter("bias", None)
        if shards is not None:
            expect_shards(self.parameters(recurse=False), shards)

    def _multiply(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product of this rank, with the bias unless it is skipped; and the bias that is
        left."""
        bias = self.bias
        if self.skip_bias_add:
            return self.quant_method.apply(self, x, None), bias
        return self.quant_method.apply(self, x, bias), None

    def weight_loader(self, param: Parameter, loaded_weight: torch.Tensor) -> None:
        """Copy a checkpoint tensor, full size, into `param`. Raises ValueError when shapes
        differ."""
        raise NotImplementedError

    def weight_loader_v2(self, param: Parameter, *args: Any, **kwargs: Any) -> None:
        """The same loader under the name that some quantization methods ask for."""
        self.weight_loader(param, *args, **kwargs)

    def _name_of(self, param: Parameter) -> str:
        """Full name for error messages."""
        for name, candidate in self.named_parameters(recurse=False):
            if candidate is param:
                return f"{self.prefix}.{name}" if self.prefix else name
        return self.prefix or type(self).__name__

    def extra_repr(self) -> str:
        return f"in={self.input_size}, out={self.output_size}, bias={self.bias is not None}"


class ReplicatedLinear(LinearBase):
    """The whole weight on every rank."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(input_size, output_size, skip_bias_add, params_dtype, quant_config, prefix)
        self._create_parameters(input_size, [output_size], bias)

    def weight_loader(self, param: Parameter, loaded_weight: torch.Tensor) -> None:
        copy_into(param.data, loaded_weight, self._name_of(param))
        mark_filled(param)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._multiply(x)


class ColumnParallelLinear(LinearBase):
    """The output dimension is cut over ranks: each holds `output_size / tp_size` rows.

    `gather_output` returns the full width on every rank. `output_sizes` names parts that are cut
    separately (see MergedColumnParallelLinear). `use_presharded_weights`: checkpoint tensors are
    this rank's part already.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: QuantizationConfig | None = None,
        output_sizes: list[int] | None = None,
        prefix: str = "",
        tp_rank: int | None = None,
        tp_size: int | None = None,
        use_presharded_weights: bool = False,
        skip_block_quant_check: bool = False,
        *,
        shards: list[ShardId] | None = None,
    ) -> None:
        super().__init__(input_size, output_size, skip_bias_add, params_dtype, quant_config, prefix)
        self.tp_rank, self.tp_size = _resolve_ranks(tp_rank, tp_size)
        self.gather_output = gather_output
        self.use_presharded_weights = use_presharded_weights
        parts = output_sizes or [output_size]
        self.output_partition_sizes = [
            _cut(size, self.tp_size, "output size", prefix) for size in parts
        ]
        self.output_size_per_partition = _cut(output_size, self.tp_size, "output size", prefix)
        self._create_parameters(
            input_size,
            self.output_partition_sizes,
            bias,
            shards,
            skip_block_quant_check=skip_block_quant_check,
        )

    def weight_loader(self, param: Parameter, loaded_weight: torch.Tensor) -> None:
        name = self._name_of(param)
        dim = param.__dict__.get("output_dim")
        if dim is not None and not self.use_presharded_weights:
            loaded_weight = slice_for_rank(
                loaded_weight, dim, param.shape[dim], self.tp_rank, self.tp_size, name
            )
        copy_into(param.data, loaded_weight, name)
        mark_filled(param)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, output_bias = self._multiply(input_)
        if self.gather_output and self.tp_size > 1:
            output = tensor_model_parallel_all_gather(output)
        return output, output_bias


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several column layers with one input, fused: local weight = [part 0 | part 1 | ...].

    Each of `output_sizes` is cut over ranks separately. Shard ids are 0 .. n-1; a tensor without
    one is the whole fused matrix [all of part 0 | all of part 1 | ...].
    """

    def __init__(
        self,
        input_size: int,
        output_sizes: list[int],
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        tp_rank: int | None = None,
        tp_size: int | None = None,
        use_presharded_weights: bool = False,
    ) -> None:
        self.output_sizes = output_sizes
        self.needs_rows = gather_output
        super().__init__(
            input_size,
            sum(output_sizes),
            bias=bias,
            gather_output=gather_output,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            quant_config=quant_config,
            output_sizes=output_sizes,
            prefix=prefix,
            tp_rank=tp_rank,
            tp_size=tp_size,
            use_presharded_weights=use_presharded_weights,
            shards=list(range(len(output_sizes))),
        )

    def weight_loader(
        self,
        param: Parameter,
        loaded_weight: torch.Tensor,
        loaded_shard_id: int | None = None,
    ) -> None:
        name = self._name_of(param)
        if loaded_shard_id is None:
            self._load_fused(param, loaded_weight, name)
        elif loaded_shard_id not in range(len(self.output_sizes)):
            allowed = list(range(len(self.output_sizes)))
            raise ValueError(f"{name}: shard {loaded_shard_id!r} does not exist; shards: {allowed}")
        else:
            self._load_shard(param, loaded_weight, loaded_shard_id, name)
        mark_filled(param, loaded_shard_id)

    def _load_fused(self, param: Parameter, loaded_weight: torch.Tensor, name: str) -> None:
        dim = param.__dict__.get("output_dim")
        if dim is None or self.use_presharded_weights:
            copy_into(param.data, loaded_weight, name)
            return
        sizes = [rescale_span(param, dim, size) for size in self.output_sizes]
        for shard, part in enumerate(_split_fused(loaded_weight, dim, sizes, name)):
            self._load_shard(param, part, shard, name)

    def _load_shard(
        self, param: Parameter, loaded_weight: torch.Tensor, shard: int, name: str
    ) -> None:
        place_shard(
            param,
            loaded_weight,
            offset=sum(self.output_partition_sizes[:shard]),
            size=self.output_partition_sizes[shard],
            index=shard,
            rank=0 if self.use_presharded_weights else self.tp_rank,
            num_ranks=1 if self.use_presharded_weights else self.tp_size,
            name=f"{name}, shard {shard}",
            may_pad=True,
        )


class QKVParallelLinear(ColumnParallelLinear):
    """The projections of attention, fused: local weight = [q | k | v], cut by heads.

    With more ranks than kv heads each kv head is held by `num_kv_head_replicas` neighbouring ranks.
    Shard ids are "q", "k", "v"; a tensor without one is [all q | all k | all v].
    """

    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        tp_rank: int | None = None,
        tp_size: int | None = None,
        load_presharded_attn: bool = False,
        v_head_size: int | None = None,
        skip_block_quant_check: bool = False,
    ) -> None:
        tp_rank, tp_size = _resolve_ranks(tp_rank, tp_size)
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.v_head_size = head_size if v_head_size is None else v_head_size
        self.total_num_heads = total_num_heads
        self.total_num_kv_heads = total_num_kv_heads or total_num_heads
        self.num_heads = _cut(total_num_heads, tp_size, "number of heads", prefix)
        if tp_size >= self.total_num_kv_heads:
            self.num_kv_heads = 1
            self.num_kv_head_replicas = _replicas(tp_size, self.total_num_kv_heads, prefix)
        else:
            self.num_kv_heads = _cut(self.total_num_kv_heads, tp_size, "number of kv heads", prefix)
            self.num_kv_head_replicas = 1
        self.q_proj_shard_size = self.num_heads * head_size
        self.kv_proj_shard_size = self.num_kv_heads * head_size
        self.v_proj_shard_size = self.num_kv_heads * self.v_head_size
        sizes = [self.q_proj_shard_size, self.kv_proj_shard_size, self.v_proj_shard_size]
        super().__init__(
            hidden_size,
            sum(sizes) * tp_size,
            bias=bias,
            skip_bias_add=skip_bias_add,
            params_dtype=params_dtype,
            quant_config=quant_config,
            output_sizes=[size * tp_size for size in sizes],
            prefix=prefix,
            tp_rank=tp_rank,
            tp_size=tp_size,
            use_presharded_weights=load_presharded_attn,
            skip_block_quant_check=skip_block_quant_check,
            shards=["q", "k", "v"],
        )

    def weight_loader(
        self,
        param: Parameter,
        loaded_weight: torch.Tensor,
        loaded_shard_id: str | None = None,
    ) -> None:
        name = self._name_of(param)
        if loaded_shard_id is None:
            self._load_fused(param, loaded_weight, name)
        elif loaded_shard_id not in ("q", "k", "v"):
            raise ValueError(f"{name}: shard {loaded_shard_id!r} does not exist; shards: q, k, v")
        else:
            self._load_shard(param, loaded_weight, loaded_shard_id, name)
        mark_filled(param, loaded_shard_id)

    def _load_fused(self, param: Parameter, loaded_weight: torch.Tensor, name: str) -> None:
        dim = param.__dict__.get("output_dim")
        if dim is None or self.use_presharded_weights:
            copy_into(param.data, loaded_weight, name)
            return
        sizes = [
            self.total_num_heads * self.head_size,
            self.total_num_kv_heads * self.head_size,
            self.total_num_kv_heads * self.v_head_size,
        ]
        parts = _split_fused(
            loaded_weight, dim, [rescale_span(param, dim, size) for size in sizes], name
        )
        for shard, part in zip("qkv", parts, strict=True):
            self._load_shard(param, part, shard, name)

    def _load_shard(
        self, param: Parameter, loaded_weight: torch.Tensor, shard: str, name: str
    ) -> None:
        index = "qkv".index(shard)
        replicas = 1 if shard == "q" else self.num_kv_head_replicas
        place_shard(
            param,
            loaded_weight,
            offset=sum(self.output_partition_sizes[:index]),
            size=self.output_partition_sizes[index],
            index=index,
            rank=0 if self.use_presharded_weights else self.tp_rank // replicas,
            num_ranks=1 if self.use_presharded_weights else self.tp_size // replicas,
            name=f"{name}, shard {shard}",
        )


class RowParallelLinear(LinearBase):
    """The input dimension is cut over ranks; partial results are summed.

    `input_is_parallel=False`: the input is whole and each rank takes its slice.
    `reduce_results=False` leaves the sum to the caller. The bias is whole on every rank and added
    once, by rank 0. `use_dp_attention_reduce` sums over the attention group instead of the
    tensor-parallel one.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        reduce_results: bool = True,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        tp_rank: int | None = None,
        tp_size: int | None = None,
        use_presharded_weights: bool = False,
        use_dp_attention_reduce: bool = False,
    ) -> None:
        super().__init__(input_size, output_size, skip_bias_add, params_dtype, quant_config, prefix)
        self.tp_rank, self.tp_size = _resolve_ranks(tp_rank, tp_size)
        self.input_is_parallel = input_is_parallel
        self.reduce_results = reduce_results
        self.use_presharded_weights = use_presharded_weights
        self.use_dp_attention_reduce = use_dp_attention_reduce
        self.input_size_per_partition = _cut(input_size, self.tp_size, "input size", prefix)
        self._create_parameters(self.input_size_per_partition, [output_size], bias)

    def weight_loader(self, param: Parameter, loaded_weight: torch.Tensor) -> None:
        name = self._name_of(param)
        dim = param.__dict__.get("input_dim")
        if dim is not None and loaded_weight.dim() > dim and not self.use_presharded_weights:
            loaded_weight = slice_for_rank(
                loaded_weight,
                dim,
                param.shape[dim],
                self.tp_rank,
                self.tp_size,
                name,
                may_pad=True,
            )
        copy_into(param.data, loaded_weight, name)
        mark_filled(param)

    def forward(
        self, input_: torch.Tensor, skip_all_reduce: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.tp_size == 1:
            return self._multiply(input_)
        if not self.input_is_parallel:
            input_ = split_tensor_along_last_dim(input_, self.tp_size)[self.tp_rank].contiguous()
        bias = self.bias if self.tp_rank == 0 and not self.skip_bias_add else None
        output = self.quant_method.apply(self, input_, bias)
        if self.reduce_results and not skip_all_reduce:
            output = self._reduce(output)
        return output, self.bias if self.skip_bias_add else None

    def _reduce(self, output: torch.Tensor) -> torch.Tensor:
        if self.use_dp_attention_reduce:
            return get_attention_tp_group().all_reduce(output)
        return tensor_model_parallel_all_reduce(output)


class MergedColumnParallelRepeatedLinear(LinearBase):
    """Column-cut parts followed by parts that every rank holds whole; forward returns the bare
    product.

    Shard ids count the column parts first, then the repeated ones.
    """

    def __init__(
        self,
        input_size: int,
        column_output_sizes: list[int],
        repeated_output_sizes: list[int],
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        output_size = sum(column_output_sizes) + sum(repeated_output_sizes)
        super().__init__(input_size, output_size, skip_bias_add, params_dtype, quant_config, prefix)
        self.tp_rank, self.tp_size = _resolve_ranks(None, None)
        self.num_column_parts = len(column_output_sizes)
        self.output_partition_sizes = [
            _cut(size, self.tp_size, "output size", prefix) for size in column_output_sizes
        ]
        self.output_partition_sizes += repeated_output_sizes
        shards: list[ShardId] = list(range(len(self.output_partition_sizes)))
        self._create_parameters(input_size, self.output_partition_sizes, False, shards)

    def weight_loader(
        self, param: Parameter, loaded_weight: torch.Tensor, loaded_shard_id: int
    ) -> None:
        is_column = loaded_shard_id < self.num_column_parts
        place_shard(
            param,
            loaded_weight,
            offset=sum(self.output_partition_sizes[:loaded_shard_id]),
            size=self.output_partition_sizes[loaded_shard_id],
            index=loaded_shard_id,
            rank=self.tp_rank if is_column else 0,
            num_ranks=self.tp_size if is_column else 1,
            name=f"{self._name_of(param)}, shard {loaded_shard_id}",
        )
        mark_filled(param, loaded_shard_id)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, input_, None)


class ColumnParallelBatchedLinear(torch.nn.Module):
    """A batch of column layers: [batch, T, in] x [batch, out / tp, in]^T; forward returns the bare
    product."""

    def __init__(self, batch: int, input_size: int, output_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.tp_rank, self.tp_size = _resolve_ranks(None, None)
        shape = (batch, _cut(output_size, self.tp_size, "output size", ""), input_size)
        self.weight = Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        set_weight_attrs(self.weight, {"output_dim": 1, "weight_loader": self.weight_loader})
        expect_shards([self.weight], range(batch))

    def weight_loader(
        self, param: Parameter, loaded_weight: torch.Tensor, loaded_shard_id: int
    ) -> None:
        """Load the matrix [out, in] of one batch entry."""
        name = f"{type(self).__name__}.weight, shard {loaded_shard_id}"
        part = slice_for_rank(loaded_weight, 0, param.shape[1], self.tp_rank, self.tp_size, name)
        copy_into(param.data[loaded_shard_id], part, name)
        mark_filled(param, loaded_shard_id)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return torch.bmm(input_, self.weight.transpose(1, 2))


def _choose_method(
    layer: LinearBase, quant_config: QuantizationConfig | None, prefix: str
) -> QuantizeMethodBase:
    if quant_config is None:
        return UnquantizedLinearMethod()
    method = quant_config.get_quant_method(layer, prefix)
    if method is None:
        raise ValueError(
            f"{prefix}: quantization {quant_config.get_name()!r} has no method for "
            f"{type(layer).__name__}; it must name one, UnquantizedLinearMethod for layers it skips"
        )
    return method


def _cut(size: int, tp_size: int, what: str, prefix: str) -> int:
    """A rank's part. Raises ConfigError naming the layer and both numbers when there is a remainder."""
    if size % tp_size != 0:
        raise ConfigError(
            f"tp_size={tp_size} does not divide the {what} {size} of {prefix or 'a linear layer'}; "
            "choose a tensor parallel size that does"
        )
    return size // tp_size


def _replicas(tp_size: int, num_kv_heads: int, prefix: str) -> int:
    """How many ranks hold each kv head. Raises ConfigError naming both numbers when it is not whole."""
    if tp_size % num_kv_heads != 0:
        raise ConfigError(
            f"tp_size={tp_size} is no multiple of the {num_kv_heads} kv heads of {prefix or 'a linear layer'}; "
            "choose one that is, or that divides them"
        )
    return tp_size // num_kv_heads


def _resolve_ranks(tp_rank: int | None, tp_size: int | None) -> tuple[int, int]:
    if tp_rank is None:
        tp_rank = get_tensor_model_parallel_rank()
    if tp_size is None:
        tp_size = get_tensor_model_parallel_world_size()
    return tp_rank, tp_size


def _split_fused(
    loaded_weight: torch.Tensor, dim: int, sizes: list[int], name: str
) -> list[torch.Tensor]:
    if loaded_weight.dim() <= dim or loaded_weight.shape[dim] != sum(sizes):
        raise ValueError(
            f"{name}: the fused checkpoint tensor has shape {tuple(loaded_weight.shape)}; "
            f"dimension {dim} must be {sum(sizes)} = {' + '.join(map(str, sizes))}"
        )
    return list(loaded_weight.split(sizes, dim=dim))
