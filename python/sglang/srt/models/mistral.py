"""Mistral 7B and its relatives; transformers class `MistralForCausalLM`.

    h = h + attention(rms_norm(h));  h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- every layer may attend to a sliding window of `sliding_window` tokens (the token itself included).
"""

from __future__ import annotations

from sglang.srt.configs.hf_config import ModelFacts
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


class MistralDecoderLayer(LlamaDecoderLayer):
    def sliding_window(self, facts: ModelFacts, layer_id: int) -> int:
        return facts.window_of_layer(layer_id)


class MistralModel(LlamaModel):
    layer_cls = MistralDecoderLayer


class MistralForCausalLM(LlamaForCausalLM):
    model_cls = MistralModel


EntryClass = MistralForCausalLM
