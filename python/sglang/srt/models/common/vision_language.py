"""A language model with a tower whose rows take the place of media tokens: what such models share.

The model file supplies the tower (`visual`) and what makes rows of items; embedding, positions, head and loading are here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.distributed import each_rank_alone, get_tensor_model_parallel_world_size
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.pooler import EmbeddingPoolerOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.weights import load_weights
from sglang.srt.multimodal.embedding import general_mm_embed_routine
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.padding import MultiModalityDataPaddingPatternMultimodalTokens
from sglang.srt.server_args import get_global_server_args


class VisionLanguageModel(CausalLM):
    """`CausalLM` over rows of media and embeddings of tokens. `config` is the outer one, `config.text_config` the language model's."""

    visual: Any

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        rope = read_facts(config).rope
        self.is_mrope_enabled = rope is not None and "mrope_section" in rope.params
        self.deals_media = _deals_media()
        with each_rank_alone() if self.deals_media else contextlib.nullcontext():
            self.visual = self.make_tower(config, quant_config, prefix)

    def text_config(self, config: Any) -> Any:
        return config.get_text_config()

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> torch.nn.Module:
        """The tower; the model file says which."""
        raise NotImplementedError

    def pad_input_ids(self, input_ids: list[int], mm_inputs: MultimodalInputs) -> list[int]:
        """The prompt with pad values where media tokens are."""
        return MultiModalityDataPaddingPatternMultimodalTokens().pad_input_tokens(
            input_ids, mm_inputs
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        pp_proxy_tensors: PPProxyTensors | None = None,
        input_embeds: torch.Tensor | None = None,
        get_embedding: bool = False,
    ) -> LogitsProcessorOutput | EmbeddingPoolerOutput | PPProxyTensors:
        if self.is_mrope_enabled and forward_batch.mrope_positions is not None:
            positions = forward_batch.mrope_positions
        if input_embeds is None:
            hidden = general_mm_embed_routine(
                input_ids=input_ids,
                forward_batch=forward_batch,
                language_model=self.model,
                multimodal_model=self,
                positions=positions,
                pp_proxy_tensors=pp_proxy_tensors,
            )
        else:
            hidden = self.model(
                input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors=pp_proxy_tensors
            )
        if not self.pp_group.is_last_rank:
            return hidden
        hidden, captured = hidden if isinstance(hidden, tuple) else (hidden, None)
        if get_embedding:
            return self.pooler(hidden, forward_batch)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch, captured)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As `CausalLM`, on one pipeline stage: a tower has layers of its own numbers."""
        weights = self._without_tied_head(weights)
        return load_weights(self, weights, self.weight_map)


def _deals_media() -> bool:
    """Whether the ranks hold whole towers and share the media among them (`--mm-enable-dp-encoder`)."""
    several = get_tensor_model_parallel_world_size() > 1
    return several and get_global_server_args().mm_enable_dp_encoder


def joined_features(items: list[MultimodalDataItem], like: torch.Tensor) -> torch.Tensor:
    """The features of all items in one tensor, with the device and dtype of `like`."""
    pieces = [torch.as_tensor(item.feature) for item in items]
    return torch.cat([piece.to(like.device, like.dtype) for piece in pieces])


def joined_grids(items: list[MultimodalDataItem], key: str) -> list[list[int]]:
    """`(t, h, w)` of every picture or video of all items."""
    grids: list[list[int]] = []
    for item in items:
        grids += torch.as_tensor(item.model_specific_data[key]).reshape(-1, 3).tolist()
    return grids
