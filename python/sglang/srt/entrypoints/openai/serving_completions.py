"""`POST /v1/completions`: a prompt, or several, continued."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from sglang.srt.entrypoints.http.streaming import EventStream, JSONResponse, event
from sglang.srt.entrypoints.openai.logprobs import LogprobCursor, completion_logprobs
from sglang.srt.entrypoints.openai.protocol import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
    Metadata,
    Usage,
)
from sglang.srt.entrypoints.openai.response_format import grammar_params
from sglang.srt.entrypoints.openai.sampling_fields import (
    cache_key,
    refuse_unsupported,
    sampling_params,
)
from sglang.srt.entrypoints.openai.serving_base import (
    Generator,
    ServingSettings,
    end_with_done,
    generate_all,
    generate_stream,
    new_request_id,
    now,
    raise_if_aborted,
    response_id,
)
from sglang.srt.entrypoints.openai.usage import UsageCounter
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.utils.errors import RequestError

_DEFAULT_MAX_TOKENS = 16


class CompletionServing:
    """Answers completions."""

    def __init__(self, manager: Generator, settings: ServingSettings) -> None:
        self._manager = manager
        self._settings = settings

    async def answer(self, body: CompletionRequest, request: Request) -> JSONResponse | EventStream:
        """Raises RequestError, ServiceError and ClientGoneError; a stream only before its first event."""
        obj = self._engine_request(body)
        view = _View(body, self._echo_texts(body))
        usage = UsageCounter(body.n or 1, self._settings.report_cached)
        if body.stream:
            items = await generate_stream(self._manager, obj, request)
            stream = _CompletionStream(body, response_id(obj.rid), view, usage)
            return EventStream(end_with_done(stream.events(items)))
        samples = await generate_all(self._manager, obj, request)
        return JSONResponse(self._completion(body, response_id(obj.rid), samples, view, usage))

    def _engine_request(self, body: CompletionRequest) -> GenerateReqInput:
        refuse_unsupported(body)
        _check(body)
        max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        params = sampling_params(body, max_tokens, {"temperature": 1.0, "top_p": 1.0})
        params |= grammar_params(body, body.json_schema)
        prompt: Any = body.prompt
        is_text = _is_text(prompt)
        return GenerateReqInput(
            text=prompt if is_text else None,
            input_ids=None if is_text else prompt,
            sampling_params=params,
            return_logprob=body.logprobs is not None,
            top_logprobs_num=body.logprobs or 0,
            logprob_start_len=0 if body.echo and body.logprobs is not None else -1,
            return_text_in_logprobs=True,
            stream=bool(body.stream),
            rid=body.rid or new_request_id(),
            priority=body.priority,
            extra_key=cache_key(body),
        )

    def _echo_texts(self, body: CompletionRequest) -> list[str]:
        """The text of every prompt; empty without `echo`."""
        if not body.echo:
            return []
        prompts: list[Any] = [body.prompt]
        if isinstance(body.prompt, list) and not isinstance(body.prompt[0], int):
            prompts = list(body.prompt)
        if all(isinstance(prompt, str) for prompt in prompts):
            return prompts
        if self._manager.tokenizer is None:
            raise RequestError("echo of token ids needs a tokenizer; this server has none")
        try:
            return [self._manager.tokenizer.decode(prompt) for prompt in prompts]
        except (OverflowError, TypeError, ValueError, IndexError) as error:
            raise RequestError(
                f"prompt holds a token id that cannot be decoded: {error}"
            ) from error

    def _completion(
        self,
        body: CompletionRequest,
        rid: str,
        samples: list[dict[str, Any]],
        view: _View,
        usage: UsageCounter,
    ) -> Completion:
        for index, sample in enumerate(samples):
            usage.update(index, sample["meta_info"])
        first = samples[0]["meta_info"]
        return Completion(
            id=rid,
            created=now(),
            model=body.model,
            choices=[view.choice(index, sample) for index, sample in enumerate(samples)],
            usage=usage.total(),
            metadata=Metadata(first.get("weight_version", self._settings.weight_version)),
        )


class _View:
    """What a choice shows: the echoed prompt, the new text, the logprobs that were asked for."""

    def __init__(self, body: CompletionRequest, echo_texts: list[str]) -> None:
        self._body = body
        self._echo_texts = echo_texts

    def choice(self, index: int, sample: dict[str, Any]) -> CompletionChoice:
        meta_info = sample["meta_info"]
        return CompletionChoice(
            index=index,
            text=self.echo(index) + sample["text"],
            logprobs=self.logprobs(LogprobCursor(), meta_info, is_first=True),
            finish_reason=meta_info["finish_reason"]["type"],
            matched_stop=meta_info["finish_reason"].get("matched"),
        )

    def echo(self, index: int) -> str:
        return self._echo_texts[index // (self._body.n or 1)] if self._echo_texts else ""

    def logprobs(
        self, cursor: LogprobCursor, meta_info: dict[str, Any], is_first: bool
    ) -> CompletionLogprobs | None:
        """New logprobs; the prompt's come with the first ones when it is echoed."""
        if self._body.logprobs is None:
            return None
        tokens, tops = cursor.take(meta_info)
        if is_first and self._body.echo:
            prompt = list(meta_info.get("input_token_logprobs") or [])
            prompt_tops = list(meta_info.get("input_top_logprobs") or [None] * len(prompt))
            tokens, tops = prompt + tokens, prompt_tops + tops
        return completion_logprobs(tokens, tops, want_top=self._body.logprobs > 0)


