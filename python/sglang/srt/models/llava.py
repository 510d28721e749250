"""LLaVA 1.5; transformers class `LlavaForConditionalGeneration` (arXiv 2310.03744).

    row = W2 gelu(W1 x),  x: a patch of CLIP or SigLIP as one of the last layers leaves it
    then Llama, Mistral or Qwen2 over rows and tokens

Differs from those:
- every picture is scaled to one square, and is as many rows as the square has patches;
- CLIP's row for the whole picture is dropped (`vision_feature_select_strategy="default"`) or kept ("full");
- the outputs of several layers of the tower may be joined (`vision_feature_layer`, a list).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.activation import get_act_fn
from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.vision_language import VisionLanguageModel, joined_features
from sglang.srt.models.common.vit import make_vit
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.llama import LlamaModel
from sglang.srt.models.mistral import MistralModel
from sglang.srt.models.qwen2 import Qwen2Model
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

# Published names, and those of checkpoints that transformers 4.52 and later wrote.
_PARTS = ("vision_tower.", "multi_modal_projector.", "image_newline")
LLAVA_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
        **{part: f"visual.{part}" for part in _PARTS},
        **{f"model.{part}": f"visual.{part}" for part in _PARTS},
        "vision_tower.vision_model.": "visual.vision_tower.",
        "model.vision_tower.vision_model.": "visual.vision_tower.",
    },
    orig_to_new_substr={".self_attn.out_proj.": ".self_attn.proj."},
)
LANGUAGE_MODELS: dict[str, type[nn.Module]] = {
    "llama": LlamaModel,
    "mistral": MistralModel,
    "qwen2": Qwen2Model,
}


class LlavaProjector(nn.Module):
    """`linear_2(act(linear_1(x)))`: a row of the tower to one of the language model."""

    def __init__(
        self, config: Any, width: int, out_width: int, quant_config: Any, prefix: str
    ) -> None:
        super().__init__()
        bias = config.multimodal_projector_bias
        self.linear_1 = ColumnParallelLinear(
            width,
            out_width,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("linear_1", prefix),
        )
        self.act = get_act_fn(config.projector_hidden_act)
        self.linear_2 = RowParallelLinear(
            out_width,
            out_width,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("linear_2", prefix),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.linear_1(x)
        x, _ = self.linear_2(self.act(x))
        return x


class LlavaTower(nn.Module):
    """Pictures to rows of the language model's width D."""

    def __init__(self, config: Any, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        chosen = config.vision_feature_layer
        layers = [chosen] if isinstance(chosen, int) else list(chosen)
        self.vision_tower = make_vit(
            config.vision_config, quant_config, add_prefix("vision_tower", prefix), layers
        )
        # As published: whatever is the first row goes, also where it is a patch.
        self.num_dropped = int(config.vision_feature_select_strategy == "default")
        self.multi_modal_projector = LlavaProjector(
            config,
            config.vision_config.hidden_size * len(layers),
            read_facts(config).hidden_size,
            quant_config,
            add_prefix("multi_modal_projector", prefix),
        )

    @property
    def num_rows(self) -> int:
        """Rows of one square picture."""
        tower = self.vision_tower
        return tower.side**2 + int(tower.has_class_row) - self.num_dropped

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[n, C, S, S] -> [n, num_rows, D]."""
        x = self.vision_tower(pixel_values)
        return self.multi_modal_projector(x[:, self.num_dropped :])


class LlavaForConditionalGeneration(VisionLanguageModel):
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=LLAVA_NAMES)
    tower_cls: type[LlavaTower] = LlavaTower

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        unused = self.visual.vision_tower.unused_weights
        skip = tuple(rf"vision_tower\.(?:vision_model\.)?{pattern}" for pattern in unused)
        self.weight_map = dataclasses.replace(self.weight_map, skip=skip)

    def _init_model(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> nn.Module:
        text = self.text_config(config)
        if text.model_type not in LANGUAGE_MODELS:
            raise ConfigError(
                f"a LLaVA with a language model of type {text.model_type!r} is not supported; "
                f"allowed: {', '.join(LANGUAGE_MODELS)}"
            )
        return LANGUAGE_MODELS[text.model_type](config, quant_config=quant_config, prefix=prefix)

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        return self.tower_cls(config, quant_config, add_prefix("visual", prefix))

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when pictures do not fit the tower or their places."""
        for item in mm_inputs.mm_items:
            if item.precomputed_embeddings is None:
                self.check(item)
        return super().pad_input_ids(input_ids, mm_inputs)

    def check(self, item: MultimodalDataItem) -> None:
        """Raises ValueError unless every picture has the tower's size and as many places as it has rows."""
        check_pixels(item, self.visual.vision_tower)
        check_places(item, [self.visual.num_rows for _ in item.feature])

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        pixels = joined_features(items, like=self.visual.vision_tower.weight)
        return self.visual(pixels).flatten(0, 1)


def check_pixels(item: MultimodalDataItem, tower: Any, num_dims: int = 4) -> None:
    """Raises ValueError unless an item holds pictures (with `num_dims=5`, lists of them) of the tower's size."""
    side = tower.image_size
    expected = [tower.embeddings.patch_embedding.in_channels, side, side]
    data = item.feature
    pieces = [part[None] for part in data] if isinstance(data, list) else [data]
    for piece in pieces:
        is_array = isinstance(piece, (torch.Tensor, np.ndarray))
        if not is_array or piece.ndim != num_dims or list(piece.shape[-3:]) != expected:
            shape = list(piece.shape) if is_array else type(piece).__name__
            raise ValueError(
                f"{item.modality.name.lower()} data must be pictures of shape {expected}, got {shape}"
            )


def check_places(item: MultimodalDataItem, rows: list[int]) -> None:
    """Raises ValueError unless the media of an item have that many places each in the prompt."""
    places = [last - first + 1 for first, last in item.offsets or []]
    if places != rows:
        raise ValueError(
            f"{item.modality.name.lower()} data of {rows} rows are given for {places} places in the prompt"
        )


EntryClass = LlavaForConditionalGeneration
