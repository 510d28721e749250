"""Flags of speculative decoding."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import REFUSED, flag
from sglang.srt.arg_groups.precision import QUANTIZATIONS


@dataclasses.dataclass(kw_only=True)
class SpeculativeArgs:
    """Speculative decoding."""

    speculative_algorithm: str | None = flag(
        None,
        "How drafts are made; NEXTN is EAGLE.",
        status=REFUSED,
        tier="T2",
        choices=("EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM"),
    )
    speculative_draft_model_path: str | None = flag(
        None,
        "The draft model.",
        status=REFUSED,
        tier="T2",
        aliases=("--speculative-draft-model",),
    )
    speculative_draft_model_revision: str | None = flag(
        None, "Its revision.", status=REFUSED, tier="T2"
    )
    speculative_draft_load_format: str | None = flag(
        None, "Its load format; unset: the main model's.", status=REFUSED, tier="T2"
    )
    speculative_draft_model_quantization: str | None = flag(
        None,
        "Its quantization; unset: the main model's.",
        status=REFUSED,
        tier="T2",
        choices=(*QUANTIZATIONS, "unquant"),
    )
    speculative_num_steps: int | None = flag(
        None, "Draft steps.", status=REFUSED, tier="T2", minimum=1
    )
    speculative_eagle_topk: int | None = flag(
        None, "Branches per draft step.", status=REFUSED, tier="T2", minimum=1
    )
    speculative_num_draft_tokens: int | None = flag(
        None, "Tokens to verify.", status=REFUSED, tier="T2", minimum=1
    )
    speculative_accept_threshold_single: float = flag(
        1.0, "Accept a draft token of at least this probability.", status=REFUSED, tier="T3"
    )
    speculative_accept_threshold_acc: float = flag(
        1.0, "The same for the accumulated probability.", status=REFUSED, tier="T3"
    )
    speculative_token_map: str | None = flag(
        None, "Reduced vocabulary of the draft model.", status=REFUSED, tier="T3"
    )
    speculative_attention_mode: str = flag(
        "prefill",
        "Kernels of the verification.",
        status=REFUSED,
        tier="T3",
        choices=("prefill", "decode"),
    )
    speculative_draft_attention_backend: str | None = flag(
        None, "Attention kernels of the draft model.", status=REFUSED, tier="T3"
    )
    speculative_moe_runner_backend: str | None = flag(
        None, "Expert kernels of the draft model.", status=REFUSED, tier="T3"
    )
    speculative_moe_a2a_backend: str | None = flag(
        None, "All-to-all of the draft model.", status=REFUSED, tier="T3"
    )
    speculative_ngram_min_match_window_size: int = flag(
        1, "Shortest match.", status=REFUSED, tier="T2"
    )
    speculative_ngram_max_match_window_size: int = flag(
        12, "Longest match.", status=REFUSED, tier="T2"
    )
    speculative_ngram_min_bfs_breadth: int = flag(
        1, "Least breadth of the draft tree.", status=REFUSED, tier="T2"
    )
    speculative_ngram_max_bfs_breadth: int = flag(
        10, "Greatest breadth of the draft tree.", status=REFUSED, tier="T2"
    )
    speculative_ngram_match_type: str = flag(
        "BFS",
        "By recency or by probability.",
        status=REFUSED,
        tier="T2",
        choices=("BFS", "PROB"),
    )
    speculative_ngram_branch_length: int = flag(
        18, "Length of a stored branch.", status=REFUSED, tier="T2"
    )
    speculative_ngram_capacity: int = flag(10_000_000, "Nodes stored.", status=REFUSED, tier="T2")
    enable_multi_layer_eagle: bool = flag(False, "Several draft layers.", status=REFUSED, tier="T3")
