"""Parts of vision towers that take patches of any number of pictures in one run of rows.

Legend: N patches of all pictures one after the other, E tower width, d head dim, m merge size (m x m patches become one row), D width of
the language model. Patches come merge block by merge block: the m x m patches of a block follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.layers.activation import get_act_fn
from sglang.srt.layers.attention.vision import VisionAttention
from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.utils import RotaryPosMixin
from sglang.srt.utils import add_prefix
from sglang.srt.utils.upload import upload

Grid = list[list[int]]  # (frames, rows, columns) of patches per picture or video


class PatchEmbedding(nn.Module):
    """One linear map per patch; the weight has the shape of the convolution that it is published as."""

    def __init__(self, in_channels: int, frames: int, patch_size: int, width: int) -> None:
        super().__init__()
        kernel = (frames, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, width, kernel_size=kernel, stride=kernel, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:  # [N, C * frames * p * p] -> [N, E]
        weight = self.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1))


class VisionMLP(nn.Module):
    """`fc2(act(fc1(x)))`, both with a bias."""

    def __init__(
        self,
        width: int,
        inner: int,
        hidden_act: str,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.fc1 = ColumnParallelLinear(
            width, inner, quant_config=quant_config, prefix=add_prefix("fc1", prefix)
        )
        self.act = get_act_fn(hidden_act)
        self.fc2 = RowParallelLinear(
            inner, width, quant_config=quant_config, prefix=add_prefix("fc2", prefix)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.fc1(x)
        x, _ = self.fc2(self.act(x))
        return x


class VisionBlock(nn.Module):
    """`x = x + attention(norm1(x)); x = x + mlp(norm2(x))`."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp: nn.Module,
        make_norm: Callable[[int], nn.Module],
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(width)
        self.norm2 = make_norm(width)
        self.attn = VisionAttention(
            width,
            num_heads,
            width,
            use_qkv_parallel=True,
            quant_config=quant_config,
            flatten_batch=True,
            prefix=add_prefix("attn", prefix),
        )
        self.mlp = mlp

    def forward(
        self,
        x: torch.Tensor,  # [N, E]
        cu_seqlens: torch.Tensor,  # int32, the first row of every run that attends to itself, and N
        rotary: tuple[torch.Tensor, torch.Tensor],  # cos, sin [N, d / 2]
    ) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), cu_seqlens, position_embeddings=rotary)[0]
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """`mlp(concat of the m x m patches of a block, each normed)`: a row for the language model."""

    def __init__(
        self,
        width: int,
        out_width: int,
        merge_size: int,
        norm: nn.Module,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.inner = width * merge_size**2
        self.ln_q = norm
        first = ColumnParallelLinear(
            self.inner, self.inner, quant_config=quant_config, prefix=add_prefix("mlp.0", prefix)
        )
        second = RowParallelLinear(
            self.inner, out_width, quant_config=quant_config, prefix=add_prefix("mlp.2", prefix)
        )
        self.mlp = nn.ModuleList([first, nn.GELU(), second])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, E] -> [N / m^2, D]
        first, act, second = self.mlp
        x, _ = first(self.ln_q(x).reshape(-1, self.inner))
        x, _ = second(act(x))
        return x


def patch_rotary(
    grid: Grid, merge_size: int, head_dim: int, device: torch.device, theta: float = 10000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [N, d / 2]: the first half turns with the patch's row, the second with its column."""
    steps = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    frequencies = theta**-steps  # [d / 4]
    places = torch.cat(
        [RotaryPosMixin.rot_pos_ids(h, w, merge_size).repeat(t, 1) for t, h, w in grid]
    )  # [N, 2]
    angles = upload((places[:, :, None] * frequencies).flatten(1), torch.float32, device)
    return angles.cos(), angles.sin()


def frame_boundaries(grid: Grid) -> torch.Tensor:
    """int32 [frames + 1]: every frame attends to itself."""
    return boundaries_of([h * w for t, h, w in grid for _ in range(t)])


def boundaries_of(lens: Sequence[int]) -> torch.Tensor:
    """int32 [n + 1], on the host: attention reads it there."""
    ends = torch.tensor([0, *lens], dtype=torch.int64).cumsum(0)
    return ends.to(torch.int32)
