"""The one place that knows how a `config.json` spells things.

`read_facts` turns a Hugging Face config (published spelling: rope_theta, rope_scaling, torch_dtype; or
transformers-5 spelling: rope_parameters, dtype) into typed, frozen facts. Model files read facts, never the
raw config with defaults of their own. Keys that change the mathematics in a way nobody implements are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.configs.mla import MLAFacts, read_mla
from sglang.srt.configs.published import usual_keys
from sglang.srt.utils.errors import ConfigError

ROPE_KINDS = (
    "default",
    "linear",
    "dynamic",
    "llama3",
    "yarn",
    "deepseek_yarn",
    "longrope",
)
# Older names of the same mathematics.
_ROPE_ALIASES = {"su": "longrope", "mrope": "default"}
# Layer kinds that attend with softmax over keys and values; anything else needs a state of its own.
ATTENTION_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# GPT-2 era spelling -> ours.
_KEY_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_seq_len": "max_position_embeddings",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "max_sequence_length": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "multi_query_group_num": "num_key_value_heads",
    "activation_function": "hidden_act",
    "hidden_activation": "hidden_act",
}
_NORM_EPS_KEYS = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "norm_epsilon",
)
# model_type -> every so many layers one is full, where config.json leaves it out.
_WINDOW_PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "exaone4": 4, "olmo3": 4}
# Where multimodal configs keep their language model.
_TEXT_CONFIG_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True)
class RopeFacts:
    """Rotary embedding: the kind, the base frequency and the kind's own parameters."""

    kind: str
    theta: float
    partial_rotary_factor: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scaling(self) -> dict[str, Any] | None:
        """The mapping that `get_rope(rope_scaling=...)` takes; None for the plain kind."""
        if self.kind == "default" and not self.params:
            return None
        return {"rope_type": self.kind, **self.params}


