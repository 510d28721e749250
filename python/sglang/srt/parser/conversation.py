"""Conversation templates by name, and the conversation of a chat request.

`Conversation` and `SeparatorStyle` live in modules of their own and are public here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sglang.srt.parser.builtin_templates import builtin_templates, match_builtin
from sglang.srt.parser.conversation_value import Conversation
from sglang.srt.parser.separator_styles import SeparatorStyle

__all__ = [
    "Conversation",
    "SeparatorStyle",
    "chat_template_exists",
    "chat_templates",
    "generate_chat_conv",
    "generate_embedding_convs",
    "get_conv_template_by_model_path",
    "get_model_type",
    "matching_function_registry",
    "register_conv_template",
    "register_conv_template_matching_function",
]

MatchingFunction = Callable[[str], "str | None"]

# With more images than this, texts begin on a line of their own.
_MANY_IMAGES = 16


def get_model_type(model_path: str) -> str | None:
    """`model_type` of a local config.json; None without one."""
    path = Path(model_path) / "config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        return None


def _match_builtin(model_path: str) -> str | None:
    return match_builtin(model_path, get_model_type(model_path))


chat_templates: dict[str, Conversation] = {item.name: item for item in builtin_templates()}
matching_function_registry: list[MatchingFunction] = [_match_builtin]


def register_conv_template(template: Conversation, override: bool = False) -> None:
    """Add a template under its name. Raises AssertionError for a name that is taken, unless `override`."""
    assert override or template.name not in chat_templates, (
        f"a conversation template named {template.name!r} is registered already; pass override=True to replace it"
    )
    chat_templates[template.name] = template


def register_conv_template_matching_function(func: MatchingFunction) -> MatchingFunction:
    """Decorator: `func(model_path)` returns a template's name or None. Functions are asked in order of registration."""
    matching_function_registry.append(func)
    return func


def get_conv_template_by_model_path(model_path: str) -> str | None:
    """The first name that a matching function gives; None when none does."""
    answers = (function(model_path) for function in matching_function_registry)
    return next((name for name in answers if name is not None), None)


def chat_template_exists(template_name: str) -> bool:
    return template_name in chat_templates


def generate_chat_conv(request: Any, template_name: str) -> Conversation:
    """The conversation of a chat request: messages as turns, media as tokens and sources, an open assistant turn at the end.

    Args:
        request: has `messages`, each with `role` and `content` (a string or a list of parts).

    Raises ValueError for a role or a part that the template has no place for.
    """
    conv = chat_templates[template_name].copy()
    conv.messages = []
    num_images = sum(_count_images(message.content) for message in request.messages)
    for message in request.messages:
        if message.role in ("system", "developer"):
            conv.system_message = _only_text(message)
        elif message.role == "user":
            conv.append_message(conv.roles[0], _user_text(conv, message.content, num_images))
        elif message.role == "assistant":
            conv.append_message(conv.roles[1], _only_text(message))
        else:
            raise ValueError(
                f"a message of role {message.role!r} has no place in the conversation template {template_name!r}; "
                "allowed: system, user, assistant"
            )
    conv.append_message(conv.roles[1], None)
    return conv


def generate_embedding_convs(
    texts: Iterable[str | None],
    images: Iterable[Any],
    videos: Iterable[Any],
    template_name: str,
) -> list[Conversation]:
    """One conversation per triple of text, image and video (each may be None), for models that embed them."""
    convs = []
    for text, image, video in zip(texts, images, videos, strict=True):
        conv = chat_templates[template_name].copy()
        conv.messages = []
        content = ""
        if image is not None:
            content += conv.image_token + ("" if template_name == "gme-qwen2-vl" else "\n")
            conv.append_image(image)
        if video is not None:
            content += conv.video_token
            conv.append_video(video)
        conv.append_message(conv.roles[0], content + (text or ""))
        conv.append_message(conv.roles[1], None)
        convs.append(conv)
    return convs


def _count_images(content: Any) -> int:
    parts = content if isinstance(content, list) else []
    return sum(part.get("type") == "image_url" for part in parts)


def _only_text(message: Any) -> str:
    content = message.content
    if isinstance(content, list):
        if len(content) == 1 and content[0].get("type") == "text":
            return content[0].get("text") or ""
        raise ValueError(f"the content of a {message.role} message must be one text")
    return content or ""


def _user_text(conv: Conversation, content: Any, num_images: int) -> str:
    """The text of a user's turn; the sources of its media go to the conversation."""
    if not isinstance(content, list):
        return content or ""
    text = ""
    for part in content:
        kind = part.get("type")
        if kind == "text":
            text += ("\n" if num_images > _MANY_IMAGES else "") + part["text"]
        elif kind == "image_url":
            text = _with_image(conv, text)
            _record_image(conv, part)
        elif kind == "video_url":
            text += conv.video_token
            conv.append_video(part["video_url"]["url"])
        elif kind == "audio_url":
            text += conv.audio_token
            conv.append_audio(part["audio_url"]["url"])
        else:
            raise ValueError(f"a content part of type {kind!r} has no place in a user message")
    return _with_missing_tokens(conv, text, _count_images(content))


def _with_image(conv: Conversation, text: str) -> str:
    if conv.name == "deepseek-vl2":  # its tokens may stand in the text already
        return text
    token = conv.image_token if conv.name == "qwen2-vl" else conv.image_token + "\n"
    return token + text if conv.image_token_at_prefix else text + token


def _record_image(conv: Conversation, part: dict[str, Any]) -> None:
    image = part["image_url"]
    conv.append_image(image["url"], image.get("detail") or "auto")
    if part.get("modalities"):
        conv.modalities = [*(conv.modalities or []), part["modalities"]]


def _with_missing_tokens(conv: Conversation, text: str, num_images: int) -> str:
    if conv.name != "deepseek-vl2":
        return text
    missing = num_images - text.count(conv.image_token)
    if missing < 0:
        raise ValueError(
            f"the text has {num_images - missing} image tokens for {num_images} images; give one image per token"
        )
    return f"{conv.image_token}\n" * missing + text
