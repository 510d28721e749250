"""The families that are proven with media, by architecture."""

from __future__ import annotations

from sglang.verify.media import MediaFamily
from sglang.verify.media_gemma3 import Gemma3
from sglang.verify.media_internvl import InternVL
from sglang.verify.media_llava import Llava, LlavaNext, LlavaOnevision, LlavaOriginal
from sglang.verify.media_mllama import Mllama
from sglang.verify.media_qwen_audio import QwenAudio
from sglang.verify.media_qwen_vl import QwenVL

FAMILIES: dict[str, MediaFamily] = {
    "Gemma3ForConditionalGeneration": Gemma3(),
    "InternVLChatModel": InternVL(),
    "InternVLForConditionalGeneration": InternVL(),
    "LlavaForConditionalGeneration": Llava(),
    "LlavaLlamaForCausalLM": LlavaOriginal(),
    "LlavaMistralForCausalLM": LlavaOriginal(),
    "LlavaQwenForCausalLM": LlavaOriginal(),
    "LlavaNextForConditionalGeneration": LlavaNext(),
    "LlavaOnevisionForConditionalGeneration": LlavaOnevision(),
    "MllamaForConditionalGeneration": Mllama(),
    "Qwen2AudioForConditionalGeneration": QwenAudio(),
    "Qwen2VLForConditionalGeneration": QwenVL("Qwen2VLProcessor"),
    "Qwen2_5_VLForConditionalGeneration": QwenVL("Qwen2_5_VLProcessor"),
}
