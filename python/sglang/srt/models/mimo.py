"""MiMo 7B; published as code, architecture `MiMoForCausalLM` (arXiv 2505.07608).

Qwen2's layers and names. The checkpoint also holds layers that draft several tokens at once (`model.mtp_layers`); they are left out.
"""

from __future__ import annotations

from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.qwen2 import Qwen2ForCausalLM


class MiMoForCausalLM(Qwen2ForCausalLM):
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), skip=(r"^model\.mtp_layers\.",))


EntryClass = MiMoForCausalLM
