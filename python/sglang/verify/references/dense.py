"""References of dense families: their config.json, as published, as the switches of the plain decoder."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from sglang.verify.references import Raw
from sglang.verify.references.decoder import Decoder, Names, Rope, Spec

GPT_NAMES = Names(
    embed="transformer.wte",
    layers="transformer.h",
    norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    down="mlp.c_proj",
)


def llama_like(raw: Raw, **switches: Any) -> Spec:
    """The sizes under Llama's keys, with rotary positions over whole heads; `switches` replace what differs."""
    heads, width = raw["num_attention_heads"], raw["hidden_size"]
    head_dim = raw.get("head_dim") or width // heads
    spec = Spec(
        vocab_size=raw["vocab_size"],
        width=width,
        num_layers=switches.pop("num_layers", None) or raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_width=switches.pop("mlp_width", None) or raw["intermediate_size"],
        eps=raw.get("rms_norm_eps", 1e-6),
        rope=Rope(raw.get("rope_theta", 10000.0), head_dim, scaling=scaling_of(raw)),
        tied=raw.get("tie_word_embeddings", False),
    )
    if spec.rope is not None:
        longest = raw.get("max_position_embeddings", 2048)
        spec = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, max_position=longest))
    return dataclasses.replace(spec, **switches)


def scaling_of(raw: Raw) -> dict[str, Any] | None:
    """`rope_scaling` in transformers' present spelling."""
    written = dict(raw.get("rope_scaling") or {})
    if not written:
        return None
    kind = written.pop("type", None)
    return {"rope_type": kind, **written}


def chatglm(raw: Raw) -> Decoder:
    """ChatGLM 2, 3 and GLM-4: the first half of each head turned, neighbours together; groups of heads share k and v."""
    heads = raw["num_attention_heads"]
    names = Names(
        embed="transformer.embedding.word_embeddings",
        layers="transformer.encoder.layers",
        norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
        qkv="self_attention.query_key_value",
        o="self_attention.dense",
        gate_up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    )
    return Decoder(
        Spec(
            vocab_size=raw["padded_vocab_size"],
            width=raw["hidden_size"],
            num_layers=raw["num_layers"],
            num_heads=heads,
            num_kv_heads=raw["multi_query_group_num"] if raw["multi_query_attention"] else heads,
            head_dim=raw["kv_channels"],
            mlp_width=raw["ffn_hidden_size"],
            names=names,
            eps=raw["layernorm_epsilon"],
            rope=Rope(
                10000.0 * raw.get("rope_ratio", 1),
                raw["kv_channels"] // 2,
                interleaved=True,
                scaling=scaling_of(raw),
                max_position=raw["seq_length"],
            ),
            qkv_bias=raw["add_qkv_bias"] or raw["add_bias_linear"],
            o_bias=raw["add_bias_linear"],
            mlp_bias=raw["add_bias_linear"],
        )
    )


def internlm2(raw: Raw) -> Decoder:
    """Llama with q, k and v of a kv head side by side in one matrix."""
    names = Names(
        embed="model.tok_embeddings",
        head="output",
        attn_norm="attention_norm",
        mlp_norm="ffn_norm",
        qkv="attention.wqkv",
        o="attention.wo",
        gate="feed_forward.w1",
        up="feed_forward.w3",
        down="feed_forward.w2",
    )
    bias = raw["bias"]
    return Decoder(llama_like(raw, names=names, grouped_qkv=True, qkv_bias=bias, o_bias=bias))


def internlm3(raw: Raw) -> Decoder:
    """Llama with biases of its own on q, k and v."""
    bias = raw["bias"]
    return Decoder(llama_like(raw, qkv_bias=raw["qkv_bias"], o_bias=bias, mlp_bias=bias))


def baichuan(raw: Raw) -> Decoder:
    """Baichuan 2: rows of the head have length one. 13B has no max_position_embeddings, and ALiBi instead of rotations."""
    switches: dict[str, Any] = {} if "max_position_embeddings" in raw else {"rope": None}
    return Decoder(
        llama_like(
            raw,
            names=Names(qkv="self_attn.W_pack"),
            alibi=bool(switches),
            normed_head="z_loss_weight" in raw,
            **switches,
        )
    )


def qwen(raw: Raw) -> Decoder:
    """Qwen 1: w2 gates w1; biases on q, k and v; queries grow beyond `seq_length`."""
    names = dataclasses.replace(
        GPT_NAMES, qkv="attn.c_attn", o="attn.c_proj", gate="mlp.w2", up="mlp.w1"
    )
    head_dim = raw["kv_channels"]
    logn = raw["use_logn_attn"] and not raw["use_dynamic_ntk"]
    return Decoder(
        llama_like(
            raw,
            names=names,
            mlp_width=raw["intermediate_size"] // 2,
            eps=raw["layer_norm_epsilon"],
            rope=Rope(raw["rotary_emb_base"], int(head_dim * raw["rotary_pct"])),
            qkv_bias=True,
            o_bias=not raw["no_bias"],
            mlp_bias=not raw["no_bias"],
            logn_from=raw["seq_length"] if logn else None,
        )
    )


