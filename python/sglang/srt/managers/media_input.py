"""Deals the media of a call out to its prompts. Looks at shapes only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.utils.errors import RequestError

MEDIA_FIELDS = ("image_data", "video_data", "audio_data")


@dataclasses.dataclass(slots=True)
class PromptMedia:
    """The media of one prompt as the caller wrote them.

    `is_local`: the caller is this machine's own user, who may name any file.
    """

    image_data: list[Any]
    video_data: list[Any]
    audio_data: list[Any]
    is_local: bool = False

    def counts(self) -> dict[str, int]:
        """Items by kind; a prepared dict counts as one."""
        return {name.removesuffix("_data"): len(getattr(self, name)) for name in MEDIA_FIELDS}


def media_of_prompts(obj: GenerateReqInput, size: int, is_list: bool) -> list[PromptMedia | None]:
    """One entry per prompt, None for a prompt without media. Raises RequestError for lists of a wrong length."""
    columns = [_column(name, getattr(obj, name), size, is_list) for name in MEDIA_FIELDS]
    return [
        PromptMedia(images, videos, audios, obj.media_is_local)
        if images or videos or audios
        else None
        for images, videos, audios in zip(*columns, strict=True)
    ]


def _column(name: str, value: Any, size: int, is_list: bool) -> list[list[Any]]:
    """For a single prompt an item or a list of them; for a batch one entry per prompt, each an item, a list, or None."""
    if value is None:
        return [[] for _ in range(size)]
    if not is_list:
        items = _items(value)
        # A list of lists is a batch of one.
        is_nested = len(items) == 1 and isinstance(items[0], (list, tuple))
        return [_items(items[0]) if is_nested and name != "video_data" else items]
    if not isinstance(value, (list, tuple)):
        return [[value] for _ in range(size)]
    if len(value) != size:
        raise RequestError(f"{name} has {len(value)} entries for {size} prompts")
    return [_items(entry) for entry in value]


def _items(value: Any) -> list[Any]:
    if value is None:
        return []
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if item is not None]


def describe_media(value: Any) -> Any:
    """Media for a log: kinds and sizes, never content."""
    if isinstance(value, (list, tuple)):
        return [describe_media(item) for item in value[:16]]
    if isinstance(value, str):
        is_url = value[:8].lower().startswith(("http://", "https://"))
        return value[:200] if is_url else f"<{len(value)} characters>"
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return f"<prepared: {', '.join(map(str, list(value)[:8]))}>"
    return None if value is None else f"<{type(value).__name__}>"
