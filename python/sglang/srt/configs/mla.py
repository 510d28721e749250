"""Multi-head latent attention as a config describes it (DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.srt.utils.errors import ConfigError

_SIZES = ("qk_nope_head_dim", "qk_rope_head_dim")


@dataclass(frozen=True)
class MLAFacts:
    """Sizes of the latent and of one head. `q_lora_rank` None: queries have no latent of their own."""

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head, the rotated part included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_dim(self) -> int:
        """Numbers that the cache keeps of a token in one layer: the latent, then the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


def read_mla(raw: Mapping[str, Any]) -> MLAFacts | None:
    """The facts in the language model's part of a config.json; None when its attention has no latent.

    Raises ConfigError naming a size that misses.
    """
    if not raw.get("kv_lora_rank"):
        return None
    for key in _SIZES:
        if raw.get(key) is None:
            raise ConfigError(f"config.json has kv_lora_rank but no {key!r}")
    rank = raw.get("q_lora_rank")
    # MiniCPM3's file may leave it out.
    v_head_dim = raw.get("v_head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    return MLAFacts(
        kv_lora_rank=int(raw["kv_lora_rank"]),
        q_lora_rank=int(rank) if rank else None,
        qk_nope_head_dim=int(raw["qk_nope_head_dim"]),
        qk_rope_head_dim=int(raw["qk_rope_head_dim"]),
        v_head_dim=int(v_head_dim),
    )
