"""What the two generating OpenAI routes share: the engine's request and call, its refusals, and the end of a stream."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from starlette.requests import Request

from sglang.srt.entrypoints.http.errors import abort_error, openai_stream_error
from sglang.srt.entrypoints.http.streaming import DONE_EVENT, event, single, with_first
from sglang.srt.entrypoints.openai.protocol import GenerationRequest
from sglang.srt.entrypoints.openai.sampling_fields import cache_key
from sglang.srt.managers.io_struct import GenerateReqInput


class Generator(Protocol):
    """The part of the tokenizer manager that the OpenAI routes need."""

    tokenizer: Any

    def generate_request(
        self, obj: GenerateReqInput, request: Any = None
    ) -> AsyncIterator[Any]: ...


@dataclasses.dataclass(frozen=True)
class ServingSettings:
    """What the routes know about the served model."""

    served_model_name: str
    context_len: int  # tokens
    sampling_defaults: Mapping[str, Any]
    report_cached: bool
    weight_version: str
    created: int  # seconds since the epoch
    takes_media: bool = False


def engine_request(
    body: GenerationRequest, params: dict[str, Any], top_logprobs: int | None, **prompt: Any
) -> GenerateReqInput:
    """The engine's form of a request.

    Args:
        params: sampling parameters.
        top_logprobs: alternatives per position; None: no logprobs at all.
        prompt: the fields that hold the prompt.
    """
    return GenerateReqInput(
        sampling_params=params,
        return_logprob=top_logprobs is not None,
        top_logprobs_num=top_logprobs or 0,
        return_text_in_logprobs=True,
        stream=bool(body.stream),
        rid=body.rid or new_request_id(),
        priority=body.priority,
        extra_key=cache_key(body),
        **prompt,
    )


def new_request_id() -> str:
    return uuid.uuid4().hex


def response_id(rid: str | list[str] | None) -> str:
    """The `id` of an answer: the request id, the first of several."""
    return str(rid[0] if isinstance(rid, list) else rid)


def now() -> int:
    return int(time.time())


async def generate_all(
    manager: Generator, obj: GenerateReqInput, request: Request
) -> list[dict[str, Any]]:
    """Every sample, ordered by prompt then sample.

    Raises:
        RequestError, ServiceError: the request was refused or failed.
        ClientGoneError: the client left.
    """
    answer = await single(request, manager.generate_request(obj))
    samples = answer if isinstance(answer, list) else [answer]
    for sample in samples:
        raise_if_aborted(sample)
    return samples


async def generate_stream(
    manager: Generator, obj: GenerateReqInput, request: Request
) -> AsyncIterator[dict[str, Any]]:
    """Items of a stream; returns once the first one is there. Raises as `generate_all`."""
    return await with_first(request, manager.generate_request(obj), check=raise_if_aborted)


async def end_with_done(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Events, an error event if they fail midway, and the end mark."""
    async with contextlib.aclosing(events) as closing:  # type: ignore[type-var]
        try:
            async for item in closing:
                yield item
        except Exception as error:  # the boundary of the request: the status line is sent already
            yield event(openai_stream_error(error))
    yield DONE_EVENT


def raise_if_aborted(item: dict[str, Any]) -> None:
    """Raise the error behind a sample that the server gave up."""
    error = abort_error(item["meta_info"]["finish_reason"])
    if error is not None:
        raise error
