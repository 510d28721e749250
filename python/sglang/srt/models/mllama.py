"""Llama 3.2 Vision; transformers class `MllamaForConditionalGeneration` (arXiv 2407.21783, section 7).

Llama 3, and between its layers some that attend to pictures:
    h = h + tanh(a) attention(q = norm(Wq rms_norm(h)), k = norm(Wk y), v = Wv y),  y: rows of the pictures
    h = h + tanh(m) down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from models whose pictures stand among the tokens:
- a picture is one token; its keys take KV slots of their own, which stand in front of those of the tokens in a row;
- a token sees the last pictures before it (several, where they stand side by side), and no others;
- for a token in front of the first picture, and in requests without any, these layers do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.pooler import EmbeddingPoolerOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.cross_attention import ENCODER_STATES, CrossAttention
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.tiled_vit import TiledViT
from sglang.srt.models.common.vision_language import VisionLanguageModel, joined_features
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaMLP
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.multimodal.embedding_cache import cache_of
from sglang.srt.multimodal.encoder_states import media_in_order, new_encoder_states
from sglang.srt.multimodal.inputs import PAD_VALUE_START, MultimodalDataItem, MultimodalInputs
from sglang.srt.utils import add_prefix
from sglang.srt.utils.upload import upload

# Tokens that stand for media have rows of the embedding behind the vocabulary, and no logits.
_EXTRA_EMBEDDINGS = 8
_KV = (
    (".cross_attn.kv_proj", ".cross_attn.k_proj", 0),
    (".cross_attn.kv_proj", ".cross_attn.v_proj", 1),
)
_PARTS = ("vision_model.", "multi_modal_projector.")
# Published names, and those of checkpoints that transformers 4.52 and later wrote.
_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
        **{part: f"visual.{part}" for part in _PARTS},
        **{f"model.{part}": f"visual.{part}" for part in _PARTS},
    }
)


class MllamaCrossAttentionDecoderLayer(nn.Module):
    """Attention to pictures and an MLP, both scaled by a learned gate."""

    def __init__(
        self, config: Any, layer_id: int = 0, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(facts, type(self).__name__, hidden_act=("silu",))
        self.cross_attn = CrossAttention(
            facts, layer_id, quant_config, add_prefix("cross_attn", prefix)
        )
        self.mlp = LlamaMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.cross_attn_attn_gate = nn.Parameter(torch.empty(1))
        self.cross_attn_mlp_gate = nn.Parameter(torch.empty(1))

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        visible = forward_batch.encoder_visible
        if visible is None:  # no request of the step has pictures
            return hidden_states, residual
        sees = visible[:, None].to(hidden_states.dtype)
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.cross_attn(x, forward_batch) * (self.cross_attn_attn_gate.tanh() * sees)
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.mlp(x) * (self.cross_attn_mlp_gate.tanh() * sees), residual


class MllamaTextModel(DecoderModel):
    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(config, quant_config, prefix, decoder_layer_type=_make_layer)

    def num_embeddings(self, facts: ModelFacts) -> int:
        return facts.vocab_size + _EXTRA_EMBEDDINGS


class MllamaTower(nn.Module):
    """Pictures to rows of the language model's width D."""

    def __init__(self, config: Any, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        vision = config.vision_config
        self.vision_model = TiledViT(vision, quant_config, add_prefix("vision_model", prefix))
        self.multi_modal_projector = ReplicatedLinear(
            vision.vision_output_dim,
            read_facts(config).hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("multi_modal_projector", prefix),
        )

    def num_rows(self, ratio_id: int) -> int:
        """Rows of a picture of that shape."""
        return self.vision_model.tiles_of_ratio[ratio_id] * self.vision_model.rows_per_tile

    def forward(self, pixel_values: torch.Tensor, ratio_ids: list[int]) -> torch.Tensor:
        """[n, t, C, S, S], n ids -> [N, D], without the tiles that pad a picture. One picture at a time: each is long."""
        rows = []
        for pixels, ratio_id in zip(pixel_values, ratio_ids, strict=True):
            x = self.vision_model(pixels[None], upload([ratio_id], torch.int64, pixels.device))
            projected, _ = self.multi_modal_projector(x[0].flatten(0, 1)[: self.num_rows(ratio_id)])
            rows.append(projected)
        return torch.cat(rows)


def _of_tower(name: str, tensor: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
    """What attention of the tower calls its last projection."""
    if name.startswith("visual."):
        name = name.replace(".self_attn.o_proj.", ".self_attn.proj.")
    return [(name, tensor)]


class MllamaForConditionalGeneration(VisionLanguageModel):
    weight_map = WeightMap(stacked=(*QKV, *_KV, *GATE_UP), rename=_NAMES, convert=_of_tower)
    packed_modules_mapping = {
        **CausalLM.packed_modules_mapping,
        "kv_proj": ["k_proj", "v_proj"],
    }

    def _init_model(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> nn.Module:
        return MllamaTextModel(self.text_config(config), quant_config, prefix)

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        return MllamaTower(config, quant_config, add_prefix("visual", prefix))

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when pictures do not fit the tower or their places. Says which tokens see which pictures."""
        for item in mm_inputs.mm_items:
            self._check(item)
        pictures = media_in_order(mm_inputs)
        places = [(item.offsets or [(0, 0)])[0][0] for item in pictures]
        rows = [self.count_rows(item) for item in pictures]
        mm_inputs.num_encoder_tokens = sum(rows)
        mm_inputs.encoder_views = views_of(places, rows)
        return super().pad_input_ids(input_ids, mm_inputs)

    def _check(self, item: MultimodalDataItem) -> None:
        tower = self.visual.vision_model
        side = tower.image_size
        expected = [tower.max_num_tiles, tower.num_channels, side, side]
        pixels = item.feature
        is_array = isinstance(pixels, (torch.Tensor, np.ndarray))
        if not item.is_image() or not is_array or list(pixels.shape[1:]) != expected:
            shape = list(pixels.shape) if is_array else type(pixels).__name__
            raise ValueError(
                f"{item.modality.name.lower()} data must be pictures of shape {expected} (tiles, channels, height, width), got {shape}"
            )
        ids = ratio_ids_of(item)
        if len(ids) != len(pixels) or any(not 0 < i < len(tower.tiles_of_ratio) for i in ids):
            raise ValueError(
                f"aspect_ratio_ids must be {len(pixels)} numbers from 1 to {len(tower.tiles_of_ratio) - 1}, got {ids[:8]}"
            )
        if [last - first for first, last in item.offsets or []] != [0] * len(ids):
            raise ValueError(f"{len(ids)} pictures are given for the places {item.offsets}")

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        pp_proxy_tensors: PPProxyTensors | None = None,
        input_embeds: torch.Tensor | None = None,
        get_embedding: bool = False,
    ) -> LogitsProcessorOutput | EmbeddingPoolerOutput | PPProxyTensors:
        states = None
        if forward_batch.encoder_lens_cpu is not None:
            states = new_encoder_states(forward_batch, self, cache_of(self))
        forward_batch.model_specific_states = {ENCODER_STATES: states}
        if forward_batch.mm_inputs is not None:
            # A picture is embedded as its token is, whatever it shows.
            is_picture = input_ids >= PAD_VALUE_START
            input_ids = input_ids.masked_fill(is_picture, self.config.image_token_index)
        return CausalLM.forward(
            self,
            input_ids,
            positions,
            forward_batch,
            pp_proxy_tensors,
            input_embeds,
            get_embedding,
        )

    def count_rows(self, item: MultimodalDataItem) -> int:
        """Encoder tokens of the pictures of an item."""
        return sum(self.visual.num_rows(ratio_id) for ratio_id in ratio_ids_of(item))

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        ids = [ratio_id for item in items for ratio_id in ratio_ids_of(item)]
        return self.visual(joined_features(items, like=self.visual.vision_model.weight), ids)


def ratio_ids_of(item: MultimodalDataItem) -> list[int]:
    """The shape of each picture. Raises ValueError without any."""
    ids = item.model_specific_data.get("aspect_ratio_ids")
    if ids is None:
        raise ValueError("pictures of Llama 3.2 Vision need aspect_ratio_ids; give raw pictures")
    return [int(i) for i in torch.as_tensor(ids).flatten().tolist()]


def views_of(places: list[int], rows: list[int]) -> list[tuple[int, int, int]]:
    """`RowMedia.encoder_views` of pictures at these ascending places of a prompt: pictures side by side are seen together."""
    views: list[tuple[int, int, int]] = []
    first = end = 0
    for index, (place, count) in enumerate(zip(places, rows, strict=True)):
        if index == 0 or place != places[index - 1] + 1:
            first = end
        end += count
        views.append((place, first, end))
    return views


def _make_layer(
    config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
) -> nn.Module:
    is_cross = layer_id in config.cross_attention_layers
    layer = MllamaCrossAttentionDecoderLayer if is_cross else LlamaDecoderLayer
    return layer(config, layer_id=layer_id, quant_config=quant_config, prefix=prefix)


EntryClass = MllamaForConditionalGeneration
