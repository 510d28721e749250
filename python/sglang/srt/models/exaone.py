"""EXAONE 3 and 3.5; published as code, architecture `ExaoneForCausalLM` (arXiv 2408.03541).

    h = h + attention(rms_norm(h))
    h = h + c_proj(silu(c_fc_0(x)) * c_fc_1(x)),  x = rms_norm(h)

Differs from Llama in the checkpoint's names, which are GPT-2's.
"""

from __future__ import annotations

from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.utils import WeightsMapper

_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "transformer.h.": "model.layers.",
        "transformer.wte.": "model.embed_tokens.",
        "transformer.ln_f.": "model.norm.",
    },
    orig_to_new_substr={
        ".attn.attention.q_proj.": ".self_attn.q_proj.",
        ".attn.attention.k_proj.": ".self_attn.k_proj.",
        ".attn.attention.v_proj.": ".self_attn.v_proj.",
        ".attn.attention.out_proj.": ".self_attn.o_proj.",
        ".mlp.c_fc_0.": ".mlp.gate_proj.",
        ".mlp.c_fc_1.": ".mlp.up_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
        ".ln_1.": ".input_layernorm.",
        ".ln_2.": ".post_attention_layernorm.",
    },
)


class ExaoneForCausalLM(LlamaForCausalLM):
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=_NAMES, skip=(r"\.rotary\.inv_freq$",))


EntryClass = ExaoneForCausalLM
