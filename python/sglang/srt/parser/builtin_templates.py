"""The conversation templates that come with the project: the chat formats that vendors publish, as data.

A template is needed where a tokenizer has none of its own, or one that cannot take media.
"""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.parser.conversation_value import Conversation
from sglang.srt.parser.separator_styles import SeparatorStyle

_HELPFUL = "You are a helpful assistant."
_HELPFUL_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_INTERNVL = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_END_OF_SENTENCE = "<｜end▁of▁sentence｜>"

_LLAMA2: dict[str, Any] = {
    "roles": ("[INST]", "[/INST]"),
    "sep_style": SeparatorStyle.LLAMA2,
    "sep": " ",
    "sep2": " </s><s>",
    "stop_str": ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"],
}
_MISTRAL: dict[str, Any] = {
    **_LLAMA2,
    "system_template": "[SYSTEM_PROMPT]{system_message}[/SYSTEM_PROMPT][INST] ",
    "stop_str": ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
    "image_token": "[IMG]",
}
_LLAMA3: dict[str, Any] = {
    "system_template": "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
    "roles": ("user", "assistant"),
    "sep_style": SeparatorStyle.LLAMA3,
    "sep": "",
    "stop_str": ["<|end_of_text|>", "<|eot_id|>"],
}
_CHATML: dict[str, Any] = {
    "system_template": "<|im_start|>system\n{system_message}",
    "system_message": _HELPFUL,
    "roles": ("<|im_start|>user", "<|im_start|>assistant"),
    "sep_style": SeparatorStyle.CHATML,
    "sep": "<|im_end|>",
    "stop_str": ["<|endoftext|>", "<|im_end|>"],
}
_QWEN: dict[str, Any] = {
    **_CHATML,
    "sep_style": SeparatorStyle.ADD_NEW_LINE_SINGLE,
    "sep": "<|im_end|>\n",
    "stop_str": ["<|im_end|>"],
}
_QWEN_VL: dict[str, Any] = {
    **_QWEN,
    "image_token": "<|vision_start|><|image_pad|><|vision_end|>",
    "video_token": "<|vision_start|><|video_pad|><|vision_end|>",
}
_MINICPM: dict[str, Any] = {
    **_QWEN,
    "stop_str": ["<|im_end|>", "<|endoftext|>"],
    "image_token": "(<image>./</image>)",
    "video_token": "(<video>./</video>)",
    "audio_token": "(<audio>./</audio>)",
}


