"""`POST /v1/chat/completions`: messages in, one or several answers out, whole or as a stream."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from sglang.srt.entrypoints.http.streaming import EventStream, JSONResponse, event
from sglang.srt.entrypoints.openai.chat_prompt import ChatPrompt
from sglang.srt.entrypoints.openai.chat_template import ChatTemplates
from sglang.srt.entrypoints.openai.logprobs import LogprobCursor, chat_logprobs
from sglang.srt.entrypoints.openai.messages import (
    MessageMedia,
    split_final_assistant,
    template_messages,
)
from sglang.srt.entrypoints.openai.protocol import (
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatLogprobs,
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


class ChatServing:
    """Answers chat completions. `templates` is None for a server without a tokenizer."""

    def __init__(
        self, manager: Generator, templates: ChatTemplates | None, settings: ServingSettings
    ) -> None:
        self._manager = manager
        self._templates = templates
        self._settings = settings

    async def answer(
        self, body: ChatCompletionRequest, request: Request
    ) -> JSONResponse | EventStream:
        """Raises RequestError, ServiceError and ClientGoneError; a stream only before its first event."""
        obj = await self._engine_request(body)
        if body.stream:
            items = await generate_stream(self._manager, obj, request)
            stream = _ChatStream(body, response_id(obj.rid), self._usage_counter(body))
            return EventStream(end_with_done(stream.events(items)))
        samples = await generate_all(self._manager, obj, request)
        return JSONResponse(self._completion(body, response_id(obj.rid), samples))

    async def _engine_request(self, body: ChatCompletionRequest) -> GenerateReqInput:
        refuse_unsupported(body)
        _check(body)
        params = sampling_params(body, body.token_limit, self._settings.sampling_defaults)
        params |= grammar_params(body)
        media = MessageMedia() if self._settings.takes_media else None
        prompt = await self._prompt(body, media)
        if prompt.stop:
            params["stop"] = [*_listed(params.get("stop")), *prompt.stop]
        media = media or MessageMedia()
        return GenerateReqInput(
            input_ids=prompt.input_ids,
            image_data=media.images or None,
            video_data=media.videos or None,
            audio_data=media.audios or None,
            sampling_params=params,
            return_logprob=bool(body.logprobs),
            top_logprobs_num=body.top_logprobs or 0,
            return_text_in_logprobs=True,
            stream=bool(body.stream),
            rid=body.rid or new_request_id(),
            priority=body.priority,
            extra_key=cache_key(body),
        )

    async def _prompt(self, body: ChatCompletionRequest, media: MessageMedia | None) -> ChatPrompt:
        """The prompt; sources of media in the messages join `media`."""
        if self._templates is None:
            raise RequestError(
                "this server runs with --skip-tokenizer-init, which leaves no chat template; "
                "use /generate with input_ids"
            )
        messages, prefix = split_final_assistant(
            template_messages(body.messages, media), body.continue_final_message
        )
        return await self._templates.encode(
            messages, variables=_template_variables(body), prefix=prefix
        )

    def _completion(
        self, body: ChatCompletionRequest, rid: str, samples: list[dict[str, Any]]
    ) -> ChatCompletion:
        usage = self._usage_counter(body)
        for index, sample in enumerate(samples):
            usage.update(index, sample["meta_info"])
        first = samples[0]["meta_info"]
        return ChatCompletion(
            id=rid,
            created=now(),
            model=body.model,
            choices=[_choice(index, sample, body) for index, sample in enumerate(samples)],
            usage=usage.total(),
            metadata=Metadata(first.get("weight_version", self._settings.weight_version)),
        )

    def _usage_counter(self, body: ChatCompletionRequest) -> UsageCounter:
        return UsageCounter(body.n or 1, self._settings.report_cached)


@dataclasses.dataclass
class _Progress:
    """How much of one choice has been sent."""

    num_chars: int = 0
    logprobs: LogprobCursor = dataclasses.field(default_factory=LogprobCursor)


class _ChatStream:
    """Turns the engine's cumulative items into chunks with what is new."""

    def __init__(self, body: ChatCompletionRequest, rid: str, usage: UsageCounter) -> None:
        self._body = body
        self._id = rid
        self._created = now()
        self._usage = usage
        self._progress: dict[int, _Progress] = {}

    async def events(self, items: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(items) as closing:  # type: ignore[type-var]
            async for item in closing:
                for chunk in self._chunks(item):
                    yield event(chunk)
        if self._body.include_usage:
            yield event(self._chunk([], self._usage.total()))

    def _chunks(self, item: dict[str, Any]) -> list[ChatCompletionChunk]:
        raise_if_aborted(item)
        index, meta_info = item.get("index", 0), item["meta_info"]
        self._usage.update(index, meta_info)
        chunks = []
        if index not in self._progress:
            self._progress[index] = _Progress()
            opening = AnswerMessage(role="assistant", content="")
            chunks.append(self._content_chunk(index, opening, None))
        progress = self._progress[index]
        text, progress.num_chars = item["text"][progress.num_chars :], len(item["text"])
        logprobs = self._new_logprobs(progress, meta_info)
        if text or logprobs is not None:
            chunks.append(self._content_chunk(index, AnswerMessage(content=text), logprobs))
        if meta_info["finish_reason"]:
            chunks.append(self._final_chunk(index, meta_info["finish_reason"]))
        return chunks

    def _new_logprobs(self, progress: _Progress, meta_info: dict[str, Any]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        tokens, tops = progress.logprobs.take(meta_info)
        return chat_logprobs(tokens, tops) if tokens else None

    def _content_chunk(
        self, index: int, delta: AnswerMessage, logprobs: ChatLogprobs | None
    ) -> ChatCompletionChunk:
        usage = self._usage.of(index) if self._body.continuous_usage else None
        return self._chunk([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs)], usage)

    def _final_chunk(self, index: int, finish_reason: dict[str, Any]) -> ChatCompletionChunk:
        choice = ChatChunkChoice(
            index=index,
            delta=AnswerMessage(),
            finish_reason=finish_reason["type"],
            matched_stop=finish_reason.get("matched"),
        )
        return self._chunk([choice], None)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
        )


