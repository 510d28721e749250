"""InternViT: a vision tower with scaled branches, over tiles of one size.

    x = [class row; W_patch p + b] + position
    x = x + lambda_1 * attention(norm(x));  x = x + lambda_2 * fc2(gelu(fc1(norm(x))))

Legend: n tiles of C x S x S pixels, P rows of each, E tower width. Names of parameters are those of transformers, except that `attention`
has a fused `qkv_proj`, and `proj` for `projection_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import to_mapping
from sglang.srt.layers.attention.vision import VisionAttention
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.vision_tower import VisionMLP
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


@dataclass(frozen=True)
class InternViTShape:
    """The tower's part of a config, as published (InternVisionConfig) or as transformers writes it."""

    width: int
    inner: int
    num_layers: int
    num_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    norm_type: str
    norm_eps: float
    has_qkv_bias: bool
    has_qk_norm: bool
    has_last_norm: bool

    @staticmethod
    def of(config: Any) -> InternViTShape:
        """Raises ConfigError for a norm or for tiles that the tower does not know."""
        raw = to_mapping(config)
        norm_type = raw.get("norm_type", "layer_norm")
        if norm_type not in _NORMS:
            raise ConfigError(f"norm_type={norm_type!r} of InternViT; allowed: {', '.join(_NORMS)}")
        return InternViTShape(
            width=raw["hidden_size"],
            inner=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_channels=raw.get("num_channels", 3),
            image_size=_side(raw, "image_size"),
            patch_size=_side(raw, "patch_size"),
            hidden_act=raw.get("hidden_act", "gelu"),
            norm_type=norm_type,
            norm_eps=raw.get("layer_norm_eps", 1e-6),
            has_qkv_bias=bool(raw.get("qkv_bias", raw.get("attention_bias", False))),
            has_qk_norm=bool(raw.get("qk_normalization", raw.get("use_qk_norm", False))),
            has_last_norm=not raw.get("use_mean_pooling", True),
        )

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    def make_norm(self) -> nn.Module:
        return _NORMS[self.norm_type](self.width, eps=self.norm_eps)


class InternViTBlock(nn.Module):
    """Attention and MLP, each behind a norm and scaled; every tile attends to itself, [n, P, E]."""

    def __init__(
        self, shape: InternViTShape, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        self.layernorm_before = shape.make_norm()
        self.attention = VisionAttention(
            shape.width,
            shape.num_heads,
            shape.width,
            use_qkv_parallel=True,
            quant_config=quant_config,
            qkv_bias=shape.has_qkv_bias,
            qk_normalization=shape.has_qk_norm,
            layer_norm_eps=shape.norm_eps,
            prefix=add_prefix("attention", prefix),
        )
        self.lambda_1 = nn.Parameter(torch.empty(shape.width))
        self.layernorm_after = shape.make_norm()
        self.mlp = VisionMLP(
            shape.width, shape.inner, shape.hidden_act, quant_config, add_prefix("mlp", prefix)
        )
        self.lambda_2 = nn.Parameter(torch.empty(shape.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.lambda_1 * self.attention(self.layernorm_before(x))
        return x + self.lambda_2 * self.mlp(self.layernorm_after(x))


class InternViTEmbeddings(nn.Module):
    """A row for the whole tile, then its patches, each with its position: [n, C, S, S] -> [n, P, E]."""

    def __init__(self, shape: InternViTShape) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.position_embeddings = nn.Parameter(torch.empty(1, shape.side**2 + 1, shape.width))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(
            shape.num_channels, shape.width, kernel_size=shape.patch_size, stride=shape.patch_size
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embeddings.projection(tiles).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(tiles), -1, -1), patches], dim=1)
        return x + self.position_embeddings


class InternViT(nn.Module):
    """Tiles to rows."""

    def __init__(
        self,
        shape: InternViTShape,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = InternViTEmbeddings(shape)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            InternViTBlock(shape, quant_config, add_prefix(f"encoder.layer.{index}", prefix))
            for index in range(shape.num_layers)
        )
        # A layer norm whatever `norm_type` is.
        self.layernorm: nn.Module = (
            nn.LayerNorm(shape.width, eps=shape.norm_eps) if shape.has_last_norm else nn.Identity()
        )

    @property
    def weight(self) -> torch.Tensor:
        """Its device and dtype are those that pixels need."""
        return self.embeddings.patch_embeddings.projection.weight

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """[n, C, S, S] -> [n, 1 + patches, E]."""
        x = self.embeddings(tiles)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x)


_NORMS: dict[str, Any] = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}


def _side(raw: Mapping[str, Any], key: str) -> int:
    """A size that is one number or two equal ones."""
    value = raw[key]
    sizes = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        raise ConfigError(f"{key}={value} of InternViT; tiles and patches must be square")
    return int(sizes[0])
