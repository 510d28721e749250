"""InternVL 2.5, 3 and 3.5; transformers class `InternVLForConditionalGeneration`, published as code as `InternVLChatModel`
(arXiv 2412.05271).

    row = W2 gelu(W1 layer_norm(the 2 x 2 patches of a block, side by side))
    then Qwen2, Qwen3, Llama or InternLM2 over rows and tokens

Differs from LLaVA:
- a picture is cut into tiles of one size, with a small one of the whole behind them; every tile has as many rows;
- the tower is InternViT; its row for the whole tile is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require, require_keys
from sglang.srt.layers.activation import get_act_fn
from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.internvit import InternViT, InternViTShape
from sglang.srt.models.common.vision_language import VisionLanguageModel, joined_features
from sglang.srt.models.common.weights import GATE_UP, QKV, NamedTensor, WeightMap, unfuse_groups
from sglang.srt.models.internlm2 import INTERNLM2_NAMES, InternLM2Model
from sglang.srt.models.llama import LlamaModel
from sglang.srt.models.qwen2 import Qwen2Model
from sglang.srt.models.qwen3 import Qwen3Model
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.utils import add_prefix

LANGUAGE_MODELS: dict[str, type[nn.Module]] = {
    "internlm2": InternLM2Model,
    "llama": LlamaModel,
    "qwen2": Qwen2Model,
    "qwen3": Qwen3Model,
}
# What transformers publishes, and the names of its modules.
_PARTS = {
    "vision_tower.": "visual.vision_model.",
    "multi_modal_projector.layer_norm.": "visual.mlp1.0.",
    "multi_modal_projector.linear_1.": "visual.mlp1.1.",
    "multi_modal_projector.linear_2.": "visual.mlp1.3.",
}
_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
        **_PARTS,
        **{f"model.{theirs}": ours for theirs, ours in _PARTS.items()},
    },
    orig_to_new_substr={".attention.projection_layer.": ".attention.proj."},
)
# What the authors publish: in the tower, replaced in this order.
_CHAT_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "language_model.": "",
        "vision_model.": "visual.vision_model.",
        "mlp1.": "visual.mlp1.",
    }
)
_CHAT_TOWER = (
    (".encoder.layers.", ".encoder.layer."),
    (".attn.qkv.", ".attention.qkv_proj."),
    (".attn.", ".attention."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    (".class_embedding", ".cls_token"),
    (".patch_embedding.", ".patch_embeddings.projection."),
    (".position_embedding", ".position_embeddings"),
)


class InternVLTower(nn.Module):
    """Tiles to rows of the language model's width D. `block`: patches along a side of what becomes one row."""

    def __init__(
        self,
        shape: InternViTShape,
        block: int,
        out_width: int,
        hidden_act: str,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.block = block
        self.vision_model = InternViT(shape, quant_config, add_prefix("vision_model", prefix))
        width = shape.width * block**2
        first = ColumnParallelLinear(
            width, out_width, quant_config=quant_config, prefix=add_prefix("mlp1.1", prefix)
        )
        second = RowParallelLinear(
            out_width, out_width, quant_config=quant_config, prefix=add_prefix("mlp1.3", prefix)
        )
        self.mlp1 = nn.ModuleList([nn.LayerNorm(width), first, get_act_fn(hidden_act), second])

    @property
    def rows_per_tile(self) -> int:
        return (self.vision_model.shape.side // self.block) ** 2

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """[n, C, S, S] -> [n * rows_per_tile, D]."""
        x = self.vision_model(tiles)[:, 1:]
        side = self.vision_model.shape.side
        blocks = x.reshape(
            -1, side // self.block, self.block, side // self.block, self.block, x.shape[-1]
        )
        x = blocks.transpose(2, 3).flatten(3).flatten(0, 2)
        norm, first, act, second = self.mlp1
        x, _ = first(norm(x))
        x, _ = second(act(x))
        return x


class InternVLForConditionalGeneration(VisionLanguageModel):
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=_NAMES)

    def _init_model(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> nn.Module:
        facts = read_facts(config)
        require(facts, type(self).__name__, model_type=tuple(LANGUAGE_MODELS))
        model_cls = LANGUAGE_MODELS[facts.model_type]
        return model_cls(config, quant_config=quant_config, prefix=prefix)

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        require_keys(
            config,
            type(self).__name__,
            vision_feature_layer=(-1,),
            vision_feature_select_strategy=("default",),
            select_layer=(-1,),
            ps_version=("v2",),
        )
        return InternVLTower(
            InternViTShape.of(config.vision_config),
            round(1 / config.downsample_ratio),
            read_facts(config).hidden_size,
            self.projector_act(config),
            quant_config,
            add_prefix("visual", prefix),
        )

    def projector_act(self, config: Any) -> str:
        return config.projector_hidden_act

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when tiles do not fit the tower or their places."""
        for item in mm_inputs.mm_items:
            if item.precomputed_embeddings is None:
                self._check(item)
        return super().pad_input_ids(input_ids, mm_inputs)

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        return self.visual(joined_features(items, like=self.visual.vision_model.weight))

    def _check(self, item: MultimodalDataItem) -> None:
        """Raises ValueError unless tiles have the tower's size, and pictures as many places as their tiles have rows."""
        shape = self.visual.vision_model.shape
        if "num_patches" not in item.model_specific_data:
            raise ValueError("pictures need num_patches, the number of tiles of each")
        tiles = torch.as_tensor(item.num_patches).flatten().tolist()
        expected = [sum(tiles), shape.num_channels, shape.image_size, shape.image_size]
        found = list(item.feature.shape) if isinstance(item.feature, torch.Tensor) else None
        if found != expected or any(count < 1 for count in tiles):
            raise ValueError(
                f"pictures of {tiles} tiles must come in a tensor of shape {expected}, got {found}"
            )
        rows = [count * self.visual.rows_per_tile for count in tiles]
        places = [last - first + 1 for first, last in item.offsets or []]
        if places != rows:
            raise ValueError(f"pictures of {rows} rows are given for {places} places in the prompt")


class InternVLChatModel(InternVLForConditionalGeneration):
    """The same under the names, and with the config, of the authors' own code."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        facts = read_facts(config)
        heads = facts.num_key_value_heads, facts.num_attention_heads
        is_internlm2 = facts.model_type == "internlm2"
        self.weight_map = dataclasses.replace(
            self.weight_map,
            rename=_CHAT_NAMES,
            convert=partial(_from_chat, heads if is_internlm2 else None),
        )

    def projector_act(self, config: Any) -> str:
        return "gelu"


def _from_chat(
    heads: tuple[int, int] | None, name: str, tensor: torch.Tensor
) -> Iterator[NamedTensor]:
    """A `convert` for the authors' checkpoints. `heads`: kv heads and query heads, for InternLM2 inside."""
    if name.startswith("visual."):
        for theirs, ours in _CHAT_TOWER:
            name = name.replace(theirs, ours)
        yield name, tensor
    elif heads is None:
        yield name, tensor
    else:
        for new_name, value in INTERNLM2_NAMES.apply([(name, tensor)]):
            yield from unfuse_groups(*heads, new_name, value)


EntryClass = [InternVLForConditionalGeneration, InternVLChatModel]
