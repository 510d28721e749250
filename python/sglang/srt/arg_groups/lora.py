"""Flags of LoRA adapters."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import REFUSED, flag

LORA_TARGET_MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "qkv_proj",
    "gate_up_proj",
    "embed_tokens",
    "lm_head",
    "all",
)


@dataclasses.dataclass(kw_only=True)
class LoraArgs:
    """LoRA adapters."""

    enable_lora: bool | None = flag(
        None, "Serve adapters; unset: when --lora-paths is given.", status=REFUSED, tier="T2"
    )
    lora_paths: list[str] | None = flag(
        None, "Adapters: PATH, NAME=PATH or JSON.", status=REFUSED, tier="T2"
    )
    max_lora_rank: int | None = flag(
        None, "Largest rank; unset: inferred.", status=REFUSED, tier="T2", minimum=1
    )
    lora_target_modules: list[str] | None = flag(
        None,
        "Layers that adapters change; unset: inferred.",
        status=REFUSED,
        tier="T2",
        choices=LORA_TARGET_MODULES,
    )
    max_loras_per_batch: int = flag(
        8, "Adapters in a batch, the base model included.", status=REFUSED, tier="T2", minimum=1
    )
    max_loaded_loras: int | None = flag(
        None, "Adapters kept in host memory.", status=REFUSED, tier="T2", minimum=1
    )
    lora_eviction_policy: str = flag(
        "lru",
        "Which adapter leaves the device first.",
        status=REFUSED,
        tier="T2",
        choices=("lru", "fifo"),
    )
    lora_backend: str = flag(
        "csgmv",
        "Kernels of adapters.",
        status=REFUSED,
        tier="T2",
        choices=("csgmv", "triton", "torch_native", "ascend"),
    )
    max_lora_chunk_size: int = flag(
        16, "Tokens per chunk in csgmv.", status=REFUSED, tier="T3", minimum=1
    )
    enable_lora_overlap_loading: bool = flag(
        False, "Load adapters while computing.", status=REFUSED, tier="T3"
    )
