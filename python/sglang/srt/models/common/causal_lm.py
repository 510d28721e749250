"""What every decoder-only language model shares: embedding, the loop over layers, final norm, head, loading.

A model file supplies its decoder layer (`layer_cls`), its `model_cls` and its `weight_map`; machines (tensor and
pipeline parallelism), hidden-state capture and weight placement stay here.
Legend: T tokens in the batch, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts
from sglang.srt.distributed import get_pp_group
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.pooler import EmbeddingPoolerOutput, Pooler, PoolingType
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.utils import PPMissingLayer
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap, load_weights
from sglang.srt.utils import add_prefix, make_layers

Hidden = torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]


class DecoderModel(nn.Module):
    """Token ids to final hidden states.

    `layer_cls(config, layer_id=, quant_config=, prefix=)` makes a layer whose
    `forward(positions, hidden_states, forward_batch, residual)` returns `(hidden_states, residual)`.
    `decoder_layer_type`, of other files, replaces it; their `alt_stream` is not needed.
    """

    layer_cls: type[nn.Module]

    def __init__(
        self,
        config: Any,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        decoder_layer_type: Callable[..., nn.Module] | None = None,
        alt_stream: Any = None,
    ) -> None:
        super().__init__()
        make_layer = decoder_layer_type or self.layer_cls
        facts = read_facts(config)
        self.config = config
        self.vocab_size = facts.vocab_size
        self.pp_group = get_pp_group()
        holds_embedding = self.pp_group.is_first_rank or (
            facts.tie_word_embeddings and self.pp_group.is_last_rank
        )
        self.embed_tokens: Any = (
            VocabParallelEmbedding(
                self.num_embeddings(facts),
                facts.hidden_size,
                quant_config=quant_config,
                prefix=add_prefix("embed_tokens", prefix),
            )
            if holds_embedding
            else PPMissingLayer()
        )
        self.layers: Any
        self.layers, self.start_layer, self.end_layer = make_layers(
            facts.num_hidden_layers,
            lambda idx, prefix: make_layer(
                config=config, layer_id=idx, quant_config=quant_config, prefix=prefix
            ),
            pp_rank=self.pp_group.rank_in_group,
            pp_size=self.pp_group.world_size,
            prefix=add_prefix("layers", prefix),
        )
        self.norm = (
            self.make_norm(facts.hidden_size, facts.norm_eps)
            if self.pp_group.is_last_rank
            else PPMissingLayer(return_tuple=True)
        )
        self.layers_to_capture: list[int] = []

    def num_embeddings(self, facts: ModelFacts) -> int:
        """Rows of the embedding; a model with tokens behind its vocabulary overrides this."""
        return facts.vocab_size

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        """The final norm; a model with another kind overrides this."""
        return RMSNorm(hidden_size, eps=eps)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:  # [T] -> [T, D]
        """Embedding of the tokens; a model that scales it overrides this."""
        return self.embed_tokens(input_ids)

    def add_positions(self, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The first layer's input `[T, D]`; a model with learned absolute positions overrides this."""
        return hidden_states

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self,
        input_ids: torch.Tensor,  # int64 [T]
        positions: torch.Tensor,  # int64 [T]
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,  # [T, D]
        pp_proxy_tensors: PPProxyTensors | None = None,
    ) -> Hidden | PPProxyTensors:
        """Final hidden states `[T, D]`, with the captured ones when `layers_to_capture` is set."""
        if self.pp_group.is_first_rank or pp_proxy_tensors is None:
            hidden_states = self.embed(input_ids) if input_embeds is None else input_embeds
            hidden_states = self.add_positions(hidden_states, positions)
            residual: torch.Tensor | None = None
        else:
            hidden_states = pp_proxy_tensors["hidden_states"]
            residual = pp_proxy_tensors["residual"]
        captured = []
        for layer_id in range(self.start_layer, self.end_layer):
            if layer_id in self.layers_to_capture:
                captured.append(hidden_states if residual is None else hidden_states + residual)
            hidden_states, residual = self.layers[layer_id](
                positions, hidden_states, forward_batch, residual
            )
        if not self.pp_group.is_last_rank:
            assert residual is not None, "a pipeline stage without layers"
            return PPProxyTensors({"hidden_states": hidden_states, "residual": residual})
        hidden_states, _ = add_norm(self.norm, hidden_states, residual)
        return (hidden_states, captured) if captured else hidden_states


