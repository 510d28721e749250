"""Qwen3 with experts; transformers class `Qwen3MoeForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rope(rms_norm_per_head(q)), rope(rms_norm_per_head(k))
    h = h + sum_k w_k down_k(silu(gate_k(x)) * up_k(x)),  x = rms_norm(h),  w = top_k(softmax(Wg x))

Differs from Llama:
- q and k are normed head by head before the rotation;
- experts in the place of the MLP in every `decoder_sparse_step`-th layer that is not in `mlp_only_layers`;
- `norm_topk_prob`: the weights of a token's experts sum to one;
- with `use_sliding_window` every layer sees a window.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, WeightMap
from sglang.srt.models.qwen2_moe import has_experts
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class Qwen3MoeAttention(GQAttention):
    """The attention in the argument order of other model files, which have the sizes at hand."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        layer_id: int = 0,
        rope_theta: float = 10000,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embeddings: int = 8192,
        head_dim: int | None = None,
        rms_norm_eps: float = 1e-6,
        attention_bias: bool = False,
        config: Any = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        dual_chunk_attention_config: dict[str, Any] | None = None,
        alt_stream: Any = None,
    ) -> None:
        if dual_chunk_attention_config is not None:
            raise ConfigError(
                "dual_chunk_attention_config is not implemented for Qwen3MoeAttention"
            )
        head_dim = head_dim or hidden_size // num_heads
        super().__init__(
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            layer_id,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            max_position_embeddings=max_position_embeddings,
            qkv_bias=attention_bias,
            o_bias=attention_bias,
            q_norm=RMSNorm(head_dim, eps=rms_norm_eps),
            k_norm=RMSNorm(head_dim, eps=rms_norm_eps),
            quant_config=quant_config,
            prefix=prefix,
        )


class Qwen3MoeDecoderLayer(PreNormLayer):
    """Pre-norm attention and MLP or experts around one residual stream."""

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
        self.self_attn = _attention(facts, layer_id, quant_config, add_prefix("self_attn", prefix))
        self.mlp: nn.Module
        if has_experts(config, layer_id):
            self.mlp = SparseMoE(
                facts.hidden_size,
                config.moe_intermediate_size,
                config.num_experts,
                config.num_experts_per_tok,
                layer_id,
                renormalize=config.norm_topk_prob,
                quant_config=quant_config,
                prefix=add_prefix("mlp", prefix),
            )
        else:
            self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Qwen3MoeModel(DecoderModel):
    layer_cls = Qwen3MoeDecoderLayer


class Qwen3MoeForCausalLM(CausalLM):
    model_cls = Qwen3MoeModel
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), experts=ExpertNames())


def _attention(
    facts: ModelFacts, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
) -> GQAttention:
    window = facts.sliding_window
    return GQAttention.from_facts(
        facts,
        layer_id,
        quant_config,
        prefix,
        qkv_bias=facts.attention_bias,
        o_bias=facts.attention_bias,
        # Unlike Qwen2's, the config's `max_window_layers` has no effect.
        sliding_window=-1 if window is None else window - 1,
        q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
    )


EntryClass = Qwen3MoeForCausalLM
