"""References of families with experts: their config.json, as published, as the switches of the plain decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F

from sglang.verify.references import OwnReference, Raw, dense
from sglang.verify.references.moe_decoder import MoEDecoder, MoENames, MoESpec


def sizes(raw: Raw, **switches: Any) -> MoESpec:
    """The sizes under Llama's keys; `switches` are the rest of the spec."""
    heads, width = raw["num_attention_heads"], raw["hidden_size"]
    usual = {
        "vocab_size": raw["vocab_size"],
        "width": width,
        "num_layers": raw["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or width // heads,
        "mlp_width": raw["intermediate_size"],
        "eps": raw["rms_norm_eps"],
        "theta": raw.get("rope_theta", 10000.0),
        "tied": raw.get("tie_word_embeddings", False),
    }
    return MoESpec(**{**usual, **switches})


def deepseek(raw: Raw) -> MoEDecoder:
    """DeepSeek V1."""
    has_bias = raw.get("attention_bias", False)
    return MoEDecoder(
        sizes(
            raw,
            num_experts=raw["n_routed_experts"],
            top_k=raw["num_experts_per_tok"],
            expert_width=raw["moe_intermediate_size"],
            shared_width=raw["moe_intermediate_size"] * (raw.get("n_shared_experts") or 0),
            first_dense=raw["first_k_dense_replace"],
            expert_period=raw.get("moe_layer_freq", 1),
            renormalize=raw["norm_topk_prob"],
            routed_scale=raw.get("routed_scaling_factor", 1.0),
            qkv_bias=has_bias,
            o_bias=has_bias,
        )
    )


def xverse_moe(raw: Raw) -> MoEDecoder:
    """XVERSE-MoE: the routed weights are always renormalised; shared experts are one MLP of their widths together."""
    return MoEDecoder(
        sizes(
            raw,
            names=MoENames(router="router"),
            num_experts=raw["num_experts"],
            top_k=raw["moe_top_k"],
            expert_width=raw["intermediate_size"],
            shared_width=raw["intermediate_size"] * (raw.get("num_shared_experts") or 0),
            renormalize=raw.get("norm_topk_prob", True),
        )
    )


GROK_NAMES = MoENames(
    attn="attn",
    mlp="moe_block",
    attn_norm="pre_attn_norm",
    after_attn="post_attn_norm",
    mlp_norm="pre_moe_norm",
    after_mlp="post_moe_norm",
    gate="linear",
    up="linear_v",
    down="linear_1",
    norm_weight="scale",
)
# The other conversion of the weights.
GROK_NAMES_MIXTRAL = MoENames(
    mlp="block_sparse_moe",
    attn_norm="pre_attn_norm",
    after_attn="post_attn_norm",
    mlp_norm="pre_moe_norm",
    after_mlp="post_moe_norm",
    gate="w1",
    up="w3",
    down="w2",
)


def xverse(raw: Raw) -> OwnReference:
    """XVERSE: both kinds have one model_type."""
    return xverse_moe(raw) if "num_experts" in raw else dense.xverse(raw)


def grok1(raw: Raw) -> MoEDecoder:
    """Grok-1. Of the two conversions of the published weights, each with names of its own, one counts experts as Mixtral does."""
    is_mixtral_like = "num_local_experts" in raw
    return MoEDecoder(
        sizes(
            raw,
            names=GROK_NAMES_MIXTRAL if is_mixtral_like else GROK_NAMES,
            tied=raw.get("tie_word_embeddings", True),
            num_experts=raw["num_local_experts" if is_mixtral_like else "num_experts"],
            top_k=raw["num_experts_per_tok"],
            expert_width=raw["intermediate_size"],
            router_cap=raw.get("router_logit_softcapping") or 0.0,
            act=partial(F.gelu, approximate="tanh"),
            embed_scale=raw["embedding_multiplier_scale"],
            score_scale=raw.get("attn_output_multiplier"),
            score_cap=raw.get("max_attn_value", 30.0),
            logit_scale=raw["output_multiplier_scale"],
            logit_cap=raw.get("final_logit_softcapping") or 0.0,
        )
    )


BAILING_NAMES = MoENames(
    embed="model.word_embeddings",
    attn="attention",
    qkv="query_key_value",
    o="dense",
    q_norm="query_layernorm",
    k_norm="key_layernorm",
    correction="expert_bias",
)


def bailing_moe(raw: Raw) -> MoEDecoder:
    """Ling and Ling 2: the second kind has sigmoid scores with a correction, groups, norms of q and k and partly rotated heads."""
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    is_sigmoid = raw.get("score_function") == "sigmoid"
    return MoEDecoder(
        sizes(
            raw,
            names=BAILING_NAMES,
            rotary_dim=int(head_dim * raw.get("partial_rotary_factor", 1.0)),
            qkv_bias=raw.get("use_qkv_bias", False),
            o_bias=raw.get("use_bias", False),
            qk_norm=raw.get("use_qk_norm", False),
            normed_head=raw.get("norm_head", False),
            num_experts=raw["num_experts"],
            top_k=raw["num_experts_per_tok"],
            expert_width=raw["moe_intermediate_size"],
            shared_width=raw["moe_intermediate_size"] * (raw.get("num_shared_experts") or 0),
            first_dense=raw.get("first_k_dense_replace", 0),
            scores="sigmoid" if is_sigmoid else "softmax",
            has_correction=raw.get("moe_router_enable_expert_bias", False),
            num_groups=raw.get("n_group") or 1,
            top_groups=raw.get("topk_group") or 1,
            renormalize=raw["norm_topk_prob"],
            routed_scale=raw.get("routed_scaling_factor", 1.0),
        )
    )
