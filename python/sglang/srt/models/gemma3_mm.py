"""Gemma 3 with images; transformers class `Gemma3ForConditionalGeneration` (arXiv 2503.19786).

    row = W^T norm(average of k x k patches of SigLIP);  then Gemma 3 over rows and scaled embeddings of tokens

Differs from Gemma 3:
- every image is scaled to one square, and is `mm_tokens_per_image` rows, which are not scaled as embeddings are;
- the rows of an image see each other in both directions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import Gemma3RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.pooler import EmbeddingPoolerOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.models.common.vision_language import VisionLanguageModel, joined_features
from sglang.srt.models.common.vit import make_vit
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.gemma3 import Gemma3TextModel
from sglang.srt.models.llava import LLAVA_NAMES, check_pixels, check_places
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.utils import add_prefix


class ScaledEmbedding(nn.Module):
    """The embedding of a Gemma model with its scale."""

    def __init__(self, table: Any, scale: float) -> None:
        super().__init__()
        self.table, self.scale = table, scale

    @property
    def num_embeddings(self) -> int:
        return self.table.num_embeddings

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids) * self.scale


class Gemma3ImageTextModel(Gemma3TextModel):
    """Attention is bidirectional within the spans that a batch names."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        for module in self.modules():
            if isinstance(module, RadixAttention):
                module.attn_type = AttentionType.DECODER_BIDIRECTIONAL

    def get_input_embeddings(self) -> nn.Module:
        return ScaledEmbedding(self.embed_tokens, self.embed_scale)


class Gemma3Projector(nn.Module):
    """Pools, norms and projects the patches of an image: [n, P, E] -> [n, rows, D]."""

    def __init__(self, config: Any, side: int) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.side = side
        self.pool = side // math.isqrt(config.mm_tokens_per_image)
        self.mm_input_projection_weight = nn.Parameter(
            torch.empty(width, read_facts(config).hidden_size)
        )
        self.mm_soft_emb_norm = Gemma3RMSNorm(width, eps=config.vision_config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = x.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        rows = F.avg_pool2d(grid, self.pool).flatten(2).transpose(1, 2)
        return self.mm_soft_emb_norm(rows.contiguous()) @ self.mm_input_projection_weight


class Gemma3Tower(nn.Module):
    """Images to rows of the language model's width D."""

    def __init__(self, config: Any, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.vision_tower = make_vit(
            config.vision_config, quant_config, add_prefix("vision_tower", prefix)
        )
        self.multi_modal_projector = Gemma3Projector(config, self.vision_tower.side)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:  # [n, C, S, S] -> [n, rows, D]
        return self.multi_modal_projector(self.vision_tower(pixel_values))


class Gemma3ForConditionalGeneration(VisionLanguageModel):
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=LLAVA_NAMES)

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
        return Gemma3ImageTextModel(self.text_config(config), quant_config, prefix)

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        return Gemma3Tower(config, quant_config, add_prefix("visual", prefix))

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when images do not fit the tower or their places. Images are not to be cut by chunks."""
        for item in mm_inputs.mm_items:
            if item.precomputed_embeddings is None:
                check_pixels(item, self.visual.vision_tower)
                check_places(item, [self.config.mm_tokens_per_image for _ in item.feature])
        mm_inputs.uncut_spans = spans_of(mm_inputs)
        return super().pad_input_ids(input_ids, mm_inputs)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        pp_proxy_tensors: PPProxyTensors | None = None,
        input_embeds: torch.Tensor | None = None,
        get_embedding: bool = False,
    ) -> LogitsProcessorOutput | EmbeddingPoolerOutput | PPProxyTensors:
        if forward_batch.mm_inputs is not None and forward_batch.contains_mm_inputs():
            forward_batch.bidirectional_spans = _spans_in_step(forward_batch)
        return super().forward(
            input_ids, positions, forward_batch, pp_proxy_tensors, input_embeds, get_embedding
        )

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        pixels = joined_features(items, like=self.visual.vision_tower.weight)
        return self.visual(pixels).flatten(0, 1)


def spans_of(mm_inputs: MultimodalInputs) -> list[tuple[int, int]]:
    """`[start, end)` of every image in the prompt, in order."""
    return sorted(
        (first, last + 1) for item in mm_inputs.mm_items for first, last in item.offsets or []
    )


def _spans_in_step(batch: ForwardBatch) -> list[list[tuple[int, int]]] | None:
    """Of every request the images that new tokens of this step lie in; None when there is none."""
    found = []
    for mm_inputs, start, count in zip(
        batch.mm_inputs or [],
        batch.extend_prefix_lens_cpu or [],
        batch.extend_seq_lens_cpu or [],
        strict=True,
    ):
        spans = [] if mm_inputs is None else spans_of(mm_inputs)
        found.append([span for span in spans if span[0] < start + count and span[1] > start])
    return found if any(found) else None


EntryClass = Gemma3ForConditionalGeneration
