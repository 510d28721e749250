"""Model shapes without weights: a folder with a config is all that dummy weights need. And what a step of each must move and compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_QWEN3: dict[str, Any] = dict(
    vocab_size=151936,
    max_position_embeddings=40960,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    attention_bias=False,
    hidden_act="silu",
    use_sliding_window=False,
    bos_token_id=151643,
    eos_token_id=151645,
    torch_dtype="bfloat16",
)
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3
    | dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "llama-8b": dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        rms_norm_eps=1e-5,
        attention_bias=False,
        mlp_bias=False,
        hidden_act="silu",
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_id=128001,
        torch_dtype="bfloat16",
    ),
    "qwen3-30b-a3b": _QWEN3
    | dict(
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True)
class Work:
    """What one token costs: parameters that a batch of one reads, of them the head's, and bytes of cache per token of context."""

    body: int
    head: int
    cache_bytes: int
    attention: int  # multiply-adds of one query with one key, all layers

    def decode_bytes(self, batch_size: int, context: int) -> int:
        """Bytes that a decode step reads at least, in 16 bits (of experts, those of one token)."""
        return 2 * (self.body + self.head) + batch_size * context * self.cache_bytes

    def prefill_flops(self, length: int) -> int:
        """Floating point operations of a prompt, the head for its last token left out."""
        return 2 * self.body * length + self.attention * length * length


def count_work(shape: str) -> Work:
    config = CONFIGS[shape]
    width, layers, dim = config["hidden_size"], config["num_hidden_layers"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    mlp = 3 * width * config["intermediate_size"]
    if "num_experts" in config:
        mlp = 3 * width * config["num_experts_per_tok"] * config["moe_intermediate_size"]
        mlp += width * config["num_experts"]
    body = layers * (width * (q + 2 * kv) + q * width + mlp)
    return Work(body, width * config["vocab_size"], 4 * kv * layers, 2 * q * layers)


def write_shape(shape: str, root: Path) -> Path:
    """A model folder of this shape below `root`."""
    config, folder = CONFIGS[shape], root / shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder
