"""Heads of zeros, where the heads of a vision tower do not divide by the number of ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sglang.srt.layers.dp_attention import get_attention_tp_size
from sglang.srt.utils import ceil_align

_SPLIT_NAMES = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
_NORM_NAMES = ("attn.q_norm.weight", "attn.k_norm.weight")


def update_vit_attn_dummy_heads_config(config: Any) -> None:
    """Set `config.vision_config.head_dim` and `.num_dummy_heads`: heads that miss to the next multiple of the ranks."""
    vision = config.vision_config
    values = vars(vision)
    num_heads = values.get("num_heads", values.get("num_attention_heads"))
    if num_heads is None:
        raise ValueError("the vision config has neither num_heads nor num_attention_heads")
    vision.head_dim = vision.hidden_size // num_heads
    vision.num_dummy_heads = ceil_align(num_heads, get_attention_tp_size()) - num_heads


def pad_vit_attn_dummy_heads(config: Any, name: str, loaded_weight: torch.Tensor) -> torch.Tensor:
    """A checkpoint tensor of vision attention with zeros for the dummy heads; other tensors unchanged.

    Raises ValueError for a tensor of the fused projection that is neither weight nor bias.
    """
    vision = config.vision_config
    num_rows = vision.num_dummy_heads * vision.head_dim
    if num_rows == 0:
        return loaded_weight
    if "attn.qkv_proj" in name:
        if not name.endswith((".weight", ".bias")):
            raise ValueError(f"{name}: only the weight and the bias of qkv_proj can be padded")
        return torch.cat([_pad_rows(part, num_rows) for part in loaded_weight.chunk(3, dim=0)])
    if any(part in name for part in _SPLIT_NAMES):
        return _pad_rows(loaded_weight, num_rows)
    if name.endswith(_NORM_NAMES):
        return _pad_rows(loaded_weight, num_rows)
    if "attn.proj.weight" in name:
        return F.pad(loaded_weight, (0, num_rows))
    return loaded_weight


def _pad_rows(tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    return torch.cat([tensor, tensor.new_zeros(num_rows, *tensor.shape[1:])])