def exaone(raw: Raw) -> Decoder:
    """EXAONE 3: Llama under GPT-2's names."""
    names = dataclasses.replace(
        GPT_NAMES,
        q="attn.attention.q_proj",
        k="attn.attention.k_proj",
        v="attn.attention.v_proj",
        o="attn.attention.out_proj",
        gate="mlp.c_fc_0",
        up="mlp.c_fc_1",
    )
    layers, eps = raw["num_layers"], raw["layer_norm_epsilon"]
    return Decoder(llama_like(raw, names=names, num_layers=layers, eps=eps))


def minicpm(raw: Raw) -> Decoder:
    """Llama with muP's constants; tied unless the config says otherwise."""
    return Decoder(
        llama_like(
            raw,
            tied=raw.get("tie_word_embeddings", True),
            embed_scale=raw["scale_emb"],
            residual_scale=raw["scale_depth"] / math.sqrt(raw["num_hidden_layers"]),
            logit_scale=raw["dim_model_base"] / raw["hidden_size"],
        )
    )


def xverse(raw: Raw) -> Decoder:
    """Llama."""
    return Decoder(llama_like(raw))


def mimo(raw: Raw) -> Decoder:
    """Llama with biases on q, k and v."""
    return Decoder(llama_like(raw, qkv_bias=True))


def orion(raw: Raw) -> Decoder:
    """Llama with layer norms."""
    return Decoder(llama_like(raw, norm="layer"))


def teleflm(raw: Raw) -> Decoder:
    """Llama with muP's factors of embeddings and logits."""
    switches = {}
    if raw["use_mup"]:
        switches = {
            "embed_scale": raw["input_mult"],
            "logit_scale": raw["output_mult"] / raw["mup_scale_factor"],
        }
    return Decoder(llama_like(raw, **switches))


def solar(raw: Raw) -> Decoder:
    """Llama whose inputs to the layers of `bskcn_3` (`bskcn_4`) are mixed with that of the last layer in `bskcn_1` (`bskcn_2`)."""
    share = raw["bskcn_tv"][1]

    def blend(layer: int, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = inputs[layer]
        for kept, mixed in (("bskcn_1", "bskcn_3"), ("bskcn_2", "bskcn_4")):
            if layer in raw[mixed]:
                source = max(number for number in raw[kept] if number <= layer)
                x = share * inputs[source] + (1 - share) * x
        return x

    bias = raw["attention_bias"]
    return Decoder(
        llama_like(raw, qkv_bias=bias, o_bias=bias, mlp_bias=raw["mlp_bias"], blend=blend)
    )


def phi3_small(raw: Raw) -> Decoder:
    """Phi-3-small: block-sparse layers, muP's constants, q, k and v of a kv head side by side, clipped gelu gates."""
    heads, width = raw["num_attention_heads"], raw["hidden_size"]
    head_dim, limit = width // heads, raw["gegelu_limit"]

    def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)

    def pattern(layer: int, length: int) -> torch.Tensor | None:
        every = raw["dense_attention_every_n_layers"]
        if every and (layer + 1) % every == 0:
            return None
        stride, near = raw["blocksparse_vert_stride"], raw["blocksparse_num_local_blocks"]
        step = 0 if raw["blocksparse_homo_head_pattern"] else max(1, stride // heads)
        block = torch.arange(length) // raw["blocksparse_block_size"]
        is_near = block[:, None] - block < near
        kept = [(block + head * step + 1) % stride == 0 for head in range(heads)]
        return torch.stack([is_near | columns for columns in kept])

    names = Names(
        norm="model.final_layernorm",
        qkv="self_attn.query_key_value",
        o="self_attn.dense",
        gate_up="mlp.up_proj",
    )
    return Decoder(
        llama_like(
            raw,
            names=names,
            mlp_width=raw["ff_intermediate_size"],
            eps=raw["layer_norm_epsilon"],
            norm="layer",
            rope=Rope(raw["rope_embedding_base"], head_dim),
            grouped_qkv=True,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            tied=True,
            embed_scale=raw["mup_embedding_multiplier"],
            score_scale=raw["mup_attn_multiplier"] / head_dim
            if raw["mup_use_scaling"]
            else head_dim**-0.5,
            logit_scale=1.0 / raw["mup_width_multiplier"],
            interleaved_gate=True,
            gated=gated,
            pattern=pattern,
            banned_tokens=tuple(raw.get("dummy_token_indices") or ()),
        )
    )
