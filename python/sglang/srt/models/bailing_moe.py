"""Ling (Bailing) with experts: `BailingMoeForCausalLM`, also `BailingMoEForCausalLM`, and Ling 2: `BailingMoeV2ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rope(rms_norm?(q), rms_norm?(k))
    h = h + c sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h)
    s = score(Wg x);  ids = top_k(s + b);  w = s[ids] / sum s[ids]

Differs from Llama:
- experts in the place of the MLP from layer `first_k_dense_replace` on, beside `num_shared_experts` that every token
  uses, stored as one MLP; `norm_topk_prob` false leaves a token's weights as they are;
- q, k and v are fused in the checkpoint (`query_key_value`); `use_qkv_bias`, `use_bias` (of the output);
- `norm_head`: the columns of the head, one for each channel, have length one.
Ling 2 adds: `use_qk_norm` head by head, positions in the first part of each head; `score_function` "sigmoid" with a
correction b of the choice (`expert_bias`), experts of the best `topk_group` of `n_group` groups only, and
`routed_scaling_factor` c.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import GATE_UP, ExpertNames, NamedTensor, WeightMap
from sglang.srt.models.deepseek import shared_width
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class BailingMoeDecoderLayer(nn.Module):
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
        self.attention = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("attention", prefix),
            qkv_bias=config.use_qkv_bias,
            o_bias=config.use_bias,
            q_norm=_head_norm(config, facts),
            k_norm=_head_norm(config, facts),
        )
        self.mlp = _mlp(config, facts, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.attention(positions, x, forward_batch)
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.mlp(x), residual


class BailingMoeModel(DecoderModel):
    layer_cls = BailingMoeDecoderLayer


class BailingMoeForCausalLM(CausalLM):
    model_cls = BailingMoeModel
    packed_modules_mapping = {
        "qkv_proj": ["query_key_value"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        self.weight_map = WeightMap(
            stacked=GATE_UP,
            rename=_NAMES,
            convert=partial(_normalize_head, config.norm_head),
            experts=ExpertNames(),
        )


class BailingMoEForCausalLM(BailingMoeForCausalLM):
    pass


class BailingMoeV2ForCausalLM(BailingMoeForCausalLM):
    pass


_NAMES = WeightsMapper(
    orig_to_new_substr={
        "model.word_embeddings.": "model.embed_tokens.",
        ".attention.query_key_value.": ".attention.qkv_proj.",
        ".attention.dense.": ".attention.o_proj.",
        ".attention.query_layernorm.": ".attention.q_norm.",
        ".attention.key_layernorm.": ".attention.k_norm.",
        ".gate.expert_bias": ".gate.e_score_correction_bias",
    }
)


def _normalize_head(is_normalized: bool, name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """The head is constant: its columns, one for each channel of the hidden state, get their length when they are loaded."""
    if is_normalized and name == "lm_head.weight":
        tensor = F.normalize(tensor.float(), dim=0).to(tensor.dtype)
    yield name, tensor


def _head_norm(config: Any, facts: ModelFacts) -> RMSNorm | None:
    return RMSNorm(facts.head_dim, eps=facts.norm_eps) if config.use_qk_norm else None


def _mlp(
    config: Any,
    facts: ModelFacts,
    layer_id: int,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> nn.Module:
    if layer_id < config.first_k_dense_replace:
        return GatedMLP.from_facts(facts, quant_config, prefix)
    return SparseMoE(
        facts.hidden_size,
        config.moe_intermediate_size,
        config.num_experts,
        config.num_experts_per_tok,
        layer_id,
        renormalize=config.norm_topk_prob,
        scoring_func=config.score_function,
        num_groups=config.n_group,
        top_groups=config.topk_group,
        has_correction_bias=config.moe_router_enable_expert_bias,
        routed_scaling_factor=config.routed_scaling_factor,
        shared_intermediate_size=shared_width(
            config.moe_intermediate_size, config.num_shared_experts
        ),
        float32_router=True,
        quant_config=quant_config,
        prefix=prefix,
    )


EntryClass = [BailingMoeForCausalLM, BailingMoEForCausalLM, BailingMoeV2ForCausalLM]
