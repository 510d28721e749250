"""ERNIE 4.5 (dense); transformers class `Ernie4_5ForCausalLM`, published as `Ernie4_5_ForCausalLM`.

    h = h + attention(rms_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- rotary positions turn neighbouring dimensions;
- `use_bias` is on every matrix of the layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.utils import add_prefix


class Ernie4_5DecoderLayer(PreNormLayer):
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
        require(facts, type(self).__name__, hidden_act=("silu",))
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            rope_is_neox_style=False,
            qkv_bias=config.use_bias,
            o_bias=config.use_bias,
        )
        self.mlp = self.make_mlp(config, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def make_mlp(
        self, config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        """What follows the attention; the family with experts overrides this."""
        return GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config,
            prefix,
            bias=config.use_bias,
        )


class Ernie4DecoderLayer(Ernie4_5DecoderLayer):
    """The layer under the name that draft models import; theirs (`is_mtp`) is dense too."""

    def __init__(
        self,
        config: Any,
        layer_id: int,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        is_mtp: bool = False,
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)


class Ernie4_5Model(DecoderModel):
    layer_cls: type[nn.Module] = Ernie4_5DecoderLayer


class Ernie4_5ForCausalLM(CausalLM):
    model_cls = Ernie4_5Model


# The published name, which draft models import.
Ernie4_5_ForCausalLM = Ernie4_5ForCausalLM

EntryClass = Ernie4_5ForCausalLM
