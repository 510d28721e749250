"""Whisper's encoder, as models that listen have it.

    x = gelu(conv(gelu(conv(mel)))) + position;   x = x + attention(layer_norm(x));   x = x + fc2(act(fc1(layer_norm(x))))

Legend: n sounds of F frames with M mel bins, N steps of all sounds one after the other, E tower width. The second convolution halves the
frames. Names of parameters are the published ones, except that `self_attn` has a fused `qkv_proj`, and `proj` for `out_proj`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.layers.attention.vision import VisionAttention
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.vision_tower import VisionMLP, boundaries_of
from sglang.srt.utils import add_prefix


class AudioBlock(nn.Module):
    """Attention and MLP, each behind a norm; every sound attends to itself, [N, E]."""

    def __init__(self, config: Any, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = VisionAttention(
            width,
            config.encoder_attention_heads,
            width,
            use_qkv_parallel=True,
            quant_config=quant_config,
            flatten_batch=True,
            prefix=add_prefix("self_attn", prefix),
        )
        self.final_layer_norm = nn.LayerNorm(width)
        self.mlp = VisionMLP(
            width,
            config.encoder_ffn_dim,
            config.activation_function,
            quant_config,
            add_prefix("mlp", prefix),
        )

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), cu_seqlens)[0]
        return x + self.mlp(self.final_layer_norm(x))


class AudioTower(nn.Module):
    """Convolutions and blocks. A family says what becomes of the last block's output: pooling, `layer_norm`."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        width = config.d_model
        self.num_mel_bins = config.num_mel_bins
        self.max_positions = config.max_source_positions
        self.conv1 = nn.Conv1d(self.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(self.max_positions, width)
        self.layers = nn.ModuleList(
            AudioBlock(config, quant_config, add_prefix(f"layers.{index}", prefix))
            for index in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        features: torch.Tensor,  # [n, M, F]; what lies behind a sound's end is heard by its last step only
        lengths: Sequence[int],  # frames of every sound
    ) -> list[torch.Tensor]:  # [steps, E] of every sound
        x = F.gelu(self.conv1(features))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        counts = [(length + 1) // 2 for length in lengths]
        rows = torch.cat([steps[:count] for steps, count in zip(x, counts, strict=True)])
        cu_seqlens = boundaries_of(counts)
        for layer in self.layers:
            rows = layer(rows, cu_seqlens)
        return list(rows.split(counts))


def add_key_bias(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A `convert`: Whisper's keys have no bias. One of zero takes its part of the fused bias; it changes no attention, as any other."""
    yield name, tensor
    if ".audio_tower." in name and name.endswith(".q_proj.bias"):
        yield name.replace(".q_proj.", ".k_proj."), torch.zeros_like(tensor)
