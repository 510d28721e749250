"""Attention backends by name.

A backend registers a function from the model runner to the backend. The function takes out of the
runner the few values that the backend needs; backends do not keep the runner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

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

    return TorchNativeAttnBackend()
