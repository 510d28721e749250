"""Qwen2.5-VL; transformers class `Qwen2_5_VLForConditionalGeneration`.

    tower:  x = x + attention(rms_norm(x));  x = x + down(silu(gate(x)) * up(x))

Differs from Qwen2-VL:
- the tower has RMS norms and gated MLPs with biases;
- only blocks of `fullatt_block_indexes` see a whole frame, the others a window of `window_size` pixels; rows are put in the order of the
  windows for the tower and back behind it;
- the time axis of a video advances by seconds (`tokens_per_second`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.vision_tower import (
    Grid,
    PatchEmbedding,
    PatchMerger,
    VisionBlock,
    boundaries_of,
    frame_boundaries,
    patch_rotary,
)
from sglang.srt.models.qwen2_vl import Qwen2VLForConditionalGeneration
from sglang.srt.models.utils import permute_inv
from sglang.srt.utils import add_prefix
from sglang.srt.utils.upload import upload


class Qwen2_5_VisionTransformer(nn.Module):
    """Patches of all pictures to rows of the language model's width."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.merge_size = config.spatial_merge_size
        self.head_dim = width // config.num_heads
        # Side of a window, in blocks of m x m patches.
        self.window = config.window_size // config.patch_size // self.merge_size
        self.full_blocks = frozenset(config.fullatt_block_indexes)
        self.patch_embed = PatchEmbedding(
            config.in_channels, config.temporal_patch_size, config.patch_size, width
        )
        make_norm = partial(RMSNorm, eps=1e-6)
        self.blocks = nn.ModuleList()
        for index in range(config.depth):
            name = add_prefix(f"blocks.{index}", prefix)
            mlp = GatedMLP(
                width,
                config.intermediate_size,
                config.hidden_act,
                bias=True,
                quant_config=quant_config,
                prefix=add_prefix("mlp", name),
            )
            self.blocks.append(
                VisionBlock(width, config.num_heads, mlp, make_norm, quant_config, name)
            )
        self.merger = PatchMerger(
            width,
            config.out_hidden_size,
            self.merge_size,
            make_norm(width),
            quant_config,
            add_prefix("merger", prefix),
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embed.proj.weight.dtype

    def forward(self, x: torch.Tensor, grid_thw: torch.Tensor | Grid) -> torch.Tensor:
        """[N, 3 * 2 * 14 * 14] and (t, h, w) of every picture -> [N / 4, D]."""
        grid: Grid = grid_thw.tolist() if isinstance(grid_thw, torch.Tensor) else grid_thw
        order, windows = window_order(grid, self.merge_size, self.window)
        order = upload(order, torch.int64, x.device)
        block = self.merge_size**2
        rotary = patch_rotary(grid, self.merge_size, self.head_dim, x.device)
        cos, sin = (_by_blocks(part, order, block) for part in rotary)
        frames = frame_boundaries(grid)
        x = _by_blocks(self.patch_embed(x), order, block)
        for index, layer in enumerate(self.blocks):
            x = layer(x, frames if index in self.full_blocks else windows, (cos, sin))
        return self.merger(x)[permute_inv(order)]


class Qwen2_5_VLForConditionalGeneration(Qwen2VLForConditionalGeneration):
    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        return Qwen2_5_VisionTransformer(
            config.vision_config, quant_config, add_prefix("visual", prefix)
        )


def window_order(grid: Grid, merge_size: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The merge blocks in the order of their windows, int64 [N / m^2], and the first patch of every window, int32.

    Windows at the right and lower border are smaller. Each frame has its own.
    """
    orders, lens, first = [], [], 0
    for t, h, w in grid:
        rows, columns = h // merge_size, w // merge_size
        places = torch.arange(t * rows * columns).view(t, rows, columns) + first
        below, right = -rows % window, -columns % window
        padded = F.pad(places, (0, right, 0, below), value=-1)
        tiles = padded.unflatten(2, (-1, window)).unflatten(1, (-1, window))
        tiles = tiles.transpose(2, 3).reshape(-1, window * window)  # [windows, blocks]
        is_real = tiles >= 0
        orders.append(tiles[is_real])
        lens += is_real.sum(dim=1).tolist()
        first += t * rows * columns
    return torch.cat(orders), boundaries_of([size * merge_size**2 for size in lens])


def _by_blocks(x: torch.Tensor, order: torch.Tensor, block: int) -> torch.Tensor:
    """Rows [N, ...] with their blocks of m^2 in another order."""
    return x.unflatten(0, (-1, block))[order].flatten(0, 1)


EntryClass = Qwen2_5_VLForConditionalGeneration
