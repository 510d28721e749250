"""Quantization formats by name."""

from __future__ import annotations

import importlib
from typing import Any

from sglang.srt.layers.quantization.base_config import QuantizationConfig

__all__ = ["QUANTIZATION_METHODS", "QuantizationConfig", "get_quantization_config"]

# A format adds itself here: name, as in `--quantization` and in checkpoints -> class.
QUANTIZATION_METHODS: dict[str, type[QuantizationConfig]] = {}
# Ours: name -> module and class, imported when a model needs it.
_BUILT_IN = {"fp8": "sglang.srt.layers.quantization.fp8:Fp8Config"}


def get_quantization_config(quantization: str) -> type[QuantizationConfig]:
    """The class of a format. Raises ValueError for a name that is not known."""
    if quantization in QUANTIZATION_METHODS:
        return QUANTIZATION_METHODS[quantization]
    if quantization not in _BUILT_IN:
        known = ", ".join(sorted({*QUANTIZATION_METHODS, *_BUILT_IN}))
        raise ValueError(f"quantization {quantization!r} is not supported; supported: {known}")
    module, _, name = _BUILT_IN[quantization].partition(":")
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> Any:
    """`Fp8Config`, imported when somebody asks for it: no model file of this package does."""
    if name != "Fp8Config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    return Fp8Config
