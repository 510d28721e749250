"""From the engine's samples to the answer of an OpenAI route, whole or as a stream.

The routes differ in how they show a sample; each says so in a `View`. All else is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from starlette.requests import Request

from sglang.srt.entrypoints.http.streaming import EventStream, JSONResponse, event
from sglang.srt.entrypoints.openai.logprobs import LogprobCursor
from sglang.srt.entrypoints.openai.protocol import GenerationRequest, Metadata, Usage
from sglang.srt.entrypoints.openai.serving_base import (
    Generator,
    ServingSettings,
    end_with_done,
    generate_all,
    generate_stream,
    now,
    raise_if_aborted,
    response_id,
)
from sglang.srt.entrypoints.openai.usage import UsageCounter
from sglang.srt.managers.io_struct import GenerateReqInput

Sample = dict[str, Any]


class View(Protocol):
    """How the samples of one request are shown."""

    whole_type: Callable[..., Any]  # of an answer
    chunk_type: Callable[..., Any]  # of a piece of a stream

    def choice(self, index: int, sample: Sample) -> Any:
        """A finished sample."""

    def news(self, index: int, text: str, logprobs: LogprobCursor, sample: Sample) -> list[Any]:
        """Choices of chunks, one each, for what is new: `text`, and what `logprobs` has not taken yet."""

    def opening(self, index: int, text: str, logprobs: LogprobCursor, sample: Sample) -> list[Any]:
        """The same for the first news of a sample."""

    def end(self, index: int, finish_reason: dict[str, Any]) -> Any:
        """The choice of a sample's last chunk."""


async def respond(
    manager: Generator,
    settings: ServingSettings,
    body: GenerationRequest,
    obj: GenerateReqInput,
    view: View,
    request: Request,
) -> JSONResponse | EventStream:
    """Ask the engine and show what it says.

    Raises RequestError, ServiceError and ClientGoneError; a stream only before its first event.
    """
    answer = Answer(body, response_id(obj.rid), view, settings)
    if body.stream:
        items = await generate_stream(manager, obj, request)
        return EventStream(end_with_done(answer.events(items)))
    return JSONResponse(answer.whole(await generate_all(manager, obj, request)))


@dataclasses.dataclass
class _Progress:
    """How much of one sample has been sent."""

    num_chars: int = 0
    logprobs: LogprobCursor = dataclasses.field(default_factory=LogprobCursor)


class Answer:
    """The answer to one request."""

    def __init__(
        self, body: GenerationRequest, rid: str, view: View, settings: ServingSettings
    ) -> None:
        self._body = body
        self._view = view
        self._weight_version = settings.weight_version
        self._usage = UsageCounter(body.n or 1, settings.report_cached)
        self._head = {"id": rid, "created": now(), "model": body.model}
        self._progress: dict[int, _Progress] = {}

    def whole(self, samples: list[Sample]) -> Any:
        """Every sample at once, ordered by prompt then sample."""
        for index, sample in enumerate(samples):
            self._usage.update(index, sample["meta_info"])
        version = samples[0]["meta_info"].get("weight_version", self._weight_version)
        return self._view.whole_type(
            **self._head,
            choices=[self._view.choice(index, sample) for index, sample in enumerate(samples)],
            usage=self._usage.total(),
            metadata=Metadata(version),
        )

    async def events(self, items: AsyncIterator[Sample]) -> AsyncIterator[bytes]:
        """Events with what each of the engine's cumulative items adds."""
        async with contextlib.aclosing(items) as closing:  # type: ignore[type-var]
            async for item in closing:
                for chunk in self._chunks(item):
                    yield event(chunk)
        if self._body.include_usage:
            yield event(self._chunk([], self._usage.total()))

    def _chunks(self, item: Sample) -> list[Any]:
        raise_if_aborted(item)
        index, meta_info = item.get("index", 0), item["meta_info"]
        self._usage.update(index, meta_info)
        show = self._view.news if index in self._progress else self._view.opening
        progress = self._progress.setdefault(index, _Progress())
        text, progress.num_chars = item["text"][progress.num_chars :], len(item["text"])
        usage = self._usage.of(index) if self._body.continuous_usage else None
        choices = show(index, text, progress.logprobs, item)
        chunks = [self._chunk([choice], usage) for choice in choices]
        if meta_info["finish_reason"]:
            chunks.append(self._chunk([self._view.end(index, meta_info["finish_reason"])], None))
        return chunks

    def _chunk(self, choices: list[Any], usage: Usage | None) -> Any:
        return self._view.chunk_type(**self._head, choices=choices, usage=usage)


def ending(finish_reason: dict[str, Any]) -> dict[str, Any]:
    """The fields of a choice that say how its sample ended."""
    return {"finish_reason": finish_reason["type"], "matched_stop": finish_reason.get("matched")}
