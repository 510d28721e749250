"""Model types that transformers does not know, and published architecture names it spells differently.

A checkpoint names its config class by `model_type`. Where the config is literally one that transformers
has, under another name, the alias is enough; the architecture then selects the model file as usual.
"""

from __future__ import annotations

# model_type in config.json -> model_type whose config class reads it
MODEL_TYPE_ALIASES: dict[str, str] = {
    "kimi_k2": "deepseek_v3",
    "internlm3": "llama",
    "iquestcoder": "llama",
}

# architecture in config.json -> name that the registry and transformers use
ARCHITECTURE_ALIASES: dict[str, str] = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "ExaoneMoEForCausalLM": "ExaoneMoeForCausalLM",
    "Ernie4_5_ForCausalLM": "Ernie4_5ForCausalLM",
}


def register_model_type(model_type: str, read_as: str) -> None:
    """Read configs of `model_type` with the config class of `read_as` (a type transformers knows)."""
    MODEL_TYPE_ALIASES[model_type] = read_as
