"""`get_rope`: from the arguments and the `rope_scaling` of a config to a shared rotary module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sglang.srt.layers.rotary_embedding import frequencies
from sglang.srt.layers.rotary_embedding.base import LinearScalingRotaryEmbedding, RotaryEmbedding
from sglang.srt.layers.rotary_embedding.frequencies import cos_sin_table, yarn_get_mscale
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.layers.rotary_embedding.switched import SwitchedRotaryEmbedding

_cache: dict[Any, RotaryEmbedding] = {}


def get_rope(
    head_size: int,
    rotary_dim: int,
    max_position: int,
    base: float,
    is_neox_style: bool = True,
    rope_scaling: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    partial_rotary_factor: float = 1.0,
    dual_chunk_attention_config: dict[str, Any] | None = None,
) -> RotaryEmbedding:
    """The rotary embedding for these arguments; equal arguments give the same module.

    `rope_scaling["rope_type"]` (or "type") names the kind. `dtype` is accepted and unused: tables
    are float32. Raises ValueError for an unknown kind and for a kind whose settings are incomplete.
    """
    if dual_chunk_attention_config is not None:
        raise ValueError("dual_chunk_attention_config is not supported; remove it from the config")
    if partial_rotary_factor < 1.0:
        rotary_dim = int(rotary_dim * partial_rotary_factor)
    scaling = rope_scaling or {}
    shape = _Shape(head_size, rotary_dim, max_position, base, is_neox_style)
    key = (shape, _freeze(scaling), torch.get_default_device())
    if key not in _cache:
        _cache[key] = _build(shape, scaling)
    return _cache[key]


def get_rope_wrapper(
    head_size: int,
    rotary_dim: int,
    max_position: int,
    base: float,
    is_neox_style: bool = True,
    rope_scaling: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    partial_rotary_factor: float = 1.0,
    dual_chunk_attention_config: dict[str, Any] | None = None,
    device: str | None = None,
) -> RotaryEmbedding:
    """`get_rope` with the tables on `device`."""
    with torch.device(device or torch.get_default_device()):
        return get_rope(
            head_size,
            rotary_dim,
            max_position,
            base,
            is_neox_style,
            rope_scaling,
            dtype,
            partial_rotary_factor,
            dual_chunk_attention_config,
        )


@dataclass(frozen=True)
class _Shape:
    head_size: int
    rotary_dim: int
    max_position: int
    base: float
    is_neox_style: bool

    def module(self, table: torch.Tensor, scaling: dict[str, Any]) -> RotaryEmbedding:
        """A module for one table; with three axes where the config has sections for them."""
        args = (self.head_size, self.rotary_dim, self.max_position, self.base, self.is_neox_style)
        if "mrope_section" in scaling:
            interleaved = bool(scaling.get("mrope_interleaved", False))
            return MRotaryEmbedding(*args, table, scaling["mrope_section"], interleaved)
        return RotaryEmbedding(*args, table)

    def switched(self, short: torch.Tensor, long: torch.Tensor) -> SwitchedRotaryEmbedding:
        args = (self.head_size, self.rotary_dim, self.max_position, self.base, self.is_neox_style)
        return SwitchedRotaryEmbedding(*args, short, long)


def _build(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "mrope" and "mrope_section" in scaling:
        kind = "default"  # the spelling of early Qwen2-VL configs
    if kind not in _BUILDERS:
        allowed = ", ".join(sorted(_BUILDERS))
        raise ValueError(f"rope_type {kind!r} is not supported; supported: {allowed}")
    return _BUILDERS[kind](shape, scaling)


def _build_default(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    if scaling.get("use_fope"):
        raise ValueError("rope_scaling with use_fope (Fourier position embedding) is not supported")
    inv_freq = frequencies.plain(shape.base, shape.rotary_dim)
    return shape.module(cos_sin_table(inv_freq, shape.max_position), scaling)


def _build_linear(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    factor = _require(scaling, "linear", "factor")
    if isinstance(factor, (list, tuple)) and len(factor) > 1:
        inv_freqs = {f: frequencies.linear(shape.base, shape.rotary_dim, f) for f in factor}
        args = (shape.head_size, shape.rotary_dim, shape.max_position, shape.base)
        return LinearScalingRotaryEmbedding(*args, shape.is_neox_style, inv_freqs)
    factor = factor[0] if isinstance(factor, (list, tuple)) else factor
    inv_freq = frequencies.linear(shape.base, shape.rotary_dim, factor)
    length = int(shape.max_position * max(factor, 1.0))
    return shape.module(cos_sin_table(inv_freq, length), scaling)


def _build_dynamic(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    if "alpha" in scaling:
        inv_freq = frequencies.dynamic_alpha(shape.base, shape.rotary_dim, scaling["alpha"])
        return shape.module(cos_sin_table(inv_freq, shape.max_position), scaling)
    factor = _require(scaling, "dynamic", "factor")
    original = scaling.get("original_max_position_embeddings") or shape.max_position
    length = max(shape.max_position, int(original * factor))
    short = frequencies.plain(shape.base, shape.rotary_dim)
    long = frequencies.dynamic_ntk(shape.base, shape.rotary_dim, factor, original, length)
    return shape.switched(cos_sin_table(short, original), cos_sin_table(long, length))


def _build_llama3(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    inv_freq = frequencies.llama3(
        shape.base,
        shape.rotary_dim,
        factor=_require(scaling, "llama3", "factor"),
        low_freq_factor=_require(scaling, "llama3", "low_freq_factor"),
        high_freq_factor=_require(scaling, "llama3", "high_freq_factor"),
        original_max_position=_require(scaling, "llama3", "original_max_position_embeddings"),
    )
    return shape.module(cos_sin_table(inv_freq, shape.max_position), scaling)


def _build_yarn(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    """YaRN and DeepSeek's form of it, which only adds `mscale` and `mscale_all_dim`."""
    original = _require(scaling, "yarn", "original_max_position_embeddings")
    factor = scaling.get("factor") or shape.max_position / original
    inv_freq = frequencies.yarn(
        shape.base,
        shape.rotary_dim,
        factor,
        original,
        beta_fast=scaling.get("beta_fast") or 32.0,
        beta_slow=scaling.get("beta_slow") or 1.0,
        extrapolation_factor=scaling.get("extrapolation_factor", 1.0),
        truncate=scaling.get("truncate", True),
    )
    length = max(shape.max_position, int(original * factor))
    table = cos_sin_table(inv_freq, length, _yarn_attention_factor(scaling, factor))
    return shape.module(table, scaling)


