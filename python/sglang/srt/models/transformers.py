"""Any text generator of transformers whose attention is the standard kind, served without a model file of ours.

    hidden = transformers' own decoder, with softmax(q k^T * scale) v of every layer routed to RadixAttention
    logits = transformers' own head (scales, caps and biases included) on the rows that need them

Differs from Llama: everything but the attention product and the KV cache is transformers' code, on one rank, and
slower than a model file. What would silently be wrong (state-space layers, latent attention, rotary frequencies that
depend on the longest request of a batch) is refused when the model is built.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require, to_mapping
from sglang.srt.distributed import get_pp_group, get_tensor_model_parallel_world_size
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.weights import (
    ALWAYS_SKIPPED,
    WeightLoadError,
    WeightMap,
    WeightProblem,
    load_weights,
)
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

_ATTENTION_NAME = "sglang"
# Config keys of attention that is more than softmax over one K and V per layer.
_REFUSED_KEYS = (
    "kv_lora_rank",
    "state_size",
    "ssm_state_size",
    "mamba_d_state",
    "linear_attn_config",
    "num_kv_shared_layers",
    "attention_chunk_size",
    "alibi",
    "clip_qkv",
)
# Their frequencies depend on the longest sequence of a forward pass, so one request would change another's result.
_REFUSED_ROPE = ("dynamic", "longrope")

# The running forward pass: its batch and one attention per layer.
_current: ContextVar[tuple[ForwardBatch, Any]] = ContextVar("sglang_attention")


class TransformersForCausalLM(nn.Module):
    """The fallback. Raises ConfigError for a config whose attention it cannot represent."""

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        _check_supported(config, facts)
        if quant_config is not None:
            raise ConfigError(
                f"quantization {quant_config.get_name()!r} is not implemented for models that run on the transformers fallback"
            )
        self.config = copy.deepcopy(config)
        self.quant_config = quant_config
        self.dtype = torch.get_default_dtype()
        self.device = torch.get_default_device()
        self.is_loaded = False
        _register_attention()
        self._adopt(_construct(self.config, self.dtype))
        _check_layers(self.model, facts)
        self.attentions: Any = nn.ModuleList(
            RadixAttention(
                facts.num_attention_heads,
                facts.head_dim,
                facts.head_dim**-0.5,
                num_kv_heads=facts.num_key_value_heads,
                layer_id=layer_id,
                sliding_window_size=facts.window_of_layer(layer_id),
                quant_config=quant_config,
                prefix=add_prefix(f"attentions.{layer_id}", prefix),
            )
            for layer_id in range(facts.num_hidden_layers)
        )
        # The head applies caps and scales itself; the processor must not do it again.
        self.logits_processor = LogitsProcessor(SimpleNamespace(vocab_size=facts.vocab_size))
        self.start_layer, self.end_layer = 0, facts.num_hidden_layers

    def forward(
        self,
        input_ids: torch.Tensor,  # int64 [T]
        positions: torch.Tensor,  # int64 [T]
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,  # [T, D]
    ) -> LogitsProcessorOutput:
        tokens = (
            {"input_ids": input_ids[None]}
            if input_embeds is None
            else {"inputs_embeds": input_embeds[None]}
        )
        token = _current.set((forward_batch, self.attentions))
        try:
            states = self.model(**tokens, position_ids=positions[None], use_cache=False)
        finally:
            _current.reset(token)
        hidden_states = states[0][0]  # [T, D]
        return self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """The first time with the whole checkpoint, whose names and layouts transformers itself converts.

        Later calls replace single parameters by their transformers names. Raises WeightLoadError.
        """
        if self.is_loaded:
            load_weights(_ByHfName(self.hf_parameters()), weights, WeightMap())
            return
        skip = re.compile("|".join(ALWAYS_SKIPPED))
        state = {name: tensor for name, tensor in weights if not skip.search(name)}
        loaded, info = _load(type(self.lm_head.causal_lm), self.config, state, self.dtype)
        self._adopt(loaded.to(self.device))
        for param in self.parameters():
            mark_filled(param)  # the report below says more than an unmarked parameter would
        problems = _problems(info, read_facts(self.config))
        if problems:
            raise WeightLoadError(problems)
        self.is_loaded = True

    def hf_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by the names that transformers gives them."""
        inner = {
            f"{self.lm_head.base_prefix}.{name}": param
            for name, param in self.model.named_parameters(remove_duplicate=False)
        }
        head = dict(self.lm_head.causal_lm.named_parameters(remove_duplicate=False))
        return {**inner, **head}

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_attention_sliding_window_size(self) -> int | None:
        """Previous tokens that windowed layers see; None when every layer sees all of them."""
        sizes = [attention.sliding_window_size for attention in self.attentions]
        return max((size for size in sizes if size > 0), default=None)

    def _adopt(self, causal_lm: Any) -> None:
        """Take a transformers model apart: its decoder becomes `model`, the rest the head."""
        self.model: Any = getattr(causal_lm, causal_lm.base_model_prefix)
        self.lm_head: Any = _Head(causal_lm)


class _Head(nn.Module):
    """A transformers causal LM whose decoder answers with given hidden states: exactly its own head.

    To `LogitsProcessor` it is a head without a `weight`, whose method computes the logits.
    """

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.base_prefix = causal_lm.base_model_prefix
        self.given = _GivenStates()
        setattr(causal_lm, self.base_prefix, self.given)
        self.causal_lm = causal_lm
        self.quant_method = _HeadMethod()

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [n, D] -> [n, V]
        self.given.hidden_states = hidden_states[None]
        ids = torch.zeros(1, len(hidden_states), dtype=torch.long, device=hidden_states.device)
        logits = self.causal_lm(input_ids=ids, use_cache=False).logits[0]
        self.given.hidden_states = None
        return logits