class CausalLM(nn.Module):
    """A decoder model with its language-model head: token ids to logits, or to a pooled embedding."""

    model_cls: type[nn.Module]
    weight_map: WeightMap = WeightMap(stacked=(*QKV, *GATE_UP))
    # Whether the head adds a bias (`lm_head.bias`).
    head_bias: bool = False
    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        self.config = config
        self.quant_config = quant_config
        self.pp_group = get_pp_group()
        self.is_tied = facts.tie_word_embeddings
        self.model: Any = self._init_model(config, quant_config, add_prefix("model", prefix))
        self.lm_head: Any = self._init_head(facts.vocab_size, facts.hidden_size, prefix)
        self.logits_processor = LogitsProcessor(
            self.text_config(config), logit_scale=self.logit_scale(config)
        )
        self.pooler = Pooler(pooling_type=PoolingType.LAST, normalize=True)
        self.stacked_params_mapping = list(self.weight_map.stacked)
        self.capture_aux_hidden_states = False

    def _init_model(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> nn.Module:
        """The inner model; subclasses with another one override this or set `model_cls`."""
        return self.model_cls(config, quant_config=quant_config, prefix=prefix)

    def _init_head(self, vocab_size: int, hidden_size: int, prefix: str) -> nn.Module:
        if not self.pp_group.is_last_rank:
            return PPMissingLayer()
        if self.is_tied:
            return self.model.embed_tokens
        return ParallelLMHead(
            vocab_size,
            hidden_size,
            bias=self.head_bias,
            quant_config=self.quant_config,
            prefix=add_prefix("lm_head", prefix),
        )

    def text_config(self, config: Any) -> Any:
        """The language model's part of the config; a model with other parts overrides this."""
        return config

    def logit_scale(self, config: Any) -> float | None:
        """Factor of the logits; None for one. A model that scales them overrides this."""
        return None

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        pp_proxy_tensors: PPProxyTensors | None = None,
        input_embeds: torch.Tensor | None = None,
        get_embedding: bool = False,
    ) -> LogitsProcessorOutput | EmbeddingPoolerOutput | PPProxyTensors:
        """Logits of the rows that need them; a pooled embedding per request with `get_embedding`."""
        hidden_states = self.model(
            input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors=pp_proxy_tensors
        )
        if not self.pp_group.is_last_rank:
            return hidden_states
        captured = None
        if isinstance(hidden_states, tuple):
            hidden_states, captured = hidden_states
        if get_embedding:
            return self.pooler(hidden_states, forward_batch)
        return self.logits_processor(
            input_ids, hidden_states, self.lm_head, forward_batch, captured
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Place checkpoint tensors. Raises WeightLoadError naming every tensor that does not fit."""
        return load_weights(
            self,
            self._without_tied_head(weights),
            self.weight_map,
            (self.start_layer, self.end_layer),
        )

    def _without_tied_head(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """A tied head is the embedding; some checkpoints store a copy of it."""
        if not self.is_tied:
            return weights
        return (pair for pair in weights if pair[0] != "lm_head.weight")

    # The inner model of somebody else's file need not know of pipeline stages: then it has every layer.
    @property
    def start_layer(self) -> int:
        return getattr(self.model, "start_layer", 0)

    @property
    def end_layer(self) -> int:
        all_layers = read_facts(self.config).num_hidden_layers
        return getattr(self.model, "end_layer", all_layers)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_attention_sliding_window_size(self) -> int | None:
        """Previous tokens that windowed layers see; None when every layer sees all of them."""
        sizes = [m.sliding_window_size for m in self.modules() if isinstance(m, RadixAttention)]
        return max((size for size in sizes if size is not None and size > 0), default=None)

    def get_embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.embed_tokens.weight, self.lm_head.weight

    def set_embed_and_head(self, embed: torch.Tensor, head: torch.Tensor) -> None:
        """Adopt another model's embedding and head (a draft model shares its target's)."""
        self.model.embed_tokens.weight = embed
        self.lm_head.weight = head

    def get_embed(self) -> torch.Tensor:
        return self.model.embed_tokens.weight

    def set_embed(self, embed: torch.Tensor) -> None:
        self.model.embed_tokens.weight = embed

    def set_eagle3_layers_to_capture(self, layer_ids: list[int] | None = None) -> None:
        """Return the output of these layers beside the final one: layer i's output is layer i + 1's input."""
        count = read_facts(self.config).num_hidden_layers
        self.capture_aux_hidden_states = True
        self.model.layers_to_capture = (
            [2, count // 2, count - 3] if layer_ids is None else [i + 1 for i in layer_ids]
        )
