"""The quantization settings that a model is constructed with, and scales of the cache from a file."""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from sglang.srt.layers.quantization import QuantizationConfig, get_quantization_config
from sglang.srt.layers.quantization.kv_cache import set_kv_scales
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_loader.declared import (
    ClassDeclarations,
    ModelDeclarations,
    read_declared,
)
from sglang.srt.model_loader.weight_utils import kv_cache_scales_loader


def create_quant_config(model_class: Any, model_config: ModelConfig) -> QuantizationConfig | None:
    """The format of the model's weights with the names that its class uses; None for plain weights.

    Raises ConfigError for settings that are not implemented.
    """
    if model_config.quantization is None:
        return None
    config_class: Any = get_quantization_config(model_config.quantization)
    if model_config.quantization_config is None:
        config = config_class.online()
    else:
        config = config_class.from_config(dict(model_config.quantization_config))
    declared = read_declared(ClassDeclarations, model_class)
    config.packed_modules_mapping = dict(declared.packed_modules_mapping)
    if declared.hf_to_sglang_mapper is not None:
        config.apply_weight_name_mapper(declared.hf_to_sglang_mapper)
    return config


def load_kv_cache_scales(model: nn.Module, path: str, model_config: ModelConfig) -> None:
    """Give every layer the scale of its cache from a JSON file; a model that has the method of this name does it itself.

    Raises ConfigError for a file of another form, model or number of ranks.
    """
    own = read_declared(ModelDeclarations, model).load_kv_cache_scales
    if own is not None:
        own(path)
        return
    scales = dict(
        kv_cache_scales_loader(
            path,
            get_tensor_model_parallel_rank(),
            get_tensor_model_parallel_world_size(),
            model_config.facts.num_hidden_layers,
            model_config.facts.model_type,
        )
    )
    for module in model.modules():
        if isinstance(module, RadixAttention):
            set_kv_scales(module, scales[module.layer_id], scales[module.layer_id])
