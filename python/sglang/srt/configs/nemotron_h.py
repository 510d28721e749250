"""Nemotron-H's config under the path that model files import, and the letters of its layer pattern."""

from __future__ import annotations

from transformers import NemotronHConfig

__all__ = ["ATTENTION", "MAMBA", "MLP", "MOE", "NemotronHConfig"]

# `hybrid_override_pattern` has one of them for each layer.
MAMBA = "M"
ATTENTION = "*"
MLP = "-"
MOE = "E"