@dataclass(frozen=True)
class ModelFacts:
    """What the language model of a checkpoint is made of. Sizes are totals, not per rank."""

    model_type: str
    architectures: tuple[str, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    intermediate_size: int | None
    hidden_act: str
    norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope: RopeFacts | None  # None: no rotary settings, or a different set per layer type
    rope_per_layer_type: Mapping[str, RopeFacts]
    layer_types: tuple[str, ...]  # one per layer
    sliding_window: int | None  # HF meaning: tokens visible, the token itself included
    attention_chunk_size: int | None  # tokens; layers of type chunked_attention see their own chunk
    attention_bias: bool
    mlp_bias: bool
    qkv_bias: bool | None  # None: the config does not say
    dtype: str | None  # as stored: "bfloat16", "float16", "float32" or None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: Mapping[str, Any] | None
    mla: MLAFacts | None = None  # None: keys and values of every head are cached

    def window_of_layer(self, layer_id: int) -> int:
        """Previous tokens a layer sees besides the token itself (`RadixAttention`'s meaning); -1 is all."""
        if self.layer_types[layer_id] != "sliding_attention" or self.sliding_window is None:
            return -1
        return self.sliding_window - 1

    def rope_of_layer(self, layer_id: int) -> RopeFacts | None:
        """A layer's rotary settings: those of its type where types differ, else the model's."""
        return self.rope_per_layer_type.get(self.layer_types[layer_id], self.rope)

    @property
    def derived_context_len(self) -> int:
        """Tokens the position encoding was made for, rope scaling included."""
        longest = self.max_position_embeddings
        if self.rope is None:
            return longest
        factor = self.rope.params.get("factor")
        original = self.rope.params.get("original_max_position_embeddings")
        if self.rope.kind in ("linear", "dynamic") and factor and not original:
            return int(longest * float(factor))
        if self.rope.kind in ("yarn", "deepseek_yarn") and factor and original:
            return max(longest, int(original * float(factor)))
        return longest


def read_facts(config: Any) -> ModelFacts:
    """Facts of the language model in `config` (a mapping, or an object with `to_dict()`).

    Raises ConfigError naming the key when a size is missing, the rope kind is unknown, or a layer list has
    the wrong length.
    """
    outer = to_mapping(config)
    if outer is config:  # as written; a config object has the usual keys
        outer = usual_keys(outer)
    raw = _text_mapping(outer)
    for key in _REQUIRED:
        if raw.get(key) is None:
            raise ConfigError(
                f"the model's config.json has no {key!r} (model_type {outer.get('model_type')!r}); "
                "the checkpoint is incomplete or of a kind that is not supported"
            )
    heads = int(raw["num_attention_heads"])
    layers = int(raw["num_hidden_layers"])
    rope, rope_per_type = _read_rope(raw)
    window = _read_window(raw)
    return ModelFacts(
        model_type=str(raw.get("model_type") or outer.get("model_type") or ""),
        architectures=tuple(outer.get("architectures") or ()),
        hidden_size=int(raw["hidden_size"]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=int(
            raw.get("num_key_value_heads") or (1 if raw.get("multi_query") else heads)
        ),
        head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
        vocab_size=int(raw["vocab_size"]),
        intermediate_size=_optional_int(raw.get("intermediate_size")),
        hidden_act=str(raw.get("hidden_act") or "silu"),
        norm_eps=_first_float(raw, _NORM_EPS_KEYS, 1e-6),
        tie_word_embeddings=bool(outer.get("tie_word_embeddings", raw.get("tie_word_embeddings"))),
        max_position_embeddings=int(raw.get("max_position_embeddings") or 2048),
        rope=rope,
        rope_per_layer_type=rope_per_type,
        layer_types=_read_layer_types(raw, layers, window),
        sliding_window=window,
        attention_chunk_size=_optional_int(raw.get("attention_chunk_size")),
        attention_bias=bool(raw.get("attention_bias") or raw.get("bias")),
        mlp_bias=bool(raw.get("mlp_bias") or raw.get("bias")),
        qkv_bias=_optional_bool(raw.get("qkv_bias", raw.get("use_qkv_bias"))),
        dtype=_dtype_name(raw) or _dtype_name(outer),
        bos_token_id=_optional_int(_first_of(raw.get("bos_token_id"))),
        eos_token_ids=_id_tuple(raw.get("eos_token_id", outer.get("eos_token_id"))),
        quantization=outer.get("quantization_config") or raw.get("quantization_config"),
        mla=read_mla(raw),
    )


def require(facts: ModelFacts, model: str, **allowed: tuple[Any, ...]) -> None:
    """Refuse a config whose fact is not among the allowed values, e.g. `hidden_act=("silu",)`.

    A tuple-valued fact (`layer_types`) is checked element by element. Raises ConfigError.
    """
    for name, values in allowed.items():
        value = getattr(facts, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in values:
                raise ConfigError(
                    f"{model} does not implement {name}={one!r}; implemented: {list(values)}. "
                    "Try --model-impl transformers"
                )


def require_keys(config: Any, model: str, **allowed: tuple[Any, ...]) -> None:
    """Refuse a config with a value under a key that is not among the allowed ones, e.g. `scoring_func=("sigmoid",)`.

    For keys of one family that are no facts. An absent key and None pass; a list is checked element by element. Raises ConfigError.
    """
    raw = to_mapping(config)
    for name, values in allowed.items():
        value = raw.get(name)
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if one is not None and one not in values:
                raise ConfigError(
                    f"{model} does not implement {name}={one!r}; implemented: {list(values)}. "
                    "Try --model-impl transformers"
                )


def to_mapping(config: Any) -> Mapping[str, Any]:
    """The config as a plain mapping."""
    return config if isinstance(config, Mapping) else config.to_dict()


def _text_mapping(outer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part, with old key names translated."""
    raw = dict(outer)
    for key in _TEXT_CONFIG_KEYS:
        inner = outer.get(key)
        if inner:
            return _text_mapping(usual_keys(to_mapping(inner)))
    for old, new in _KEY_ALIASES.items():
        if raw.get(new) is None and raw.get(old) is not None:
            raw[new] = raw[old]
    return raw


def _read_rope(raw: Mapping[str, Any]) -> tuple[RopeFacts | None, dict[str, RopeFacts]]:
    """One set of rotary facts, or one per layer type (`rope_parameters` nested by layer type)."""
    settings = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if raw.get("rope_local_base_freq") is not None:
        # Windowed layers have a base of their own; the scaling is of the full ones.
        return None, {
            "sliding_attention": RopeFacts("default", float(raw["rope_local_base_freq"])),
            "full_attention": _rope_facts(raw, settings),
        }
    nested = {k: v for k, v in settings.items() if isinstance(v, Mapping)}
    if nested:
        return None, {name: _rope_facts(raw, value) for name, value in nested.items()}
    if not settings and raw.get("rope_theta") is None:
        return None, {}
    return _rope_facts(raw, settings), {}


def _rope_facts(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> RopeFacts:
    params = dict(settings)
    type_key = "rope_type" if params.get("rope_type") else "type"
    named = params.get(type_key) or "default"
    params = {k: v for k, v in params.items() if k not in ("rope_type", "type") and v is not None}
    kind = _ROPE_ALIASES.get(named, named)
    if kind not in ROPE_KINDS:
        raise ConfigError(
            f"config.json sets {type_key}={named!r}, which is not a known rotary embedding; "
            f"known: {', '.join(ROPE_KINDS)}"
        )
    theta = params.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
    partial = params.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor")
    partial = partial or raw.get("rotary_pct") or raw.get("rope_pct") or 1.0
    if kind == "longrope" or (kind == "yarn" and raw.get("original_max_position_embeddings")):
        original = raw.get("original_max_position_embeddings") or raw.get("max_position_embeddings")
        params.setdefault("original_max_position_embeddings", original)
    if kind in ("yarn", "llama3"):
        params.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    return RopeFacts(kind, float(theta), float(partial), params)


def _read_window(raw: Mapping[str, Any]) -> int | None:
    window = raw.get("sliding_window")
    if not window or raw.get("use_sliding_window") is False:
        return None
    return int(window)


def _read_layer_types(
    raw: Mapping[str, Any], num_layers: int, window: int | None
) -> tuple[str, ...]:
    """The kind of every layer; without a list: every n-th full where windows alternate, else full below
    `max_window_layers` and sliding from there on."""
    listed = raw.get("layer_types")
    if listed:
        if len(listed) != num_layers:
            raise ConfigError(
                f"config.json lists {len(listed)} layer_types for num_hidden_layers={num_layers}"
            )
        return tuple(listed)
    if window is None:
        return ("full_attention",) * num_layers
    period = _window_period(raw)
    if period is not None:
        return tuple(
            "sliding_attention" if (layer + 1) % period else "full_attention"
            for layer in range(num_layers)
        )
    first = int(raw.get("max_window_layers") or 0) if raw.get("use_sliding_window") else 0
    return tuple(
        "sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)
    )


def _window_period(raw: Mapping[str, Any]) -> int | None:
    """Every so many layers one is full: as the config says (a number, or letters as in "LLLG"), else as the
    family's first configs, which do not say, are read."""
    pattern = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern")
    if pattern is None:
        return _WINDOW_PERIODS.get(str(raw.get("model_type")))
    return len(pattern) if isinstance(pattern, str) else int(pattern)


def _dtype_name(raw: Mapping[str, Any]) -> str | None:
    value = raw.get("dtype") or raw.get("torch_dtype")
    return None if value is None else str(value).removeprefix("torch.")


def _id_tuple(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)


def _first_of(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _first_float(raw: Mapping[str, Any], keys: tuple[str, ...], default: float) -> float:
    for key in keys:
        if raw.get(key) is not None:
            return float(raw[key])
    return default


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _optional_bool(value: Any) -> bool | None:
    return None if value is None else bool(value)
