"""Weights in eight-bit floating point: `--quantization fp8`, and checkpoints with quant_method "fp8".

Three kinds of weight: made here from a plain checkpoint; stored with a scale per tensor or per row (`weight_scale`, activations rounded
to eight bits too, by `input_scale` or each token by its own maximum); stored with a scale per block (`weight_scale_inv`, activations as
they are). Embeddings and the head stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.environ import envs
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.unquantized import UnquantizedFusedMoEMethod
from sglang.srt.layers.parameter import (
    BlockQuantScaleParameter,
    ChannelQuantScaleParameter,
    ModelWeightParameter,
    PerTensorScaleParameter,
)
from sglang.srt.layers.quantization.base_config import (
    LinearMethodBase,
    QuantizationConfig,
    QuantizeMethodBase,
)
from sglang.srt.layers.quantization.block_scales import fp8_dtype, scale_blocks
from sglang.srt.layers.quantization.fp8_experts import (
    BlockFp8ExpertsMethod,
    ChannelFp8ExpertsMethod,
    OnlineFp8ExpertsMethod,
)
from sglang.srt.layers.quantization.fp8_loading import (
    PartScaleLoader,
    RowScaleLoader,
    check_blocks,
    only_fp8,
    refuse_update,
)
from sglang.srt.layers.quantization.fp8_math import (
    ALIGNMENT,
    block_linear,
    channel_linear,
    round_weight,
)
from sglang.srt.layers.quantization.kv_cache import KVCacheScales
from sglang.srt.layers.quantization.skipped_modules import SkippedModules
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.utils import ceil_div, set_weight_attrs
from sglang.srt.utils.errors import ConfigError

_ACTIVATION_SCHEMES = ("dynamic", "static")
_WEIGHT_SCHEMES = ("channel", "tensor")


class Fp8Config(QuantizationConfig):
    """Settings of one model.

    Args:
        is_checkpoint_fp8_serialized: weights are stored in eight bits; False: they are rounded when they are loaded.
        activation_scheme: "dynamic", or "static" with a stored scale.
        ignored_layers: modules that are not quantized, as the checkpoint names them.
        weight_block_size: rows and columns of a block with one scale; None for scales of tensors or rows.
        weight_scheme: how weights are rounded when they are loaded, a scale for each row ("channel") or one ("tensor").

    Raises ConfigError for other values.
    """

    def __init__(
        self,
        is_checkpoint_fp8_serialized: bool = False,
        activation_scheme: str = "dynamic",
        ignored_layers: list[str] | None = None,
        weight_block_size: list[int] | None = None,
        weight_scheme: str = "channel",
    ) -> None:
        super().__init__()
        _check_choice("activation_scheme", activation_scheme, _ACTIVATION_SCHEMES)
        _check_choice("weight_scheme", weight_scheme, _WEIGHT_SCHEMES)
        _check_block_size(weight_block_size, is_checkpoint_fp8_serialized, activation_scheme)
        self.is_checkpoint_fp8_serialized = is_checkpoint_fp8_serialized
        self.activation_scheme = activation_scheme
        self.ignored_layers = list(ignored_layers or [])
        self.weight_block_size = weight_block_size
        self.weight_scheme = weight_scheme

    def get_name(self) -> str:
        return "fp8"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any: devices without units for eight bits compute the reference."""
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Fp8Config:
        """From `quantization_config` of config.json. Raises ConfigError for settings that are not implemented."""
        _check_choice("fmt", config.get("fmt") or "e4m3", ("e4m3", "float8_e4m3fn"))
        ignored = cls.get_from_keys_or(config, ["modules_to_not_convert", "ignored_layers"], None)
        return cls(
            is_checkpoint_fp8_serialized=True,
            activation_scheme=config.get("activation_scheme") or "dynamic",
            ignored_layers=ignored,
            weight_block_size=config.get("weight_block_size"),
        )

    @classmethod
    def online(cls) -> Fp8Config:
        """For a checkpoint that is not quantized."""
        return cls(weight_scheme=envs.SGLANG_FP8_WEIGHT_SCALES.get())

    def apply_weight_name_mapper(self, hf_to_sglang_mapper: Any) -> None:
        self.ignored_layers = hf_to_sglang_mapper.apply_list(self.ignored_layers)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """None for embeddings, which stay as they are. Raises ConfigError when a fused layer is ignored in part."""
        if isinstance(layer, RadixAttention):
            return KVCacheScales() if self.is_checkpoint_fp8_serialized else None
        skipped = SkippedModules(self.ignored_layers, self.packed_modules_mapping)
        if isinstance(layer, LinearBase):
            return UnquantizedLinearMethod() if skipped.has(prefix) else self._linear_method(prefix)
        if isinstance(layer, FusedMoE):
            is_skipped = skipped.has_experts(prefix)
            return UnquantizedFusedMoEMethod() if is_skipped else self._experts_method()
        return None

    def get_scaled_act_names(self) -> list[str]:
        return []

    def _linear_method(self, prefix: str) -> LinearMethodBase:
        if not self.is_checkpoint_fp8_serialized:
            return OnlineFp8LinearMethod(self.weight_scheme)
        if self.weight_block_size is not None:
            return BlockFp8LinearMethod(self.weight_block_size, prefix)
        return ChannelFp8LinearMethod(self.activation_scheme == "static")

    def _experts_method(self) -> Any:
        if not self.is_checkpoint_fp8_serialized:
            return OnlineFp8ExpertsMethod(self.weight_scheme)
        if self.weight_block_size is not None:
            return BlockFp8ExpertsMethod(self.weight_block_size)
        return ChannelFp8ExpertsMethod(self.activation_scheme == "static")


