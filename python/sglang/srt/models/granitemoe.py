"""Granite 3 with experts; transformers classes `GraniteMoeForCausalLM` and `GraniteMoeSharedForCausalLM`.

    h = h + r * attention(rms_norm(h));  scores = a * q k^T;  h0 = e * embed(token);  logits = head(h) / l
    h = h + r * (sum_k w_k expert_k(x) + shared(x)),  x = rms_norm(h),  w = softmax(top_k(Wg x))

Differs from Granite (dense):
- experts in the place of the MLP; the weights of a token's experts sum to one;
- the second class adds one MLP that every token uses, unless `shared_intermediate_size` is 0;
- the checkpoint holds gate and up as one `input_linear`, of all experts in one tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import QKV, ExpertNames, WeightMap
from sglang.srt.models.granite import GraniteForCausalLM, GraniteModel
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class GraniteMoeDecoderLayer(nn.Module):
    """Pre-norm attention and experts around one residual stream, each scaled."""

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
        self.residual_multiplier = config.residual_multiplier
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            scaling=config.attention_multiplier,
        )
        self.block_sparse_moe = SparseMoE(
            facts.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=True,
            shared_intermediate_size=self.shared_size(config),
            quant_config=quant_config,
            prefix=add_prefix("block_sparse_moe", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def shared_size(self, config: Any) -> int | None:
        """Inner width of the MLP beside the experts; None for none."""
        return None

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch) * self.residual_multiplier
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.block_sparse_moe(x) * self.residual_multiplier, residual


class GraniteMoeSharedDecoderLayer(GraniteMoeDecoderLayer):
    def shared_size(self, config: Any) -> int | None:
        return config.shared_intermediate_size or None


class GraniteMoeModel(GraniteModel):
    layer_cls = GraniteMoeDecoderLayer


class GraniteMoeSharedModel(GraniteMoeModel):
    layer_cls = GraniteMoeSharedDecoderLayer


class GraniteMoeForCausalLM(GraniteForCausalLM):
    model_cls = GraniteMoeModel
    weight_map = WeightMap(
        stacked=QKV,
        rename=WeightsMapper(
            orig_to_new_substr={
                ".block_sparse_moe.router.layer.": ".block_sparse_moe.gate.",
                ".block_sparse_moe.input_linear.": ".block_sparse_moe.experts.gate_up_proj.",
                ".block_sparse_moe.output_linear.": ".block_sparse_moe.experts.down_proj.",
                ".shared_mlp.input_linear.": ".block_sparse_moe.shared_experts.gate_up_proj.",
                ".shared_mlp.output_linear.": ".block_sparse_moe.shared_experts.down_proj.",
            }
        ),
        experts=ExpertNames(),
    )


class GraniteMoeSharedForCausalLM(GraniteMoeForCausalLM):
    model_cls = GraniteMoeSharedModel


EntryClass = [GraniteMoeForCausalLM, GraniteMoeSharedForCausalLM]
