"""The models that `test_generation_models.py` compares with transformers: one case per family, by the ids of published checkpoints."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class ModelCase:
    """A checkpoint (hub id or folder) and how far it may be from transformers in half precision.

    Tolerances are of logprobs; `rouge_l_tolerance` 1 means equal texts. `architecture` is what its tiny twin is made of; "" for a
    model that has none.
    """

    model_path: str
    tp_size: int = 1
    prefill_tolerance: float = 5e-2
    decode_tolerance: float = 6e-2
    rouge_l_tolerance: float = 1
    skip_long_prompt: bool = False
    trust_remote_code: bool = False
    attention_backend: str | None = None
    architecture: str = ""


def _of(architecture: str, model_path: str, **settings: float | bool | str) -> ModelCase:
    return ModelCase(model_path, architecture=architecture, **settings)  # type: ignore[arg-type]


CI_MODELS = [
    _of("LlamaForCausalLM", "meta-llama/Llama-3.1-8B-Instruct"),
    _of("Gemma2ForCausalLM", "google/gemma-2-2b"),
]

ALL_OTHER_MODELS = [
    # dense
    _of("Qwen2ForCausalLM", "Qwen/Qwen2-1.5B", decode_tolerance=7e-2),
    _of("Qwen2ForCausalLM", "Qwen/Qwen2.5-14B-Instruct"),
    _of("Qwen3ForCausalLM", "Qwen/Qwen3-0.6B"),
    _of("QWenLMHeadModel", "Qwen/Qwen-7B-Chat"),
    _of("LlamaForCausalLM", "HuggingFaceTB/SmolLM-135M-Instruct", skip_long_prompt=True),
    _of("SmolLM3ForCausalLM", "HuggingFaceTB/SmolLM3-3B"),
    _of("LlamaForCausalLM", "upstage/SOLAR-10.7B-Instruct-v1.0"),
    _of("SolarForCausalLM", "upstage/solar-pro-preview-instruct"),
    _of("MistralForCausalLM", "mistralai/Mistral-7B-Instruct-v0.3"),
    _of("Ministral3ForCausalLM", "mistralai/Ministral-3-8B-Instruct-2512"),
    _of("GemmaForCausalLM", "google/gemma-2b-it"),
    _of("Gemma3ForCausalLM", "google/gemma-3-1b-it"),
    _of("PhiForCausalLM", "microsoft/phi-1_5", skip_long_prompt=True),
    _of("Phi3ForCausalLM", "microsoft/Phi-4-mini-instruct"),
    _of("Phi3SmallForCausalLM", "microsoft/Phi-3-small-8k-instruct"),
    _of("GlmForCausalLM", "THUDM/glm-4-9b-chat-hf"),
    _of("Glm4ForCausalLM", "THUDM/GLM-4-9B-0414"),
    _of("ChatGLMModel", "THUDM/glm-4-9b-chat", tp_size=2),
    _of("OlmoForCausalLM", "allenai/OLMo-1B-0724-hf", decode_tolerance=8e-2, skip_long_prompt=True),
    _of("Olmo2ForCausalLM", "allenai/OLMo-2-1124-7B-Instruct", skip_long_prompt=True),
    _of("Olmo3ForCausalLM", "allenai/Olmo-3-1025-7B"),
    _of("GraniteForCausalLM", "ibm-granite/granite-3.0-2b-instruct", skip_long_prompt=True),
    _of("InternLM2ForCausalLM", "internlm/internlm2_5-7b-chat"),
    _of("InternLM3ForCausalLM", "internlm/internlm3-8b-instruct"),
    _of("BaichuanForCausalLM", "baichuan-inc/Baichuan2-7B-Chat"),
    _of("CohereForCausalLM", "CohereForAI/c4ai-command-r-v01"),
    _of("Cohere2ForCausalLM", "CohereForAI/c4ai-command-r7b-12-2024"),
    _of("StableLmForCausalLM", "stabilityai/stablelm-2-1_6b", skip_long_prompt=True),
    _of("ExaoneForCausalLM", "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct"),
    _of("Exaone4ForCausalLM", "LGAI-EXAONE/EXAONE-4.0-32B"),
    _of("MiniCPMForCausalLM", "openbmb/MiniCPM-2B-sft-bf16", skip_long_prompt=True),
    _of("XverseForCausalLM", "xverse/XVERSE-7B-Chat"),
    _of("MiMoForCausalLM", "XiaomiMiMo/MiMo-7B-RL"),
    _of("Ernie4_5ForCausalLM", "baidu/ERNIE-4.5-0.3B-PT"),
    _of("ArceeForCausalLM", "arcee-ai/AFM-4.5B"),
    _of("PersimmonForCausalLM", "adept/persimmon-8b-chat"),
    _of("TeleFLMForCausalLM", "CofeAI/Tele-FLM"),
    _of("OrionForCausalLM", "OrionStarAI/Orion-14B-Base"),
    _of("Starcoder2ForCausalLM", "bigcode/starcoder2-7b"),
    _of("GPT2LMHeadModel", "openai-community/gpt2", skip_long_prompt=True),
    _of("GPTBigCodeForCausalLM", "bigcode/gpt_bigcode-santacoder", skip_long_prompt=True),
    _of("OPTForCausalLM", "facebook/opt-125m", skip_long_prompt=True),
    _of("GPTJForCausalLM", "EleutherAI/gpt-j-6b", skip_long_prompt=True),
    _of("ApertusForCausalLM", "swiss-ai/Apertus-8B-Instruct-2509"),
    _of("SeedOssForCausalLM", "ByteDance-Seed/Seed-OSS-36B-Instruct"),
    _of("HunYuanDenseV1ForCausalLM", "tencent/Hunyuan-7B-Instruct"),
    _of("NemotronForCausalLM", "nvidia/Minitron-4B-Base"),
    # experts
    _of("MixtralForCausalLM", "mistralai/Mixtral-8x7B-Instruct-v0.1", tp_size=2),
    _of("Qwen2MoeForCausalLM", "Qwen/Qwen1.5-MoE-A2.7B-Chat"),
    _of("Qwen3MoeForCausalLM", "Qwen/Qwen3-30B-A3B"),
    _of("OlmoeForCausalLM", "allenai/OLMoE-1B-7B-0924-Instruct"),
    _of("DbrxForCausalLM", "databricks/dbrx-instruct", tp_size=4),
    _of("Grok1ModelForCausalLM", "hpcai-tech/grok-1", tp_size=4),
    _of("DeepseekForCausalLM", "deepseek-ai/deepseek-moe-16b-chat"),
    _of("PhimoeForCausalLM", "microsoft/Phi-3.5-MoE-instruct", tp_size=2),
    _of("GraniteMoeForCausalLM", "ibm-granite/granite-3.0-3b-a800m-instruct"),
    _of("GraniteMoeSharedForCausalLM", "ibm-research/moe-7b-1b-active-shared-experts"),
    _of("XverseMoeForCausalLM", "xverse/XVERSE-MoE-A4.2B"),
    _of("BailingMoeForCausalLM", "inclusionAI/Ling-lite"),
    _of("BailingMoeV2ForCausalLM", "inclusionAI/Ling-mini-2.0"),
    _of("Ernie4_5_MoeForCausalLM", "baidu/ERNIE-4.5-21B-A3B-PT"),
    _of("GptOssForCausalLM", "openai/gpt-oss-20b"),
    _of("MiniMaxM2ForCausalLM", "MiniMaxAI/MiniMax-M2", tp_size=4),
    _of("Llama4ForCausalLM", "meta-llama/Llama-4-Scout-17B-16E-Instruct", tp_size=4),
    _of("Glm4MoeForCausalLM", "zai-org/GLM-4.5-Air", tp_size=4),
    _of("HunYuanMoEV1ForCausalLM", "tencent/Hunyuan-A13B-Instruct", tp_size=2),
    _of("ExaoneMoeForCausalLM", "LGAI-EXAONE/K-EXAONE-236B-A23B", tp_size=4),
    _of("AfmoeForCausalLM", "arcee-ai/Trinity-Mini"),
    # latent attention
    _of("DeepseekV2ForCausalLM", "deepseek-ai/DeepSeek-V2-Lite-Chat"),
    _of("DeepseekV3ForCausalLM", "deepseek-ai/DeepSeek-R1", tp_size=4),
    _of("MiniCPM3ForCausalLM", "openbmb/MiniCPM3-4B"),
    _of("Glm4MoeLiteForCausalLM", "zai-org/GLM-4.7-Flash"),
]

# The names that newer tests of upstream use.
ALL_MODELS = ALL_OTHER_MODELS
