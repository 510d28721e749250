"""What a request says about the form of its answer, as one grammar field of the sampling parameters."""

from __future__ import annotations

import json
from typing import Any

from sglang.srt.entrypoints.openai.protocol import GenerationRequest, ResponseFormat
from sglang.srt.utils.errors import RequestError


def grammar_params(request: GenerationRequest, json_schema: str | None = None) -> dict[str, Any]:
    """`json_schema`, `regex`, `ebnf` or `structural_tag`, or nothing.

    Args:
        json_schema: schema text from a field of its own (completions).

    Raises:
        RequestError: more than one constraint, or a json_schema format without a schema.
    """
    given = {
        "regex": request.regex,
        "ebnf": request.ebnf,
        "json_schema": json_schema,
        **_format_params(request.response_format),
    }
    if json_schema is not None and _format_params(request.response_format):
        raise RequestError("give either json_schema or response_format, not both")
    params = {key: value for key, value in given.items() if value is not None}
    if len(params) > 1:
        raise RequestError(
            f"the answer can follow one constraint only, but {', '.join(sorted(params))} are given"
        )
    return params


def _format_params(response_format: ResponseFormat | None) -> dict[str, Any]:
    if response_format is None or response_format.type == "text":
        return {}
    if response_format.type == "json_object":
        return {"json_schema": '{"type": "object"}'}
    if response_format.type == "structural_tag":
        return {"structural_tag": json.dumps(response_format.model_dump(exclude_none=True))}
    json_schema = response_format.json_schema
    if json_schema is None or json_schema.schema_ is None:
        raise RequestError('response_format of type "json_schema" needs json_schema.schema')
    return {"json_schema": json.dumps(json_schema.schema_)}
