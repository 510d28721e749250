"""Tiny configurations of families whose published checkpoints bring code that transformers does not have; `configs.CASES` holds them
too. Each starts from the stored configuration of the family, which is a whole config.json with the published keys.
"""

from __future__ import annotations

from typing import Any

from models.case import Case

from sglang.verify.tiny import tiny_config


def _case(stored: str, architecture: str = "", without: tuple[str, ...] = (), **keys: Any) -> Case:
    """The stored configuration with other keys; `prompt_lens` and `context_length` are the case's own."""
    own = {key: keys.pop(key) for key in ("prompt_lens", "context_length") if key in keys}
    raw = {key: value for key, value in tiny_config(stored).items() if key not in without}
    return Case("", architecture or raw["architectures"][0], {**raw, **keys}, **own)


REMOTE_CASES: dict[str, Case] = {
    "chatglm": _case("chatglm"),
    "chatglm4": _case("chatglm", "ChatGLMForConditionalGeneration", rope_ratio=50, num_layers=3),
    "chatglm-linear": _case("chatglm", rope_scaling={"type": "linear", "factor": 4.0}),
    "chatglm-mha": _case(
        "chatglm", "ChatGLMForCausalLM", multi_query_attention=False, add_bias_linear=True
    ),
    "internlm2": _case("internlm2"),
    "internlm2-dynamic": _case(
        "internlm2",
        bias=True,
        max_position_embeddings=16,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        prompt_lens=(32, 32),
    ),
    "internlm3": _case("internlm3"),
    "internlm3-bias": _case("internlm3", bias=True, qkv_bias=False, tie_word_embeddings=True),
    "baichuan-7b": _case("baichuan"),
    # Six heads are no power of two, as the 40 of the published model.
    "baichuan-13b": _case(
        "baichuan",
        without=("max_position_embeddings",),
        hidden_size=96,
        num_attention_heads=6,
        model_max_length=256,
    ),
    "baichuan1": _case("baichuan", "BaiChuanForCausalLM", without=("z_loss_weight",)),
    "qwen": _case("qwen"),
    "qwen-logn": _case("qwen", use_dynamic_ntk=False, seq_length=16, no_bias=False),
    "exaone": _case("exaone"),
    "minicpm": _case("minicpm"),
    "minicpm-untied": _case("minicpm", tie_word_embeddings=False, num_hidden_layers=3),
    "minicpm-longrope": _case(
        "minicpm",
        rope_scaling={
            "rope_type": "longrope",
            "factor": 32.0,
            "original_max_position_embeddings": 8,
            "short_factor": [1.0 + 0.05 * i for i in range(8)],
            "long_factor": [1.5 + 0.5 * i for i in range(8)],
        },
    ),
    "xverse": _case("xverse"),
    "mimo": _case("mimo"),
    "orion": _case("orion"),
    "teleflm": _case("teleflm"),
    "teleflm-plain": _case("teleflm", use_mup=False),
    "solar": _case("solar"),
    "solar-bias": _case("solar", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "phi3-small": _case("phi3_small"),
    "phi3-small-dense": _case(
        "phi3_small",
        mup_use_scaling=False,
        num_key_value_heads=4,
        dense_attention_every_n_layers=1,
    ),
    "phi3-small-homo": _case("phi3_small", blocksparse_homo_head_pattern=True),
}
