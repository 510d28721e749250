"""The small model that sees which tests use: the demo model where this installation has it, else a random twin."""

from __future__ import annotations

from pathlib import Path

import sglang

DEMO_VLM = Path(sglang.__file__).parent / "demo_vlm"

# The parts of a message in turn; the twins' tokenizers have no template of their own.
_TEMPLATE = """\
{%- for message in messages %}
{{- '<s>' + message['role'] + ': ' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- else %}{%- for part in message['content'] %}
{%- if part['type'] == 'text' %}{{- part['text'] }}
{%- elif part['type'] == 'image' %}{{- 'IMAGE' }}
{%- elif part['type'] == 'video' %}{{- 'VIDEO' }}
{%- elif part['type'] == 'audio' %}{{- 'AUDIO' }}
{%- endif %}{%- endfor %}{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}
"""
# What stands for a picture, a video and a sound in a prompt, by the beginning of the architecture's name.
_QWEN = "<|vision_start|><|%s_pad|><|vision_end|>"
_PLACEHOLDERS = {
    "Qwen2Audio": ("", "", "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    "Qwen2": (_QWEN % "image", _QWEN % "video", ""),
    "LlavaOnevision": ("<image>", "<video>", ""),
    "Llava": ("<image>", "", ""),
    "Mllama": ("<|image|>", "", ""),
}


def has_demo_vlm() -> bool:
    """Whether the demo model that sees is here."""
    return (DEMO_VLM / "config.json").is_file() and (DEMO_VLM / "model.safetensors").is_file()


def find_or_write_vlm(folder: str | Path) -> str:
    """The demo model's folder; without one, a random Qwen2-VL is written into `folder`."""
    return str(DEMO_VLM) if has_demo_vlm() else write_vlm_twin(folder)


def write_vlm_twin(
    folder: str | Path, architecture: str = "Qwen2VLForConditionalGeneration"
) -> str:
    """A random checkpoint of an architecture, with processor, tokenizer and a chat template. Raises ConfigError for an unknown one."""
    from sglang.verify.media_tiny import write_media_config  # late: it imports torch
    from sglang.verify.tiny import tiny_config

    written = write_media_config(tiny_config(architecture), Path(folder))
    (written / "chat_template.jinja").write_text(template_of(architecture), encoding="utf-8")
    return str(written)


def template_of(architecture: str) -> str:
    """A chat template with the placeholders of an architecture. Raises ValueError for one without."""
    for name, placeholders in _PLACEHOLDERS.items():
        if architecture.startswith(name):
            template = _TEMPLATE
            for kind, text in zip(("IMAGE", "VIDEO", "AUDIO"), placeholders, strict=True):
                template = template.replace(kind, text)
            return template
    raise ValueError(
        f"no placeholders are known for {architecture!r}; known: {', '.join(_PLACEHOLDERS)}"
    )