class OnlineFp8LinearMethod(UnquantizedLinearMethod):
    """Loads a plain weight, then rounds it: `weight` codes [N, K], `weight_scale` float32 [N, 1].

    A weight with a side that is no multiple of 16 (gates) stays as it is: devices multiply whole tiles.
    """

    def __init__(self, weight_scheme: str) -> None:
        self._weight_scheme = weight_scheme
        self._is_plain = False

    def leave_plain_weight(self, layer: torch.nn.Module) -> bool:
        self._is_plain = True
        return True

    def process_weights_after_loading(self, layer: Any) -> None:
        weight = layer.weight
        if self._is_plain or any(size % ALIGNMENT for size in weight.shape):
            layer.quant_method = UnquantizedLinearMethod()
            return
        codes, scale = round_weight(weight.data, self._weight_scheme)
        layer.weight = _frozen(codes, weight_loader=refuse_update)
        layer.weight_scale = _frozen(scale)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return channel_linear(x, layer.weight, layer.weight_scale, None, bias)


class StoredFp8LinearMethod(LinearMethodBase):
    """Stored codes. A layer that reads its weight itself gets an ordinary one in their place."""

    _is_plain = False

    def leave_plain_weight(self, layer: torch.nn.Module) -> bool:
        self._is_plain = True
        return True

    def process_weights_after_loading(self, layer: Any) -> None:
        if self._is_plain:
            _make_plain(layer, self.plain_weight(layer))

    def plain_weight(self, layer: Any) -> torch.Tensor:
        """What the codes and scales of `layer` say, float32 [N, K]."""
        raise NotImplementedError


