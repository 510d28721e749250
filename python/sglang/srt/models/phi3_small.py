"""Phi-3-small; published as code, architecture `Phi3SmallForCausalLM` (arXiv 2404.14219).

    h = h + attention(layer_norm(h));  h0 = e * embed(token);  scores = q k^T * a / d
    h = h + down(gegelu(up(layer_norm(h))));  gegelu(g, l) = quick_gelu(min(g, c)) * (clip(l, -c, c) + 1);  logits = head(h) / w

Differs from Llama:
- layer norms, biases on every matrix, a head that is the embedding;
- muP's constants `mup_embedding_multiplier` e, `mup_attn_multiplier` a, `mup_width_multiplier` w; `gegelu_limit` c;
- q, k and v of a kv head lie side by side in the checkpoint, and the two inputs of the gate are interleaved;
- `dummy_token_indices` are never chosen.
- all layers but every `dense_attention_every_n_layers`-th see blocks of keys: the nearest ones, and every so many-th before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.block_sparse import BlockSparseAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.weights import NamedTensor, WeightMap, unfuse_groups
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

_NAMES = WeightsMapper(
    orig_to_new_prefix={"model.final_layernorm.": "model.norm."},
    orig_to_new_substr={
        ".self_attn.query_key_value.": ".self_attn.qkv_proj.",
        ".self_attn.dense.": ".self_attn.o_proj.",
        ".mlp.up_proj.": ".mlp.gate_up_proj.",
    },
)


class GeGelu(nn.Module):
    """`[T, 2 I]`, gates first, to `[T, I]`."""

    def __init__(self, limit: float | None) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, linear = x.chunk(2, dim=-1)
        if self.limit is not None:
            gate, linear = gate.clamp(max=self.limit), linear.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(1.702 * gate) * (linear + 1)


class Phi3SmallDecoderLayer(PreNormLayer):
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
        require(facts, type(self).__name__, hidden_act=("gegelu",))
        if config.to_dict().get("rope_position_scale", 1.0) != 1.0:
            raise ConfigError("Phi3SmallForCausalLM implements rope_position_scale=1.0 only")
        every = config.dense_attention_every_n_layers
        is_dense = bool(every) and (layer_id + 1) % every == 0
        attention = GQAttention if is_dense else BlockSparseAttention
        self.self_attn = attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=True,
            o_bias=True,
            scaling=_score_scale(config, facts),
        )
        if isinstance(self.self_attn, BlockSparseAttention):
            self.self_attn.set_pattern(
                config.blocksparse_block_size,
                config.blocksparse_num_local_blocks,
                config.blocksparse_vert_stride,
                facts.num_attention_heads,
                is_same_for_heads=config.blocksparse_homo_head_pattern,
            )
        self.mlp = GatedMLP(
            facts.hidden_size,
            facts.intermediate_size,
            "gelu",
            quant_config,
            add_prefix("mlp", prefix),
            bias=True,
        )
        self.mlp.act_fn = GeGelu(config.gegelu_limit)
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)


class Phi3SmallModel(DecoderModel):
    layer_cls = Phi3SmallDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids) * self.config.mup_embedding_multiplier


class Phi3SmallLogits(LogitsProcessor):
    """Logits in which the tokens that stand for nothing are impossible."""

    def __init__(self, config: Any, logit_scale: float | None) -> None:
        super().__init__(config, logit_scale=logit_scale)
        # A buffer, because a step that sent them would wait for the copy.
        banned = torch.tensor(config.dummy_token_indices or (), dtype=torch.int64)
        self._banned: torch.Tensor
        self.register_buffer("_banned", banned, persistent=False)

    def compute_logits(self, hidden_states: torch.Tensor, lm_head: nn.Module) -> torch.Tensor:
        logits = super().compute_logits(hidden_states, lm_head)
        return logits.index_fill_(-1, self._banned, float("-inf"))


class Phi3SmallForCausalLM(CausalLM):
    model_cls = Phi3SmallModel
    packed_modules_mapping = {"qkv_proj": ["query_key_value"], "gate_up_proj": ["up_proj"]}

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        self.logits_processor = Phi3SmallLogits(config, logit_scale=self.logit_scale(config))
        facts = read_facts(config)
        convert = partial(_unfuse, facts.num_key_value_heads, facts.num_attention_heads)
        self.weight_map = WeightMap(rename=_NAMES, convert=convert)

    def logit_scale(self, config: Any) -> float | None:
        return 1.0 / config.mup_width_multiplier if config.mup_width_multiplier else None


def _unfuse(
    num_kv_heads: int, num_heads: int, name: str, tensor: torch.Tensor
) -> Iterator[NamedTensor]:
    """Groups of q, k, v apart, and gates before what they gate."""
    if ".mlp.gate_up_proj." in name:
        tensor = torch.cat([tensor[::2], tensor[1::2]])
    yield from unfuse_groups(num_kv_heads, num_heads, name, tensor)


def _score_scale(config: Any, facts: ModelFacts) -> float:
    if config.mup_use_scaling:
        return config.mup_attn_multiplier / facts.head_dim
    return facts.head_dim**-0.5


EntryClass = Phi3SmallForCausalLM
