"""Vision towers for square pictures of one size: CLIP and SigLIP. A patch sees all patches of its picture; positions are learned.

    x = W_patch p + position (CLIP: a row for the whole picture first, and a norm)
    x = x + attention(layer_norm(x));  x = x + fc2(act(fc1(layer_norm(x))))

Legend: n pictures of C x S x S pixels, P rows of each, E tower width, L layers. Names of parameters are the published ones, except that
`self_attn` has a fused `qkv_proj`, and `proj` for `out_proj`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sglang.srt.layers.attention.vision import VisionAttention
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.vision_tower import VisionMLP
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class ViT(nn.Module):
    """Pictures to rows.

    Args:
        config: the tower's config.
        feature_layers: the outputs to return, side by side: 0 is the first layer's input, i the output of layer i, -1 that of the last
            one. Layers behind them are not built. None: the last output, normed.
    """

    has_class_row = False
    has_patch_bias = True

    def __init__(
        self,
        config: Any,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        feature_layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        total = config.num_hidden_layers
        self.feature_layers = None
        if feature_layers is not None:
            self.feature_layers = [i if i >= 0 else total + 1 + i for i in feature_layers]
            if any(i not in range(total + 1) for i in self.feature_layers):
                raise ConfigError(
                    f"vision_feature_layer={list(feature_layers)} of a tower with {total} layers"
                )
            total = max(self.feature_layers)
        self.num_layers = total
        self.image_size, self.patch_size = config.image_size, config.patch_size
        width = config.hidden_size
        self.embeddings = ViTEmbeddings(config, self.has_class_row, self.has_patch_bias)
        if self.has_class_row:
            self.pre_layrnorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.encoder: Any = nn.Module()
        self.encoder.layers = nn.ModuleList(
            ViTBlock(config, quant_config, add_prefix(f"encoder.layers.{index}", prefix))
            for index in range(total)
        )
        if self.feature_layers is None:
            self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    @property
    def side(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size

    @property
    def weight(self) -> torch.Tensor:
        """Its device and dtype are those that pictures need."""
        return self.embeddings.patch_embedding.weight

    @property
    def unused_weights(self) -> tuple[str, ...]:
        """Patterns of names, within the tower, of published tensors that this one leaves out."""
        heads = [r"head\.", r"position_ids$"]
        if self.feature_layers is None:
            return tuple(heads)
        built = "|".join(str(index) for index in range(self.num_layers))
        beyond = rf"encoder\.layers\.(?!(?:{built})\.)"
        return (*heads, r"post_layernorm\.", beyond)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[n, C, S, S] -> [n, P, E], or [n, P, E * k] for k feature layers."""
        x = self.embeddings(pixel_values)
        if self.has_class_row:
            x = self.pre_layrnorm(x)
        kept = {0: x}
        for index, layer in enumerate(self.encoder.layers):
            x = layer(x)
            if self.feature_layers is not None and index + 1 in self.feature_layers:
                kept[index + 1] = x
        if self.feature_layers is None:
            return self.post_layernorm(x)
        return torch.cat([kept[index] for index in self.feature_layers], dim=-1)


class ClipViT(ViT):
    """The tower of CLIP. Row 0 of a picture is that of the whole."""

    has_class_row = True
    has_patch_bias = False


class SiglipViT(ViT):
    """The tower of SigLIP, without its pooling head."""


_KINDS: dict[str, type[ViT]] = {"clip_vision_model": ClipViT, "siglip_vision_model": SiglipViT}


def make_vit(
    config: Any,
    quant_config: QuantizationConfig | None = None,
    prefix: str = "",
    feature_layers: Sequence[int] | None = None,
) -> ViT:
    """The tower of a vision config. Raises ConfigError for a kind that is not here."""
    if config.model_type not in _KINDS:
        raise ConfigError(
            f"a vision tower of type {config.model_type!r} is not supported here; allowed: {', '.join(_KINDS)}"
        )
    return _KINDS[config.model_type](config, quant_config, prefix, feature_layers)


class ViTEmbeddings(nn.Module):
    """Patches, each with its position: [n, C, S, S] -> [n, P, E]."""

    def __init__(self, config: Any, has_class_row: bool, has_patch_bias: bool) -> None:
        super().__init__()
        width, patch_size = config.hidden_size, config.patch_size
        num_rows = (config.image_size // patch_size) ** 2 + int(has_class_row)
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            width,
            kernel_size=patch_size,
            stride=patch_size,
            bias=has_patch_bias,
        )
        self.position_embedding = nn.Embedding(num_rows, width)
        self.class_embedding = nn.Parameter(torch.empty(width)) if has_class_row else None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            first = self.class_embedding.expand(len(x), 1, -1)
            x = torch.cat([first, x], dim=1)
        return x + self.position_embedding.weight


class ViTBlock(nn.Module):
    """Attention and MLP, each behind a norm; all pictures at once, [n, P, E]."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(
            width,
            config.num_attention_heads,
            width,
            use_qkv_parallel=True,
            quant_config=quant_config,
            prefix=add_prefix("self_attn", prefix),
        )
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(
            width,
            config.intermediate_size,
            config.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))
