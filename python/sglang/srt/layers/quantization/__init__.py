"""Quantization formats by name."""

from __future__ import annotations

from sglang.srt.layers.quantization.base_config import QuantizationConfig

__all__ = ["QUANTIZATION_METHODS", "QuantizationConfig", "get_quantization_config"]

# A format adds itself here: name, as in `--quantization` and in checkpoints -> class.
QUANTIZATION_METHODS: dict[str, type[QuantizationConfig]] = {}


def get_quantization_config(quantization: str) -> type[QuantizationConfig]:
    """The class of a format. Raises ValueError for a name that is not known."""
    if quantization not in QUANTIZATION_METHODS:
        known = ", ".join(sorted(QUANTIZATION_METHODS)) or "none"
        raise ValueError(f"quantization {quantization!r} is not supported; supported: {known}")
    return QUANTIZATION_METHODS[quantization]
