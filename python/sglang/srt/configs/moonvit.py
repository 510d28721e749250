"""The config of MoonViT, the vision tower of Kimi-VL."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MoonViTConfig(PretrainedConfig):
    """Keys and defaults of the published MoonViT-SO-400M; sizes in patches and pixels."""

    model_type = "moonvit"

    def __init__(
        self,
        patch_size: int = 14,
        init_pos_emb_height: int = 64,
        init_pos_emb_width: int = 64,
        num_attention_heads: int = 16,
        num_hidden_layers: int = 27,
        hidden_size: int = 1152,
        intermediate_size: int = 4304,
        merge_kernel_size: tuple[int, int] = (2, 2),
        **kwargs: Any,
    ) -> None:
        self.patch_size = patch_size
        self.init_pos_emb_height = init_pos_emb_height
        self.init_pos_emb_width = init_pos_emb_width
        self.num_attention_heads = num_attention_heads
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.merge_kernel_size = tuple(merge_kernel_size)
        super().__init__(**kwargs)
