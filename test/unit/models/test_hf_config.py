"""`read_facts`: both spellings of a config give the same facts, and what nobody implements is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import apply_overrides

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}


def test_defaults_follow_the_sizes() -> None:
    facts = read_facts(LLAMA)
    assert (facts.num_key_value_heads, facts.head_dim) == (4, 16)
    assert facts.layer_types == ("full_attention",) * 4
    assert facts.window_of_layer(0) == -1
    assert not facts.tie_word_embeddings and facts.rope is None


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", **YARN}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **YARN}},
    ],
)
def test_rope_spellings_agree(spelling: dict[str, Any]) -> None:
    rope = read_facts({**LLAMA, **spelling}).rope
    assert rope is not None
    assert (rope.kind, rope.theta, dict(rope.params)) == ("yarn", 5e5, YARN)
    assert rope.scaling == {"rope_type": "yarn", **YARN}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_spellings_agree(key: str) -> None:
    assert read_facts({**LLAMA, key: "bfloat16"}).dtype == "bfloat16"


def test_rope_per_layer_type_has_no_single_rope() -> None:
    nested = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    facts = read_facts({**LLAMA, "rope_parameters": nested})
    assert facts.rope is None
    assert {k: v.theta for k, v in facts.rope_per_layer_type.items()} == {
        "full_attention": 1e6,
        "sliding_attention": 1e4,
    }


def test_su_is_longrope_with_the_outer_original_length() -> None:
    scaling = {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}
    facts = read_facts({**LLAMA, "rope_scaling": scaling, "original_max_position_embeddings": 16})
    assert facts.rope is not None and facts.rope.kind == "longrope"
    assert facts.rope.params["original_max_position_embeddings"] == 16


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_unknown_rope_is_refused_with_key_and_value(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}='spiral'.*known: default, linear"):
        read_facts({**LLAMA, "rope_scaling": {key: "spiral"}})


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_missing_size_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        read_facts({k: v for k, v in LLAMA.items() if k != key})


def test_windows() -> None:
    window = {"sliding_window": 8}
    assert read_facts({**LLAMA, **window}).window_of_layer(0) == 7
    assert read_facts({**LLAMA, **window, "use_sliding_window": False}).window_of_layer(0) == -1
    qwen = {**window, "use_sliding_window": True, "max_window_layers": 2}
    facts = read_facts({**LLAMA, **qwen})
    assert [facts.window_of_layer(i) for i in range(4)] == [-1, -1, 7, 7]


def test_layer_types_must_match_the_layer_count() -> None:
    with pytest.raises(ConfigError, match="3 layer_types for num_hidden_layers=4"):
        read_facts({**LLAMA, "layer_types": ["full_attention"] * 3})


def test_require_names_fact_value_and_choice() -> None:
    facts = read_facts({**LLAMA, "layer_types": ["full_attention", "mamba"] * 2})
    with pytest.raises(ConfigError, match="layer_types='mamba'.*full_attention"):
        require(facts, "Model", layer_types=("full_attention",))
    with pytest.raises(ConfigError, match="hidden_act='silu'"):
        require(facts, "Model", hidden_act=("gelu",))


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 128),
        ({"rope_type": "linear", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            128,
        ),
    ],
)
def test_derived_context_length(scaling: dict[str, Any] | None, expected: int) -> None:
    config = {**LLAMA, "rope_theta": 10000.0, "rope_scaling": scaling}
    assert read_facts(config).derived_context_len == expected


def test_text_config_of_a_wrapped_model_is_read() -> None:
    wrapped = {"model_type": "outer", "architectures": ["X"], "text_config": LLAMA}
    facts = read_facts(wrapped)
    assert (facts.hidden_size, facts.architectures) == (64, ("X",))


def test_eos_may_be_a_list() -> None:
    assert read_facts({**LLAMA, "eos_token_id": [2, 7]}).eos_token_ids == (2, 7)
    assert read_facts({**LLAMA, "eos_token_id": 2}).eos_token_ids == (2,)


def test_rope_override_reaches_either_spelling() -> None:
    new = {"rope_type": "linear", "factor": 2.0}
    v5 = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": None}
    for raw in (v5, old):
        rope = read_facts(apply_overrides(raw, {"rope_scaling": new})).rope
        assert rope is not None and (rope.kind, rope.theta) == ("linear", 5e5)
    rope = read_facts(apply_overrides(v5, {"rope_theta": 7.0})).rope
    assert rope is not None and rope.theta == 7.0
