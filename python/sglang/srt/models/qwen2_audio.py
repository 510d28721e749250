"""Qwen2-Audio; transformers class `Qwen2AudioForConditionalGeneration` (arXiv 2407.10759).

    row = W layer_norm(mean of two steps of Whisper's encoder)
    then Qwen2 over rows and tokens

Differs from Whisper's encoder:
- a sound attends to its own frames only, not to the silence that fills the window;
- neighbouring steps are averaged, so that a row is 40 ms of sound.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.audio_tower import AudioTower, add_key_bias
from sglang.srt.models.common.vision_language import VisionLanguageModel, joined_features
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.qwen2 import Qwen2Model
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.utils import add_prefix

# Published names, those that transformers 5.17 writes (one `model.` too many), and those of its modules.
_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "language_model.model.": "model.",
        "language_model.model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
        "audio_tower.": "visual.audio_tower.",
        "multi_modal_projector.": "visual.multi_modal_projector.",
        "model.audio_tower.": "visual.audio_tower.",
        "model.multi_modal_projector.": "visual.multi_modal_projector.",
    },
    orig_to_new_substr={
        ".self_attn.out_proj.": ".self_attn.proj.",
        ".fc1.": ".mlp.fc1.",
        ".fc2.": ".mlp.fc2.",
    },
)


class Qwen2AudioEncoder(AudioTower):
    """Sounds to rows of the tower's width."""

    def pooled(self, features: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """[n, M, F] -> [N, E], every sound's rows behind those of the one before; an odd last step is left out."""
        sounds = self(features, lengths)
        pairs = [steps[: len(steps) // 2 * 2].unflatten(0, (-1, 2)) for steps in sounds]
        return self.layer_norm(torch.cat(pairs).mean(1))


class Qwen2AudioProjector(nn.Module):
    """One linear map to the language model's width."""

    def __init__(
        self, width: int, out_width: int, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        self.linear = ReplicatedLinear(
            width, out_width, quant_config=quant_config, prefix=add_prefix("linear", prefix)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.linear(x)
        return x


class Qwen2AudioTower(nn.Module):
    """Sounds to rows of the language model's width D."""

    def __init__(self, config: Any, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.audio_tower = Qwen2AudioEncoder(
            config.audio_config, quant_config, add_prefix("audio_tower", prefix)
        )
        self.multi_modal_projector = Qwen2AudioProjector(
            config.audio_config.d_model,
            read_facts(config).hidden_size,
            quant_config,
            add_prefix("multi_modal_projector", prefix),
        )

    def forward(self, features: torch.Tensor, lengths: list[int]) -> torch.Tensor:  # [N, D]
        return self.multi_modal_projector(self.audio_tower.pooled(features, lengths))


class Qwen2AudioForConditionalGeneration(VisionLanguageModel):
    """`visual` is the tower for sounds: models of this kind keep theirs under that name."""

    model_cls = Qwen2Model
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=_NAMES, convert=add_key_bias)

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        require(read_facts(config), type(self).__name__, model_type=("qwen2",))
        return Qwen2AudioTower(config, quant_config, add_prefix("visual", prefix))

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """Raises ValueError when sounds do not fit the tower or their places."""
        for item in mm_inputs.mm_items:
            if item.precomputed_embeddings is None:
                self._check(item)
        return super().pad_input_ids(input_ids, mm_inputs)

    def get_audio_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        features = joined_features(items, like=self.visual.audio_tower.conv1.weight)
        return self.visual(features, [frames for item in items for frames in _lengths(item)])

    def _check(self, item: MultimodalDataItem) -> None:
        """Raises ValueError unless every sound has the tower's window, and as many places as it has rows."""
        tower = self.visual.audio_tower
        window = [tower.num_mel_bins, 2 * tower.max_positions]
        lengths = _lengths(item)
        shape = list(item.feature.shape) if isinstance(item.feature, torch.Tensor) else None
        if shape != [len(lengths), *window] or not all(1 < n <= window[1] for n in lengths):
            raise ValueError(
                f"sounds of {lengths} frames must come in a tensor of shape {[len(lengths), *window]}, got {shape}"
            )
        rows = [(length + 1) // 2 // 2 for length in lengths]
        places = [last - first + 1 for first, last in item.offsets or []]
        if places != rows:
            raise ValueError(f"sounds of {rows} rows are given for {places} places in the prompt")


def _lengths(item: MultimodalDataItem) -> list[int]:
    """Frames of every sound of an item. Raises ValueError when nothing says them."""
    known = item.model_specific_data
    if "audio_feature_lens" in known:
        return torch.as_tensor(known["audio_feature_lens"]).flatten().tolist()
    if "feature_attention_mask" not in known:
        raise ValueError("sounds need audio_feature_lens or feature_attention_mask")
    return torch.as_tensor(known["feature_attention_mask"]).sum(-1).flatten().tolist()


EntryClass = Qwen2AudioForConditionalGeneration
