"""Jet-Nemotron's config, and the settings of its linear attention blocks."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.configs.vision_language import JetNemotronConfig

__all__ = ["JetBlockConfig", "JetNemotronConfig"]


@dataclass
class JetBlockConfig:
    """One entry of `efficient_attention_config`. `expand_v`: width of a value head over that of a key head."""

    mode: str
    expand_v: float
    num_heads: int
    head_dim: int
    norm_eps: float
    conv_size: int
    dconv_generator_reduction: int
    dconv_implementation: str
