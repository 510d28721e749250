"""Qwen2-VL; transformers class `Qwen2VLForConditionalGeneration`.

    tower:  x = W_patch p;  x = x + attention(layer_norm(x));  x = x + fc2(quick_gelu(fc1(layer_norm(x))))
            row = W2 gelu(W1 concat(layer_norm(x of 2 x 2 patches)))
    then Qwen2 over rows and tokens

Differs from Qwen2:
- pictures and videos of any size: as many rows as there are blocks of 2 x 2 patches; frames attend to themselves, in pairs of two;
- patches are turned by row and column, keys of the language model by time, height and width (`mrope_section`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.vision_language import (
    VisionLanguageModel,
    joined_features,
    joined_grids,
)
from sglang.srt.models.common.vision_tower import (
    Grid,
    PatchEmbedding,
    PatchMerger,
    VisionBlock,
    VisionMLP,
    frame_boundaries,
    patch_rotary,
)
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.qwen2 import Qwen2Model
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.utils import add_prefix

# Published names, and those of checkpoints that transformers 4.52 and later wrote.
QWEN_VL_NAMES = WeightsMapper(
    orig_to_new_prefix={"model.language_model.": "model.", "model.visual.": "visual."},
    orig_to_new_substr={".attn.qkv.": ".attn.qkv_proj."},
)


class Qwen2VisionTransformer(nn.Module):
    """Patches of all pictures to rows of the language model's width."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        width = config.embed_dim
        self.merge_size = config.spatial_merge_size
        self.head_dim = width // config.num_heads
        self.patch_embed = PatchEmbedding(
            config.in_channels, config.temporal_patch_size, config.patch_size, width
        )
        make_norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList()
        for index in range(config.depth):
            name = add_prefix(f"blocks.{index}", prefix)
            mlp = VisionMLP(
                width,
                int(width * config.mlp_ratio),
                config.hidden_act,
                quant_config,
                add_prefix("mlp", name),
            )
            self.blocks.append(
                VisionBlock(width, config.num_heads, mlp, make_norm, quant_config, name)
            )
        self.merger = PatchMerger(
            width,
            config.hidden_size,
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
        rotary = patch_rotary(grid, self.merge_size, self.head_dim, x.device)
        boundaries = frame_boundaries(grid)
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, boundaries, rotary)
        return self.merger(x)


class Qwen2VLForConditionalGeneration(VisionLanguageModel):
    model_cls = Qwen2Model
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=QWEN_VL_NAMES)
    sees_frames_alone = True  # attention of the tower stays within a frame

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        return Qwen2VisionTransformer(
            config.vision_config, quant_config, add_prefix("visual", prefix)
        )

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when a grid does not fit its places or its patches."""
        width = self.visual.patch_embed.proj.weight[0].numel()
        for item in mm_inputs.mm_items:
            check_grid(item, self.config.vision_config.spatial_merge_size, width)
        return super().pad_input_ids(input_ids, mm_inputs)

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N / 4, D]
        return self._rows(items, "image_grid_thw")

    def get_video_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N / 4, D]
        return self._rows(items, "video_grid_thw")

    def _rows(self, items: list[MultimodalDataItem], key: str) -> torch.Tensor:
        patches = joined_features(items, like=self.visual.patch_embed.proj.weight)
        return self.visual(patches, joined_grids(items, key))


def check_grid(item: MultimodalDataItem, merge_size: int, width: int) -> None:
    """Raises ValueError unless grids, patches (of `width` numbers each) and places of an item agree."""
    if item.precomputed_embeddings is not None:
        return
    key = "video_grid_thw" if item.is_video() else "image_grid_thw"
    if key not in item.model_specific_data:
        raise ValueError(f"{item.modality.name.lower()} data need {key}")
    grids = joined_grids([item], key)
    if any(t < 1 or h < 1 or w < 1 or h % merge_size or w % merge_size for t, h, w in grids):
        raise ValueError(f"{key}={grids} must be positive and in multiples of {merge_size}")
    if not isinstance(item.feature, (torch.Tensor, np.ndarray)):
        raise ValueError(f"{item.modality.name.lower()} data must be a tensor of patches")
    patches = sum(t * h * w for t, h, w in grids)
    shape = list(item.feature.shape)
    places = sum(last - first + 1 for first, last in item.offsets or [])
    if shape != [patches, width] or places * merge_size**2 != patches:
        raise ValueError(
            f"{key}={grids} stands for {patches} patches of {width} numbers; there are data of shape {shape} and "
            f"{places} places in the prompt"
        )


EntryClass = Qwen2VLForConditionalGeneration
