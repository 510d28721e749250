"""Baichuan 1 and 2, 7B and 13B; published as code, architecture `BaichuanForCausalLM` (arXiv 2309.10305).

    h = h + attention(rms_norm(h));  13B: scores = q k^T / sqrt(d) - m * distance
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- q, k and v are fused in the checkpoint (`W_pack`);
- 13B has ALiBi (arXiv 2108.12409), with a slope m for each head, in place of rotary positions;
- Baichuan 2 divides the rows of its head by their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.alibi import AlibiAttention
from sglang.srt.models.common.weights import GATE_UP, NamedTensor, WeightMap
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix

_NAMES = WeightsMapper(orig_to_new_substr={".self_attn.W_pack.": ".self_attn.qkv_proj."})


class BaichuanDecoderLayer(LlamaDecoderLayer):
    """Llama's layer, with ALiBi where the config has no rotary positions."""

    self_attn: Any

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        if config.position_embedding == "ALIBI":
            self.self_attn = AlibiAttention.from_facts(
                read_facts(config),
                layer_id,
                quant_config,
                add_prefix("self_attn", prefix),
                use_rope=False,
            )


class BaichuanModel(LlamaModel):
    layer_cls = BaichuanDecoderLayer


class BaichuanForCausalLM(LlamaForCausalLM):
    model_cls = BaichuanModel
    packed_modules_mapping = {"qkv_proj": ["W_pack"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        convert = norm_head if config.norm_head else None
        self.weight_map = WeightMap(stacked=GATE_UP, rename=_NAMES, convert=convert)


def norm_head(name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """Rows of the head with length one; other tensors pass."""
    if name == "lm_head.weight":
        tensor = F.normalize(tensor.float(), dim=1).to(tensor.dtype)
    yield name, tensor


class BaiChuanForCausalLM(BaichuanForCausalLM):
    """The first 7B model spells the name so."""


EntryClass = [BaichuanForCausalLM, BaiChuanForCausalLM]
