"""Recurrent steps of linear attention. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.utils.absent import absent_function

fused_recurrent_gated_delta_rule_update = absent_function(
    "fused_recurrent_gated_delta_rule_update", "the gated delta rule"
)