def _choice(index: int, sample: dict[str, Any], body: ChatCompletionRequest) -> ChatChoice:
    meta_info = sample["meta_info"]
    finish_reason = meta_info["finish_reason"]
    logprobs = None
    if body.logprobs:
        logprobs = chat_logprobs(*LogprobCursor().take(meta_info))
    return ChatChoice(
        index=index,
        message=AnswerMessage(role="assistant", content=sample["text"]),
        logprobs=logprobs,
        finish_reason=finish_reason["type"],
        matched_stop=finish_reason.get("matched"),
    )


def _check(body: ChatCompletionRequest) -> None:
    if isinstance(body.rid, list):
        raise RequestError("rid must be a string: a chat request has one prompt")
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true")
    _check_tools(body)


def _check_tools(body: ChatCompletionRequest) -> None:
    """Tool calls are not implemented: refuse every request whose answer could hold one."""
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    if not body.tools:
        if choice not in ("auto", "none"):
            raise RequestError(f"tool_choice={str(choice)[:80]!r} needs tools")
        return
    if choice != "none":
        raise RequestError(
            'tools are not supported by this server; leave them out or set tool_choice to "none"'
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _template_variables(body: ChatCompletionRequest) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    reasoning = body.reasoning or {}
    effort = body.reasoning_effort or reasoning.get("effort")
    if effort is not None:
        variables["reasoning_effort"] = effort
    if reasoning.get("enabled") is not None:
        # The two names that templates give the switch.
        variables["thinking"] = variables["enable_thinking"] = bool(reasoning["enabled"])
    return {**variables, **(body.chat_template_kwargs or {})}