class ChannelFp8LinearMethod(StoredFp8LinearMethod):
    """Stored codes with a scale per tensor or per row, which becomes one per row: `weight_scale` float32 [N, 1]."""

    def __init__(self, is_static: bool) -> None:
        self._is_static = is_static

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        loader = extra_weight_attrs["weight_loader"]
        width = sum(output_partition_sizes)
        layer.weight = _create_codes(width, input_size_per_partition, loader)
        layer.weight_scale = ChannelQuantScaleParameter(
            data=torch.empty(width, 1, dtype=torch.float32),
            output_dim=0,
            weight_loader=RowScaleLoader(loader, output_partition_sizes),
        )
        if self._is_static:
            num_parts = len(output_partition_sizes)
            layer.input_scale = PerTensorScaleParameter(
                data=torch.empty(num_parts, dtype=torch.float32), weight_loader=PartScaleLoader()
            )

    def process_weights_after_loading(self, layer: Any) -> None:
        if self._is_static:
            # The parts have one input, so one scale, in which the largest values of each part fit.
            layer.input_scale = _frozen(layer.input_scale.data.max().view(1))
        super().process_weights_after_loading(layer)

    def plain_weight(self, layer: Any) -> torch.Tensor:
        return layer.weight.float() * layer.weight_scale

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        input_scale = layer.input_scale if self._is_static else None
        return channel_linear(x, layer.weight, layer.weight_scale, input_scale, bias)


class BlockFp8LinearMethod(StoredFp8LinearMethod):
    """Stored codes with a scale per block: `weight_scale_inv` float32 [ceil(N / rows), ceil(K / columns)]."""

    def __init__(self, block_size: list[int], prefix: str) -> None:
        self._block_size = block_size
        self._prefix = prefix

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        rows, columns = self._block_size
        width = sum(output_partition_sizes)
        is_cut = width != output_size
        whole_parts = output_partition_sizes if is_cut else output_partition_sizes[:-1]
        check_blocks(whole_parts, rows, "output", self._prefix)
        if input_size_per_partition != input_size:
            check_blocks([input_size_per_partition], columns, "input", self._prefix)
        loader = extra_weight_attrs["weight_loader"]
        layer.weight = _create_codes(width, input_size_per_partition, loader)
        shape = ceil_div(width, rows), ceil_div(input_size_per_partition, columns)
        layer.weight_scale_inv = BlockQuantScaleParameter(
            data=torch.empty(shape, dtype=torch.float32),
            input_dim=1,
            output_dim=0,
            weight_loader=loader,
        )
        layer.weight_scale_inv.block_shape = (rows, columns)

    def plain_weight(self, layer: Any) -> torch.Tensor:
        return scale_blocks(layer.weight, layer.weight_scale_inv, self._block_size, torch.float32)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return block_linear(x, layer.weight, layer.weight_scale_inv, self._block_size, bias)


def _create_codes(rows: int, columns: int, loader: Any) -> ModelWeightParameter:
    return ModelWeightParameter(
        data=torch.empty(rows, columns, dtype=fp8_dtype),
        input_dim=1,
        output_dim=0,
        weight_loader=only_fp8(loader),
    )


def _make_plain(layer: Any, weight: torch.Tensor) -> None:
    """Give the layer an ordinary weight in its dtype instead of codes and scales."""
    for name in ("weight_scale", "weight_scale_inv", "input_scale"):
        layer.register_parameter(name, None)
    layer.weight = _frozen(weight.to(layer.params_dtype), weight_loader=refuse_update)
    layer.quant_method = UnquantizedLinearMethod()


def _frozen(data: torch.Tensor, **attrs: Any) -> Parameter:
    param = Parameter(data, requires_grad=False)
    set_weight_attrs(param, attrs)
    return param


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"quantization fp8 with {name}={value!r} is not implemented; implemented: {', '.join(allowed)}"
        )


def _check_block_size(block_size: Any, is_serialized: bool, activation_scheme: str) -> None:
    if block_size is None:
        return
    is_pair = isinstance(block_size, (list, tuple)) and len(block_size) == 2
    if not is_pair or not all(isinstance(size, int) and size > 0 for size in block_size):
        raise ConfigError(
            f"quantization fp8 with weight_block_size={block_size!r}; it must be [rows, columns], such as [128, 128]"
        )
    if not is_serialized or activation_scheme != "dynamic":
        raise ConfigError(
            f"quantization fp8 with weight_block_size={block_size!r} is implemented for stored weights with "
            f"activation_scheme='dynamic' only, not {activation_scheme!r}"
        )