class _HeadMethod:
    def apply(
        self, layer: _Head, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return layer.logits(x)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        return None


class _GivenStates(nn.Module):
    """Stands where the decoder was."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_states: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> _States:
        return _States(self.hidden_states)


class _States:
    """A decoder output with final hidden states and nothing else: every other field is None."""

    def __init__(self, last_hidden_state: torch.Tensor | None) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, key: int | slice) -> Any:
        return (self.last_hidden_state,)[key]


class _ByHfName(nn.Module):
    """Parameters under transformers' names, for the common weight placement."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self._by_name = parameters

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return iter(self._by_name.items())


def _attention_forward(
    module: Any,
    query: torch.Tensor,  # [1, H, T, d]
    key: torch.Tensor,  # [1, K, T, d]
    value: torch.Tensor,  # [1, K, T, d]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention: `[1, T, H, d]` from the cache and this step's keys and values."""
    forward_batch, attentions = _current.get()
    attention: Any = attentions[module.layer_idx]
    _check_call(module, attention, query, key, value, sliding_window)
    attention.scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    attention.logit_cap = softcap or 0.0
    extra = {} if s_aux is None else {"sinks": s_aux}
    q, k, v = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))  # [T, heads * d]
    output = attention(q, k, v, forward_batch, **extra)
    return output.view(1, -1, query.shape[1], attention.v_head_dim), None


def _check_call(
    module: nn.Module,
    attention: RadixAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sliding_window: int | None,
) -> None:
    """Refuse a layer that is not what the config said it would be: its cache would hold something else."""
    window = sliding_window - 1 if sliding_window else -1
    asked = (query.shape[1], key.shape[1], key.shape[-1], value.shape[-1], window)
    built = (
        attention.tp_q_head_num,
        attention.tp_k_head_num,
        attention.head_dim,
        attention.v_head_dim,
        attention.sliding_window_size,
    )
    if asked != built:
        raise ConfigError(
            f"layer {attention.layer_id} ({type(module).__name__}) attends with (heads, kv heads, head dim, "
            f"value dim, window) = {asked}, its config says {built}; the transformers fallback cannot serve it"
        )


def _register_attention() -> None:
    """Enter the two functions in transformers' tables. Masks are the attention backend's business."""
    transformers.AttentionInterface.register(_ATTENTION_NAME, _attention_forward)
    transformers.AttentionMaskInterface.register(_ATTENTION_NAME, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _construct(config: Any, dtype: torch.dtype) -> nn.Module:
    with no_init_weights():
        return transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=_ATTENTION_NAME, dtype=dtype
        )


def _load(
    model_class: Any, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    """A new model with `state` in it, and transformers' report of what did not fit."""
    transformers.utils.logging.disable_progress_bar()
    return model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        attn_implementation=_ATTENTION_NAME,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )


def _problems(info: dict[str, Any], facts: ModelFacts) -> list[WeightProblem]:
    unexpected = set(info["unexpected_keys"])
    if facts.tie_word_embeddings:
        unexpected.discard("lm_head.weight")
    problems = [
        WeightProblem(f"tensor {name} belongs to no parameter", name) for name in sorted(unexpected)
    ]
    problems += [
        WeightProblem(f"parameter {name} is filled by no tensor")
        for name in sorted(set(info["missing_keys"]) - {key for key, *_ in info["mismatched_keys"]})
    ]
    for name, on_disk, wanted in sorted(info["mismatched_keys"]):
        text = f"tensor {name} {list(on_disk)} does not fit parameter {name} {list(wanted)}"
        problems.append(WeightProblem(text, name))
    problems += [WeightProblem(str(message)) for message in info["error_msgs"]]
    return problems


def _check_supported(config: Any, facts: ModelFacts) -> None:
    name = f"The transformers fallback ({facts.model_type})"
    if get_tensor_model_parallel_world_size() > 1 or get_pp_group().world_size > 1:
        raise ConfigError(f"{name} runs on one rank; set --tp 1 and --pp 1")
    require(facts, name, layer_types=("full_attention", "sliding_attention"))
    raw = to_mapping(config)
    for key in _REFUSED_KEYS:
        if raw.get(key):
            raise ConfigError(
                f"{name} does not implement {key}={raw[key]!r}: such attention needs a model file of its own"
            )
    if raw.get("is_encoder_decoder"):
        raise ConfigError(f"{name} does not implement encoder-decoder models")
    ropes = [facts.rope, *facts.rope_per_layer_type.values()]
    for rope in ropes:
        if rope is not None and rope.kind in _REFUSED_ROPE:
            raise ConfigError(
                f"{name} does not implement rope_type={rope.kind!r}: its frequencies would depend on the "
                "other requests of a batch"
            )


def _check_layers(model: nn.Module, facts: ModelFacts) -> None:
    """Every layer must have exactly one attention that goes through the table."""
    ids: list[Any] = [
        module.layer_idx
        for module in model.modules()
        if "layer_idx" in vars(module) and "attention" in type(module).__name__.lower()
    ]
    if sorted(ids) != list(range(facts.num_hidden_layers)):
        raise ConfigError(
            f"the transformers fallback needs one attention in each of {facts.num_hidden_layers} layers; "
            f"{facts.model_type} has them in layers {sorted(ids)}"
        )


def maybe_prefix(prefix: str, name: str) -> str:
    """The dotted name of a child: `add_prefix` in the other argument order."""
    return add_prefix(name, prefix)


EntryClass = TransformersForCausalLM
