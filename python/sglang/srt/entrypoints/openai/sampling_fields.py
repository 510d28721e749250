"""The sampling fields of an OpenAI request as the engine's sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sglang.srt.entrypoints.openai.protocol import UNSUPPORTED_FIELDS, GenerationRequest
from sglang.srt.utils.errors import RequestError

# The keys of generation_config.json that `--sampling-defaults model` takes over.
_MODEL_DEFAULT_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Request field -> sampling parameter; None in the request leaves the parameter at its default.
_RENAMED = {"min_tokens": "min_new_tokens", "seed": "sampling_seed"}
_COPIED = (
    *_MODEL_DEFAULT_KEYS,
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "n",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "no_stop_trim",
    "ignore_eos",
    "skip_special_tokens",
    "custom_params",
    *_RENAMED,
)


def model_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults that a model brings; keys that it leaves unset or null are absent."""
    found = {key: generation_config.get(key) for key in _MODEL_DEFAULT_KEYS}
    found = {key: value for key, value in found.items() if value is not None}
    if found.get("top_k") == 0:  # Transformers' spelling of "off"
        found["top_k"] = -1
    return found


def sampling_params(
    request: GenerationRequest, max_new_tokens: int | None, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Keys of `SamplingParams` that the request or `defaults` set. Ranges are checked later, with all others."""
    given = {_RENAMED.get(key, key): getattr(request, key) for key in _COPIED}
    given = {key: value for key, value in given.items() if value is not None}
    return {**defaults, **given, "max_new_tokens": max_new_tokens}


def refuse_unsupported(request: GenerationRequest) -> None:
    """Raise RequestError for a set field whose subject is not implemented."""
    for name in UNSUPPORTED_FIELDS:
        if getattr(request, name) not in (None, False, ""):
            raise RequestError(f"{name} is not supported by this server; leave it out")


def cache_key(request: GenerationRequest) -> str | None:
    """The key that keeps prefix caches apart. A salt and a key are joined so that no two pairs give the same text."""
    if request.cache_salt is None:
        return request.extra_key
    return json.dumps([request.cache_salt, request.extra_key])
