"""Facts of DeepSeek's sparse attention, which a config turns on with `index_topk`. It is not implemented; model files ask for it."""

from __future__ import annotations

from typing import Any


def is_deepseek_nsa(config: Any) -> bool:
    """Whether a DeepSeek config asks for sparse attention."""
    architectures = config.architectures or ()
    of_family = any(
        name.startswith(("DeepseekV3", "DeepseekV32", "Mistral")) for name in architectures
    )
    return of_family and _index_key(config, "topk") is not None


def get_nsa_index_topk(config: Any) -> int:
    """How many earlier tokens each token looks at. Raises ValueError for a config without sparse attention."""
    return _required(config, "topk")


def get_nsa_index_head_dim(config: Any) -> int:
    return _required(config, "head_dim")


def get_nsa_index_n_heads(config: Any) -> int:
    return _required(config, "n_heads")


def _required(config: Any, name: str) -> int:
    value = _index_key(config, name)
    if value is None:
        raise ValueError(f"the config has no index_{name}: it has no sparse attention")
    return value


def _index_key(config: Any, name: str) -> int | None:
    # An optional key of foreign config objects.
    return getattr(config, f"index_{name}", None)
