"""Mixtral; transformers class `MixtralForCausalLM` (arXiv 2401.04088).

    h = h + attention(rms_norm(h))
    h = h + sum_k w_k w2_k(silu(w1_k x) * w3_k x),  x = rms_norm(h),  w = top_k(softmax(Wg x)) / sum

Differs from Llama:
- experts in the place of the MLP in every layer; the weights of a token's experts sum to one;
- every layer may attend to a sliding window, as in Mistral.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormExpertsLayer
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import QKV, ExpertNames, WeightMap, load_weights
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class MixtralDecoderLayer(PreNormExpertsLayer):
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
        require(
            facts,
            type(self).__name__,
            hidden_act=("silu",),
            layer_types=("full_attention", "sliding_attention"),
        )
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.block_sparse_moe = SparseMoE(
            facts.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=True,
            quant_config=quant_config,
            prefix=add_prefix("block_sparse_moe", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class MixtralModel(DecoderModel):
    layer_cls = MixtralDecoderLayer


class MixtralForCausalLM(CausalLM):
    model_cls = MixtralModel
    weight_map = WeightMap(
        stacked=QKV,
        # Checkpoints with all experts in one tensor call the block `mlp`.
        rename=WeightsMapper(orig_to_new_substr={".mlp.": ".block_sparse_moe."}),
        experts=ExpertNames(gate="w1", up="w3", down="w2"),
    )

    def load_weights(self: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Other files call this with a model of theirs as `self`, whose parameters have the same names."""
        if isinstance(self, CausalLM):
            return super().load_weights(weights)
        if self.config.tie_word_embeddings:
            weights = (pair for pair in weights if pair[0] != "lm_head.weight")
        return load_weights(self, weights, MixtralForCausalLM.weight_map)


EntryClass = MixtralForCausalLM