def builtin_templates() -> list[Conversation]:
    """Every template, fresh."""
    return [
        Conversation(
            "llama-2", system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n", **_LLAMA2
        ),
        Conversation("mistral", **_MISTRAL),
        Conversation("devstral", **_MISTRAL),
        Conversation(
            "llama-4",
            system_template="<|header_start|>system<|header_end|>\n\n{system_message}<|eot|>",
            roles=("user", "assistant"),
            sep_style=SeparatorStyle.LLAMA4,
            sep="",
            stop_str=["<|end_of_text|>", "<|eot|>", "<|eom|>"],
            image_token="<|image|>",
        ),
        Conversation(
            "phi-4-mm",
            system_template="<|system|>{system_message}<|end|>",
            roles=("<|user|>", "<|assistant|>"),
            sep_style=SeparatorStyle.NO_COLON_SINGLE,
            sep="<|end|>",
            stop_str=["<|end|>"],
            image_token="<|endoftext10|>",
            audio_token="<|endoftext11|>",
        ),
        Conversation("chatml", **_CHATML),
        Conversation("chatml-llava", **_CHATML),
        Conversation(
            "vicuna_v1.1",
            system_message=_CURIOUS,
            sep_style=SeparatorStyle.ADD_COLON_TWO,
            sep=" ",
            sep2="</s>",
        ),
        Conversation("llama_3_vision", image_token="<|image|>", **_LLAMA3),
        Conversation("llava_llama_3", system_message=_HELPFUL_VISION, **_LLAMA3),
        # The published format of InternLM2 is ChatML without a system turn of its own.
        Conversation("internlm2-chat", **{**_CHATML, "system_message": ""}),
        Conversation(
            "internvl-2-5",
            system_template="<|im_start|>system\n{system_message}",
            system_message=_INTERNVL,
            roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
            sep_style=SeparatorStyle.MPT,
            sep="<|im_end|>\n",
            stop_str=["<|im_end|>", "<|action_end|>"],
            image_token="<IMG_CONTEXT>",
            image_token_at_prefix=True,
        ),
        Conversation("qwen2-vl", **_QWEN_VL),
        Conversation(
            "gme-qwen2-vl",
            **{
                **_QWEN_VL,
                "sep_style": SeparatorStyle.QWEN2_VL_EMBED,
                "stop_str": "<|endoftext|>",
            },
        ),
        Conversation("points-v15-chat", **{**_QWEN_VL, "system_message": ""}),
        Conversation(
            "deepseek-vl2",
            roles=("<|User|>", "<|Assistant|>"),
            sep_style=SeparatorStyle.DeepSeekVL2,
            sep="\n\n",
            sep2=_END_OF_SENTENCE,
            stop_str=["User:", _END_OF_SENTENCE],
        ),
        Conversation(
            "deepseek-ocr",
            roles=("", ""),
            sep_style=SeparatorStyle.NO_COLON_SINGLE,
            sep="",
            stop_str=[_END_OF_SENTENCE],
            image_token_at_prefix=True,
        ),
        Conversation(
            "paddle-ocr",
            system_template="<|begin_of_sentence|>{system_message}",
            roles=("User", "Assistant"),
            sep_style=SeparatorStyle.PADDLE_OCR,
            sep="<|end_of_sentence|>",
            stop_str=["<|end_of_sentence|>"],
            image_token="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        ),
        Conversation(
            "gemma-it",
            system_template="<start_of_turn>user\n{system_message}\n\n",
            roles=("<start_of_turn>user\n", "<start_of_turn>model\n"),
            sep_style=SeparatorStyle.GEMMA3,
            sep="<end_of_turn>\n",
            stop_str=["<end_of_turn>"],
            image_token="<start_of_image>",
            audio_token="<start_of_audio>",
        ),
        Conversation("minicpmv", **_MINICPM),
        Conversation("minicpmo", **_MINICPM),
        Conversation(
            "janus-pro",
            system_message=_HELPFUL_VISION,
            roles=("<|User|>", "<|Assistant|>"),
            sep_style=SeparatorStyle.ADD_COLON_TWO,
            sep="\n\n",
            sep2=_END_OF_SENTENCE,
            stop_str=["<|User|>", _END_OF_SENTENCE],
            image_token="<image_placeholder>",
        ),
        Conversation(
            "kimi-vl",
            system_template="<|im_system|>system<|im_middle|>{system_message}<|im_end|>",
            system_message="You are a helpful assistant",
            roles=("<|im_user|>user<|im_middle|>", "<|im_assistant|>assistant<|im_middle|>"),
            sep_style=SeparatorStyle.NO_COLON_SINGLE,
            sep="<|im_end|>",
            stop_str=["<|im_end|>"],
            image_token="<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
        ),
        Conversation(
            "qwen2-audio",
            audio_token="Audio {idx}: <|audio_bos|><|AUDIO|><|audio_eos|>\n",
            **{**_QWEN, "sep_style": SeparatorStyle.QWEN2_AUDIO},
        ),
    ]


# (template, pattern in the path, model types). The first row that matches decides.
_MATCHES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("points-v15-chat", r"\bpoints\b", ()),
    ("internvl-2-5", r"internvl", ("internvl_chat",)),
    ("janus-pro", r"janus", ("multi_modality",)),
    (
        "chatml-llava",
        r"llava-v1\.6-34b|llava-v1\.6-yi-34b|llava-next-video-34b|llava-onevision-qwen2",
        (),
    ),
    ("vicuna_v1.1", r"vicuna|llava-v1\.5|llava-next-video-7b", ()),
    ("deepseek-vl2", r"deepseek.*vl2", ("deepseek_vl_v2",)),
    ("deepseek-ocr", r"deepseek-ocr", ("deepseek-ocr",)),
    ("paddle-ocr", r"paddleocr", ("paddleocr_vl",)),
    ("minicpmv", r"minicpm-v", ("minicpmv",)),
    ("minicpmo", r"minicpm-o", ("minicpmo",)),
    ("phi-4-mm", r"phi-4-multimodal", ("phi4mm",)),
)


def match_builtin(model_path: str, model_type: str | None) -> str | None:
    """The name of the template for a model, by its path (in any case) or the type in its config."""
    for name, pattern, types in _MATCHES:
        if re.search(pattern, model_path, re.IGNORECASE) or model_type in types:
            return name
    return None
