"""Which KV pool a model needs, and what a token of it takes: by `ModelConfig.attention_arch`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from sglang.srt.mem_cache.fp8_pool import FP8_DTYPES, Fp8MHATokenToKVPool, Fp8MLATokenToKVPool
from sglang.srt.mem_cache.memory_pool import KVPool, MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.platforms import Platform

# Values of --kv-cache-dtype; "auto" is the model's own.
_KV_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# Attention backends that multiply what they read by the layer's scales.
_READ_FP8 = ("torch_native", "triton", "flashinfer")
# The least compute capability whose instructions convert from float8_e4m3fn.
_CONVERTS_E4M3 = (8, 9)


def choose_kv_dtype(
    name: str, backends: Iterable[str], platform: Platform, scales_path: str | None = None
) -> torch.dtype | None:
    """The dtype of the cache for `--kv-cache-dtype`, None for the model's.

    Raises ConfigError where an attention backend or the device cannot read it, and for scales that it has no use for.
    """
    if scales_path is not None and name != "fp8_e4m3":
        raise ConfigError(
            f"--quantization-param-path is for --kv-cache-dtype fp8_e4m3; the cache is {name!r}"
        )
    if name not in _KV_DTYPES:
        raise ConfigError(
            f"--kv-cache-dtype {name!r} is not implemented; implemented: {', '.join(_KV_DTYPES)}"
        )
    dtype = _KV_DTYPES[name]
    if dtype not in FP8_DTYPES:
        return dtype
    for backend in backends:
        if backend not in _READ_FP8:
            raise ConfigError(
                f"--kv-cache-dtype {name} is not implemented for attention backend {backend!r}; choose --attention-backend "
                f"{' or '.join(_READ_FP8)}"
            )
    if platform.is_cuda and dtype == torch.float8_e4m3fn:
        capability = torch.cuda.get_device_capability(platform.device)
        if capability < _CONVERTS_E4M3:
            raise ConfigError(
                f"--kv-cache-dtype fp8_e4m3 needs a GPU of compute capability 8.9 or more, this one has {capability[0]}."
                f"{capability[1]}; choose fp8_e5m2"
            )
    return dtype


def kv_bytes_per_token(model_config: ModelConfig, tp_size: int, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the pool of a rank, all layers together."""
    facts = model_config.facts
    if facts.mla is not None:
        return MLATokenToKVPool.bytes_per_token(
            facts.mla.kv_lora_rank, facts.mla.qk_rope_head_dim, facts.num_hidden_layers, dtype
        )
    return MHATokenToKVPool.bytes_per_token(
        head_num=model_config.get_num_kv_heads(tp_size),
        head_dim=facts.head_dim,
        layer_num=facts.num_hidden_layers,
        dtype=dtype,
    )


def create_kv_pool(
    model_config: ModelConfig,
    tp_size: int,
    size: int,
    page_size: int,
    dtype: torch.dtype,
    device: str | torch.device,
) -> KVPool:
    """The pool of one of `tp_size` ranks with `size` slots, the padding page included."""
    facts = model_config.facts
    is_fp8 = dtype in FP8_DTYPES
    if facts.mla is not None:
        latent_pool = Fp8MLATokenToKVPool if is_fp8 else MLATokenToKVPool
        return latent_pool(
            size=size,
            page_size=page_size,
            dtype=dtype,
            kv_lora_rank=facts.mla.kv_lora_rank,
            qk_rope_head_dim=facts.mla.qk_rope_head_dim,
            layer_num=facts.num_hidden_layers,
            device=device,
        )
    pool = Fp8MHATokenToKVPool if is_fp8 else MHATokenToKVPool
    return pool(
        size=size,
        page_size=page_size,
        dtype=dtype,
        head_num=model_config.get_num_kv_heads(tp_size),
        head_dim=facts.head_dim,
        layer_num=facts.num_hidden_layers,
        device=device,
    )
