"""Chat messages as clients write them, turned into what a template takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sglang.srt.entrypoints.openai.protocol import ChatMessage
from sglang.srt.multimodal.media.data import ImageData
from sglang.srt.utils.errors import RequestError

_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = {
    "image_url": "image",
    "video_url": "video",
    "audio_url": "audio",
    "input_audio": "audio",
}


@dataclasses.dataclass
class MessageMedia:
    """Sources of the media in a conversation, in order."""

    images: list[Any] = dataclasses.field(default_factory=list)
    videos: list[Any] = dataclasses.field(default_factory=list)
    audios: list[Any] = dataclasses.field(default_factory=list)


def template_messages(
    messages: list[ChatMessage], media: MessageMedia | None = None
) -> list[dict[str, Any]]:
    """Plain dicts with the keys that are set; content is a string or a list of parts.

    A media part becomes `{"type": "image"}` (or video, audio), and its source joins `media`.

    Raises:
        RequestError: parts that are malformed, media without `media` (the model takes text only), or tool-call arguments that are
            not JSON.
    """
    return [_template_message(message, media) for message in messages]


def split_final_assistant(
    messages: list[dict[str, Any]], continue_final_message: bool
) -> tuple[list[dict[str, Any]], str]:
    """Messages and the beginning of the answer.

    A final assistant message is that beginning with `continue_final_message`. Without, it becomes a user message: a
    template would end it and open another assistant turn, which models are not trained on.
    """
    if not messages or messages[-1]["role"] != "assistant":
        return messages, ""
    if not continue_final_message:
        return [*messages[:-1], {**messages[-1], "role": "user"}], ""
    return messages[:-1], _joined(messages[-1].get("content"))


def _template_message(message: ChatMessage, media: MessageMedia | None) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": _content(message, media)}
    for key in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, key)
        if value is not None:
            result[key] = value
    if message.tool_calls:
        result["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return result


def _content(message: ChatMessage, media: MessageMedia | None) -> str | list[dict[str, Any]]:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return [_part(part, media) for part in message.content]


def _part(part: dict[str, Any], media: MessageMedia | None) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _MEDIA_PARTS:
        return _media_part(kind, part.get(kind), media)
    if kind not in _TEXT_PARTS:
        allowed = "text" if media is None else f"text, {', '.join(_MEDIA_PARTS)}"
        raise RequestError(
            f"content part of type {str(kind)[:80]!r} is unknown; allowed: {allowed}"
        )
    if not isinstance(part.get("text"), str):
        raise RequestError('a content part of type "text" needs a string "text"')
    return {"type": "text", "text": part["text"]}


def _media_part(kind: str, value: Any, media: MessageMedia | None) -> dict[str, Any]:
    """Collects the source. `value` is `{"url": ...}`, for short the URL itself, or `{"data": base64}`."""
    if media is None:
        raise RequestError(f"content part of type {kind!r}: this model takes text only")
    fields = value if isinstance(value, dict) else {"url": value}
    key = "data" if kind == "input_audio" else "url"
    source = fields.get(key)
    if not isinstance(source, str):
        raise RequestError(
            f'a content part of type {kind!r} needs {{"{kind}": {{"{key}": "..."}}}}'
        )
    modality = _MEDIA_PARTS[kind]
    if modality == "image":
        detail = fields.get("detail") or "auto"
        if detail not in ("auto", "low", "high"):
            raise RequestError(f"detail is {ascii(detail)[:40]}; allowed: auto, low, high")
        media.images.append(ImageData(source, detail))
    else:
        (media.videos if modality == "video" else media.audios).append(source)
    return {"type": modality}


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, which is what templates print."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError('every entry of tool_calls needs {"function": {"name", "arguments"}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"tool_calls: arguments of {function['name']!r} are not JSON: {error}"
            ) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _joined(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if part["type"] == "text")
    return content or ""
