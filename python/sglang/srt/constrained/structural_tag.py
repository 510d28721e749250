"""Reading structural tags: free text in which certain parts follow a schema."""

from __future__ import annotations

from typing import Any

import msgspec

from sglang.srt.constrained.base import InvalidGrammarError


def read_structural_tag(text: str) -> dict[str, Any]:
    """The tag as an object with a `format`.

    The older form `{"structures": [{"begin", "schema", "end"}], "triggers": [...]}` is rewritten as a format of type
    `triggered_tags`. Raises InvalidGrammarError.
    """
    try:
        tag = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidGrammarError(f"a structural tag is a JSON object: {error}") from error
    if not isinstance(tag, dict):
        raise InvalidGrammarError("a structural tag is a JSON object")
    if "structures" in tag:
        return {"type": "structural_tag", "format": _from_structures(tag)}
    if not isinstance(tag.get("format"), dict):
        raise InvalidGrammarError(
            "a structural tag needs a `format`, or `structures` and `triggers`"
        )
    return tag


def _from_structures(tag: dict[str, Any]) -> dict[str, Any]:
    structures, triggers = tag["structures"], tag.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list) or not triggers:
        raise InvalidGrammarError("`structures` and `triggers` must be lists that are not empty")
    tags = []
    for item in structures:
        if not isinstance(item, dict) or not {"begin", "schema", "end"} <= item.keys():
            raise InvalidGrammarError("each of `structures` needs begin, schema and end")
        content = {"type": "json_schema", "json_schema": item["schema"]}
        tags.append({"type": "tag", "begin": item["begin"], "content": content, "end": item["end"]})
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}
