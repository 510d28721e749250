"""OLMoE; transformers class `OlmoeForCausalLM` (arXiv 2409.02060).

    h = h + attention(rms_norm(h));  q, k = rope(clip(rms_norm(q))), rope(clip(rms_norm(k)));  v = clip(v)
    h = h + sum_k w_k down_k(silu(gate_k(x)) * up_k(x)),  x = rms_norm(h),  w = top_k(softmax(Wg x))

Differs from Llama:
- q and k are normed over their whole width, all heads together;
- q, k (behind their norms) and v may be clipped to `[-clip_qkv, clip_qkv]`;
- experts in the place of the MLP in every layer; `norm_topk_prob`: a token's weights sum to one.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.qk_norm import ProjectionRMSNorm
from sglang.srt.models.common.weights import QKV, ExpertNames, WeightMap
from sglang.srt.utils import add_prefix


class OlmoeAttention(GQAttention):
    """Attention whose q and k are normed as a whole; `clip_qkv` None clips nothing."""

    def __init__(self, *sizes: int, clip_qkv: float | None, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.clip_qkv = clip_qkv

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = super().split(qkv)
        return q, k, self._clip(v)

    def norm_heads(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.q_norm is not None and self.k_norm is not None
        return self._clip(self.q_norm(q)), self._clip(self.k_norm(k))

    def _clip(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.clip_qkv is None else x.clamp(-self.clip_qkv, self.clip_qkv)


class OlmoeDecoderLayer(PreNormLayer):
    """Pre-norm attention and experts around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(facts, type(self).__name__, hidden_act=("silu",))
        eps = facts.norm_eps
        self.self_attn = OlmoeAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            q_norm=ProjectionRMSNorm(facts.num_attention_heads, facts.head_dim, eps),
            k_norm=ProjectionRMSNorm(facts.num_key_value_heads, facts.head_dim, eps),
            clip_qkv=config.clip_qkv,
        )
        self.mlp = SparseMoE(
            facts.hidden_size,
            config.intermediate_size,
            config.num_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=config.norm_topk_prob,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=eps)


class OlmoeModel(DecoderModel):
    layer_cls = OlmoeDecoderLayer


class OlmoeForCausalLM(CausalLM):
    model_cls = OlmoeModel
    weight_map = WeightMap(stacked=QKV, experts=ExpertNames())


EntryClass = OlmoeForCausalLM