@dataclasses.dataclass
class _Progress:
    """How much of one choice has been sent."""

    num_chars: int = 0
    logprobs: LogprobCursor = dataclasses.field(default_factory=LogprobCursor)


class _CompletionStream:
    """Turns the engine's cumulative items into chunks with what is new."""

    def __init__(self, body: CompletionRequest, rid: str, view: _View, usage: UsageCounter) -> None:
        self._body = body
        self._id = rid
        self._created = now()
        self._view = view
        self._usage = usage
        self._progress: dict[int, _Progress] = {}

    async def events(self, items: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(items) as closing:  # type: ignore[type-var]
            async for item in closing:
                for chunk in self._chunks(item):
                    yield event(chunk)
        if self._body.include_usage:
            yield event(self._chunk([], self._usage.total()))

    def _chunks(self, item: dict[str, Any]) -> list[CompletionChunk]:
        raise_if_aborted(item)
        index, meta_info = item.get("index", 0), item["meta_info"]
        self._usage.update(index, meta_info)
        is_first = index not in self._progress
        progress = self._progress.setdefault(index, _Progress())
        text, progress.num_chars = item["text"][progress.num_chars :], len(item["text"])
        if is_first:
            text = self._view.echo(index) + text
        logprobs = self._view.logprobs(progress.logprobs, meta_info, is_first)
        chunks = []
        if text or is_first or (logprobs is not None and logprobs.tokens):
            usage = self._usage.of(index) if self._body.continuous_usage else None
            choice = CompletionChoice(index=index, text=text, logprobs=logprobs)
            chunks.append(self._chunk([choice], usage))
        if meta_info["finish_reason"]:
            chunks.append(self._final_chunk(index, meta_info["finish_reason"]))
        return chunks

    def _final_chunk(self, index: int, finish_reason: dict[str, Any]) -> CompletionChunk:
        choice = CompletionChoice(
            index=index,
            text="",
            finish_reason=finish_reason["type"],
            matched_stop=finish_reason.get("matched"),
        )
        return self._chunk([choice], None)

    def _chunk(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionChunk:
        return CompletionChunk(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
        )


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise RequestError("suffix is not supported by this server; leave it out")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError("best_of is supported only when it equals n; leave it out")


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], str)