def _yarn_attention_factor(scaling: dict[str, Any], factor: float) -> float:
    value = scaling.get("attention_factor")
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if value is None and mscale and all_dim:
        value = yarn_get_mscale(factor, mscale) / yarn_get_mscale(factor, all_dim)
    if value is None:
        value = yarn_get_mscale(factor)
    return value * scaling.get("attn_factor", 1.0)


def _build_longrope(shape: _Shape, scaling: dict[str, Any]) -> RotaryEmbedding:
    original = _require(scaling, "longrope", "original_max_position_embeddings")
    scale = scaling.get("factor") or shape.max_position / original
    default = scaling.get("attention_factor")
    if default is None:
        default = frequencies.longrope_attention_factor(scale, original)

    def table(name: str, length: int) -> torch.Tensor:
        factors = _require(scaling, "longrope", f"{name}_factor")
        inv_freq = frequencies.longrope(shape.base, shape.rotary_dim, factors)
        mscale = scaling.get(f"{name}_mscale")
        return cos_sin_table(inv_freq, length, default if mscale is None else mscale)

    return shape.switched(table("short", original), table("long", shape.max_position))


_BUILDERS: dict[str, Callable[[_Shape, dict[str, Any]], RotaryEmbedding]] = {
    "default": _build_default,
    "linear": _build_linear,
    "dynamic": _build_dynamic,
    "llama3": _build_llama3,
    "yarn": _build_yarn,
    "deepseek_yarn": _build_yarn,
    "longrope": _build_longrope,
}


def _require(scaling: dict[str, Any], kind: str, key: str) -> Any:
    if key not in scaling:
        raise ValueError(f"rope_type {kind!r} needs {key!r} in rope_scaling; it has {[*scaling]}")
    return scaling[key]


def _freeze(value: Any) -> Any:
    """A hashable copy of nested dicts and lists."""
    if isinstance(value, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return value
