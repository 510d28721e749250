"""The vision tower of Llama 3.2: a picture is a fixed number of square tiles, of which the last ones may be padding.

    x = W_patch p + tile;  x = [class row, x] + position + tile position;  x = norm(x)
    local layers, then norm and tile embedding, then global layers whose branches are scaled by tanh(gate)
    result: the last rows, beside those of some local layers

Every layer sees all tiles of a picture. Rows that pad a tile to a multiple of eight, and tiles that pad the picture, are seen by the others
and see them, but not one another: so the published weights were trained.
Legend: n pictures of t tiles of C x S x S pixels, P rows of a tile (patches and the class row), E tower width, k local layers that are kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.layers.attention.vision import VisionAttention
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.vision_tower import VisionMLP
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.upload import upload

_ROW_MULTIPLE = 8


class TiledViT(nn.Module):
    """Pictures to rows. Names of parameters are the published ones, except for `qkv_proj` and `proj` of attention."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_size, patch_size = side_of(config.image_size), side_of(config.patch_size)
        self.num_channels = config.num_channels
        self.max_num_tiles = config.max_num_tiles
        self.rows_per_tile = (self.image_size // patch_size) ** 2 + 1
        # Tiles of a picture, by its aspect ratio's id; 0 stands for no picture.
        self.tiles_of_ratio = [0, *(a * b for a, b in config.supported_aspect_ratios)]
        self.kept_layers = list(config.intermediate_layers_indices)
        num_layers = config.num_hidden_layers
        if any(index not in range(num_layers) for index in self.kept_layers):
            raise ConfigError(
                f"intermediate_layers_indices={self.kept_layers} of a tower with {num_layers} layers"
            )
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=patch_size, stride=patch_size, bias=False
        )
        self.class_embedding = nn.Parameter(torch.empty(width))
        num_ratios = len(self.tiles_of_ratio)
        self.gated_positional_embedding = TilePositions(
            num_ratios, self.max_num_tiles, self.rows_per_tile, width
        )
        self.pre_tile_positional_embedding = TileEmbedding(num_ratios, self.max_num_tiles, width)
        self.post_tile_positional_embedding = TileEmbedding(num_ratios, self.max_num_tiles, width)
        self.layernorm_pre = nn.LayerNorm(width)
        self.layernorm_post = nn.LayerNorm(width)
        self.transformer = _stack(
            num_layers, False, config, quant_config, add_prefix("transformer", prefix)
        )
        self.global_transformer = _stack(
            config.num_global_layers,
            True,
            config,
            quant_config,
            add_prefix("global_transformer", prefix),
        )

    @property
    def weight(self) -> torch.Tensor:
        """Its device and dtype are those that pictures need."""
        return self.patch_embedding.weight

    def forward(self, pixel_values: torch.Tensor, ratio_ids: torch.Tensor) -> torch.Tensor:
        """[n, t, C, S, S] and the ids of aspect ratios int64 [n] -> [n, t, P, E * (1 + k)]."""
        n, t = pixel_values.shape[:2]
        patches = self.patch_embedding(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = self.pre_tile_positional_embedding(patches.unflatten(0, (n, t)), ratio_ids)
        first = self.class_embedding.expand(n, t, 1, -1)
        x = self.gated_positional_embedding(torch.cat([first, x], dim=2), ratio_ids)
        x = F.pad(self.layernorm_pre(x), (0, 0, 0, -self.rows_per_tile % _ROW_MULTIPLE))
        num_rows = x.shape[2]
        visible = self._visible(ratio_ids, num_rows)
        x, kept = x.flatten(1, 2), []
        for index, layer in enumerate(self.transformer.layers):
            x = layer(x, visible)
            kept.append(x if index in self.kept_layers else None)
        x = self.layernorm_post(x).unflatten(1, (t, num_rows))
        x = self.post_tile_positional_embedding(x, ratio_ids).flatten(1, 2)
        for layer in self.global_transformer.layers:
            x = layer(x, visible)
        # As published, the numbers of one channel in all kept layers stand side by side.
        beside = torch.stack([kept[index] for index in self.kept_layers], dim=-1).flatten(2)
        rows = torch.cat([x, beside], dim=-1).unflatten(1, (t, num_rows))
        return rows[:, :, : self.rows_per_tile]

    def _visible(self, ratio_ids: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Which row sees which, bool [n, 1, t * num_rows, t * num_rows]."""
        device = ratio_ids.device
        num_tiles = upload(self.tiles_of_ratio, torch.int64, device)[ratio_ids]  # [n]
        pads_picture = torch.arange(self.max_num_tiles, device=device) >= num_tiles[:, None]
        pads_tile = torch.arange(num_rows, device=device) >= self.rows_per_tile
        is_padding = (pads_picture[:, :, None] | pads_tile).flatten(1)  # [n, t * num_rows]
        return ~(is_padding[:, None, :, None] & is_padding[:, None, None, :])


class TileEmbedding(nn.Module):
    """Adds a row per place of a tile and shape of the picture, scaled by tanh(gate): [n, t, rows, E]."""

    def __init__(self, num_ratios: int, num_tiles: int, width: int) -> None:
        super().__init__()
        self.num_tiles = num_tiles
        self.embedding = nn.Embedding(num_ratios, num_tiles * width)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor, ratio_ids: torch.Tensor) -> torch.Tensor:
        rows = self.embedding(ratio_ids).unflatten(1, (self.num_tiles, 1, -1))
        return x + rows * self.gate.tanh()


class TilePositions(nn.Module):
    """Adds the place within a tile, and with the share tanh(gate) the place within the picture: [n, t, P, E]."""

    def __init__(self, num_ratios: int, num_tiles: int, num_rows: int, width: int) -> None:
        super().__init__()
        self.shape = (num_tiles, num_rows, width)
        self.embedding = nn.Parameter(torch.empty(num_rows, width))
        self.tile_embedding = nn.Embedding(num_ratios, num_tiles * num_rows * width)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor, ratio_ids: torch.Tensor) -> torch.Tensor:
        share = self.gate.tanh()
        x = x + (1 - share) * self.embedding
        return x + share * self.tile_embedding(ratio_ids).unflatten(1, self.shape)


class TiledBlock(nn.Module):
    """Attention and MLP, each behind a norm, with gates in global layers: [n, rows, E]."""

    def __init__(
        self,
        config: Any,
        is_gated: bool,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = nn.LayerNorm(width, eps=config.norm_eps)
        self.self_attn = VisionAttention(
            width,
            config.attention_heads,
            width,
            use_qkv_parallel=True,
            qkv_bias=False,
            proj_bias=False,
            quant_config=quant_config,
            prefix=add_prefix("self_attn", prefix),
        )
        self.post_attention_layernorm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = VisionMLP(
            width,
            config.intermediate_size,
            config.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
        )
        self.gate_attn = nn.Parameter(torch.empty(1)) if is_gated else None
        self.gate_ffn = nn.Parameter(torch.empty(1)) if is_gated else None

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        attended = self.self_attn(self.input_layernorm(x), attention_mask=visible)
        x = x + _gated(attended, self.gate_attn)
        return x + _gated(self.mlp(self.post_attention_layernorm(x)), self.gate_ffn)


def side_of(size: Any) -> int:
    """Pixels along a side of a square, given as one number or two equal ones. Raises ConfigError."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"a vision tower for pictures or patches of {size} is not supported")
    return int(sides.pop())


def _gated(x: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    return x if gate is None else gate.tanh() * x


def _stack(
    count: int,
    is_gated: bool,
    config: Any,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> Any:
    stack: Any = nn.Module()
    stack.layers = nn.ModuleList(
        TiledBlock(config, is_gated, quant_config, add_prefix(f"layers.{index}", prefix))
        for index in range(count)
    )
    return stack
