"""Chat messages as clients write them, turned into what a template takes."""

from __future__ import annotations

import json
from typing import Any

from sglang.srt.entrypoints.openai.protocol import ChatMessage
from sglang.srt.utils.errors import RequestError

_MEDIA_PARTS = ("image_url", "video_url", "audio_url", "input_audio")


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Plain dicts with the keys that are set; content is a string or a list of text parts.

    Raises:
        RequestError: media parts, or tool-call arguments that are not JSON.
    """
    return [_template_message(message) for message in messages]


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


def _template_message(message: ChatMessage) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": _content(message)}
    for key in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, key)
        if value is not None:
            result[key] = value
    if message.tool_calls:
        result["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return result


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return [_text_part(part) for part in message.content]


def _text_part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _MEDIA_PARTS:
        raise RequestError(f"content part of type {kind!r}: this model takes text only")
    if kind not in ("text", "input_text", "output_text"):
        raise RequestError(f"content part of type {str(kind)[:80]!r} is unknown; allowed: text")
    if not isinstance(part.get("text"), str):
        raise RequestError('a content part of type "text" needs a string "text"')
    return {"type": "text", "text": part["text"]}


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
        return " ".join(part["text"] for part in content)
    return content or ""
