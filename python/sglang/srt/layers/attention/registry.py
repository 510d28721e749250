"""Attention backends by name.

A backend registers a function from the model runner to the backend. The function takes out of the
runner the few values that the backend needs; backends do not keep the runner.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.utils.errors import ConfigError

BackendFactory = Callable[[Any], AttentionBackend]

ATTENTION_BACKENDS: dict[str, BackendFactory] = {}


def register_attention_backend(name: str) -> Callable[[BackendFactory], BackendFactory]:
    """Decorator: makes a factory known as `name`, as in `--attention-backend`."""

    def register(factory: BackendFactory) -> BackendFactory:
        ATTENTION_BACKENDS[name] = factory
        return factory

    return register


def create_attention_backend(name: str, model_runner: Any) -> AttentionBackend:
    """The backend for a runner. Raises ValueError for an unknown name."""
    if name not in ATTENTION_BACKENDS:
        allowed = ", ".join(sorted(ATTENTION_BACKENDS))
        raise ValueError(f"attention backend {name!r} is not supported; supported: {allowed}")
    return ATTENTION_BACKENDS[name](model_runner)


@register_attention_backend("torch_native")
def _create_torch_native(model_runner: Any) -> AttentionBackend:
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    return TorchNativeAttnBackend(model_runner.model_config.facts.attention_chunk_size)


@register_attention_backend("triton")
def _create_triton(model_runner: Any) -> AttentionBackend:
    _check_triton(model_runner.device.type, str(model_runner.dtype))
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

    return TritonAttnBackend(
        num_kv_heads=model_runner.model_config.get_num_kv_heads(1),
        max_context_len=model_runner.req_to_token_pool.max_context_len,
        device=model_runner.device,
        attention_chunk_size=model_runner.model_config.facts.attention_chunk_size,
    )


def _check_triton(device_type: str, dtype: str) -> None:
    """Raises ConfigError where Triton's kernels cannot run."""
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "attention backend 'triton' needs the package triton, which is not installed; install "
            "it or choose --attention-backend torch_native"
        )
    if device_type == "cuda":
        return
    import triton

    if device_type != "cpu" or not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"attention backend 'triton' needs device cuda, not {device_type}; choose "
            "--attention-backend torch_native (to try the kernels on a cpu, very slowly, set "
            "TRITON_INTERPRET=1)"
        )
    if dtype == "torch.bfloat16":
        raise ConfigError(
            "Triton's interpreter computes bfloat16 products wrongly; choose --dtype float32 or "
            "float16, or --attention-backend torch_native"
        )
