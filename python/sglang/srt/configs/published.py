"""Configs of published checkpoints that bring their config class as code: their keys in the usual spelling.

No code of a checkpoint is run. `PUBLISHED` says, by model_type, how such a config.json spells the usual facts; every key it has stays
beside them, for the model file to read. Sources: the config.json files and model cards of the families.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """`rename`: their key -> the usual one. `defaults`: what the family assumes where config.json is silent.
    `derive`: usual keys that need more than a rename; these win over what is written."""

    rename: Mapping[str, str] = field(default_factory=dict)
    defaults: Raw = field(default_factory=dict)
    derive: Callable[[Raw], dict[str, Any]] | None = None


def _chatglm(raw: Raw) -> dict[str, Any]:
    heads = raw["num_attention_heads"]
    groups = raw.get("multi_query_group_num") if raw.get("multi_query_attention") else heads
    return {
        "num_key_value_heads": groups,
        "rope_theta": 10000.0 * raw.get("rope_ratio", 1.0),
        "partial_rotary_factor": 0.5,
    }


def _baichuan(raw: Raw) -> dict[str, Any]:
    """7B turns queries and keys, 13B has ALiBi and no max_position_embeddings; nothing else tells them apart."""
    named = raw.get("position_embedding")
    if named is None:
        has_rope = raw["hidden_size"] == 4096 or "max_position_embeddings" in raw
        named = "ROPE" if has_rope else "ALIBI"
    has_norm_head = raw.get("norm_head", raw["vocab_size"] == 125696 or "z_loss_weight" in raw)
    return {"position_embedding": named, "norm_head": has_norm_head}


def _qwen(raw: Raw) -> dict[str, Any]:
    """Each of the two MLP inputs has half the written width. With dynamic NTK the angles of a whole sequence change with its length
    beyond `seq_length`, so the context ends there."""
    derived: dict[str, Any] = {"rope_theta": float(raw.get("rotary_emb_base", 10000.0))}
    if raw.get("use_dynamic_ntk"):
        longest = raw.get("max_position_embeddings") or raw["seq_length"]
        derived["max_position_embeddings"] = min(raw["seq_length"], longest)
    return derived


def _bailing(raw: Raw) -> dict[str, Any]:
    own = raw.get("head_dim")
    return {"head_dim": own or raw["hidden_size"] // raw["num_attention_heads"]}


_THETA: Raw = {"rope_theta": 10000.0, "tie_word_embeddings": False}

# Ling, first and second kind.
_BAILING = Published(
    rename={"use_qkv_bias": "qkv_bias"},
    defaults={
        **_THETA,
        "num_shared_experts": None,
        "first_k_dense_replace": 0,
        "norm_topk_prob": True,
        "norm_head": False,
        "hidden_act": "silu",
        "embedding_dropout": 0.0,
        "use_bias": False,
        "use_qkv_bias": False,
        "use_qk_norm": False,
        "score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    },
    derive=_bailing,
)

PUBLISHED: dict[str, Published] = {
    "chatglm": Published(
        rename={
            "padded_vocab_size": "vocab_size",
            "ffn_hidden_size": "intermediate_size",
            "num_layers": "num_hidden_layers",
            "seq_length": "max_position_embeddings",
            "kv_channels": "head_dim",
            "layernorm_epsilon": "rms_norm_eps",
            "add_qkv_bias": "qkv_bias",
        },
        defaults={"tie_word_embeddings": False, "hidden_dropout": 0.0},
        derive=_chatglm,
    ),
    "internlm2": Published(defaults=_THETA),
    "internvl_chat": Published(),  # its language model is in llm_config, of a type of its own
    "internlm3": Published(defaults=_THETA),
    "baichuan": Published(
        rename={"model_max_length": "max_position_embeddings"},
        defaults=_THETA,
        derive=_baichuan,
    ),
    "qwen": Published(
        rename={"kv_channels": "head_dim", "seq_length": "max_position_embeddings"},
        defaults={"tie_word_embeddings": False},
        derive=_qwen,
    ),
    "exaone": Published(rename={"num_layers": "num_hidden_layers"}, defaults=_THETA),
    "minicpm": Published(defaults={"rope_theta": 10000.0, "tie_word_embeddings": True}),
    "xverse": Published(
        defaults={
            **_THETA,
            "hidden_act": "silu",
            "norm_topk_prob": True,
            "num_shared_experts": None,
        }
    ),
    "mimo": Published(defaults=_THETA),
    "orion": Published(defaults=_THETA),
    "TeleFLM": Published(defaults=_THETA),
    "solar": Published(defaults=_THETA),
    "phi3small": Published(
        rename={"ff_intermediate_size": "intermediate_size", "rope_embedding_base": "rope_theta"},
        defaults={"tie_word_embeddings": True, "blocksparse_triton_kernel_block_size": 64},
    ),
    "deepseek": Published(
        defaults={
            **_THETA,
            "hidden_act": "silu",
            "n_shared_experts": None,
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
            "scoring_func": "softmax",
            "routed_scaling_factor": 1.0,
        }
    ),
    "grok-1": Published(
        rename={"max_attn_value": "attn_logit_softcapping", "num_local_experts": "num_experts"},
        defaults={
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
            "attn_output_multiplier": None,
            "attn_logit_softcapping": 30.0,
            "router_logit_softcapping": None,
            "final_logit_softcapping": None,
            "residual_moe": False,
        },
    ),
    "bailing_moe": _BAILING,
    "bailing_moe_v2": _BAILING,
}


# Conversions whose config.json says the model_type of a relative: architecture -> (what it says, what it is).
_BORROWED_TYPES = {
    "Grok1ForCausalLM": ("mixtral", "grok-1"),
    "Grok1ModelForCausalLM": ("mixtral", "grok-1"),
}


def own_model_type(raw: Raw) -> str:
    """The model_type of a config.json; that of its own family where a conversion borrowed another's. "" for none."""
    written = str(raw.get("model_type") or "")
    for architecture in raw.get("architectures") or ():
        borrowed, own = _BORROWED_TYPES.get(architecture, ("", ""))
        if written and written == borrowed:
            return own
    return written


def usual_keys(raw: Raw) -> Raw:
    """`raw` with the usual keys added where its model_type is published with others; any other config unchanged."""
    known = PUBLISHED.get(own_model_type(raw))
    if known is None:
        return raw
    found = dict(raw)
    derived = known.derive(raw) if known.derive else {}
    for theirs, ours in known.rename.items():
        if found.get(ours) is None and raw.get(theirs) is not None:
            found[ours] = raw[theirs]
    for key, value in known.defaults.items():
        is_inside = key == "rope_theta" and bool(raw.get("rope_parameters"))
        if found.get(key) is None and not is_inside:
            found[key] = value
    return {**found, **derived}


@functools.cache
def plain_config_class(model_type: str) -> Any:
    """A config class that knows its model_type and nothing else. Imports transformers."""
    from transformers import PretrainedConfig

    name = "".join(part.capitalize() for part in model_type.replace("-", "_").split("_"))
    return type(f"{name}Config", (PretrainedConfig,), {"model_type": model_type})
