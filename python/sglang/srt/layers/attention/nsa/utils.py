"""Context parallelism of sparse attention. Compatibility: it is never on."""

from __future__ import annotations

from typing import Any

from sglang.srt.utils.absent import absent_function

_WHAT = "context parallelism of sparse attention"


def is_nsa_enable_prefill_cp() -> bool:
    return False


def nsa_use_prefill_cp(forward_batch: Any, nsa_enable_prefill_cp: bool | None = None) -> bool:
    return False


def can_cp_split(seq_len: int, cp_size: int, use_nsa: bool, forward_batch: Any) -> bool:
    return False


cp_all_gather_rerange_output = absent_function("cp_all_gather_rerange_output", _WHAT)
cp_split_and_rebuild_data = absent_function("cp_split_and_rebuild_data", _WHAT)
cp_split_and_rebuild_position = absent_function("cp_split_and_rebuild_position", _WHAT)
prepare_input_dp_with_cp_dsa = absent_function("prepare_input_dp_with_cp_dsa", _WHAT)
