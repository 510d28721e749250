"""OPT; transformers class `OPTForCausalLM` (arXiv 2205.01068).

    h = h + attention(layer_norm(h));  h0 = embed(token) + embed(position + 2)
    h = h + down(relu(up(layer_norm(h))))

Differs from Llama:
- learned absolute positions, of which the first two rows are never used;
- layer norms and biases everywhere, a plain MLP;
- not the 350M checkpoint, which norms after its branches and projects its embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.utils import PPMissingLayer
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

# Rows of the position table that are kept for padding.
_POSITION_OFFSET = 2


class OPTDecoderLayer(nn.Module):
    """Pre-norm attention and MLP around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=False,
            qkv_bias=config.enable_bias,
            o_bias=config.enable_bias,
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            config.ffn_dim,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=config.enable_bias,
        )
        affine = config.layer_norm_elementwise_affine
        self.self_attn_layer_norm = LayerNorm(facts.hidden_size, 1e-5, affine)
        self.final_layer_norm = LayerNorm(facts.hidden_size, 1e-5, affine)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.self_attn_layer_norm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.final_layer_norm, x, residual)
        return self.mlp(x), residual


class OPTModel(DecoderModel):
    layer_cls = OPTDecoderLayer

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        _refuse_other_shapes(config)
        super().__init__(config, quant_config, prefix)
        facts = read_facts(config)
        rows = facts.max_position_embeddings + _POSITION_OFFSET
        self.embed_positions: nn.Module = (
            VocabParallelEmbedding(rows, facts.hidden_size)
            if self.pp_group.is_first_rank
            else PPMissingLayer()
        )

    def add_positions(self, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.embed_positions(positions + _POSITION_OFFSET)

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, 1e-5, self.config.layer_norm_elementwise_affine)


class OPTForCausalLM(CausalLM):
    model_cls = OPTModel
    weight_map = WeightMap(
        stacked=QKV,
        rename=WeightsMapper(
            orig_to_new_substr={
                ".self_attn.out_proj.": ".self_attn.o_proj.",
                ".fc1.": ".mlp.up_proj.",
                ".fc2.": ".mlp.down_proj.",
            },
            # The published checkpoints lack the first "model.".
            orig_to_new_prefix={
                "model.decoder.final_layer_norm.": "model.norm.",
                "model.decoder.": "model.",
                "decoder.final_layer_norm.": "model.norm.",
                "decoder.": "model.",
            },
        ),
    )


def _refuse_other_shapes(config: Any) -> None:
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise ConfigError(
            f"OPTForCausalLM does not implement do_layer_norm_before={config.do_layer_norm_before} "
            f"with word_embed_proj_dim={config.word_embed_proj_dim}; implemented: true, with the hidden "
            "size. Try --model-impl transformers"
        )


EntryClass = OPTForCausalLM
