"""`POST /v1/chat/completions`: messages in, one or several answers out, whole or as a stream."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sglang.srt.entrypoints.http.streaming import EventStream, JSONResponse
from sglang.srt.entrypoints.openai.answer import Sample, ending, respond
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
)
from sglang.srt.entrypoints.openai.response_format import grammar_params
from sglang.srt.entrypoints.openai.sampling_fields import (
    refuse_unsupported,
    sampling_params,
)
from sglang.srt.entrypoints.openai.serving_base import (
    Generator,
    ServingSettings,
    engine_request,
)
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
        return await respond(self._manager, self._settings, body, obj, _ChatView(body), request)

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
        return engine_request(
            body,
            params,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            input_ids=prompt.input_ids,
            image_data=media.images or None,
            video_data=media.videos or None,
            audio_data=media.audios or None,
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


class _ChatView:
    """Samples as messages; a stream opens each with its role."""

    whole_type = ChatCompletion
    chunk_type = ChatCompletionChunk

    def __init__(self, body: ChatCompletionRequest) -> None:
        self._with_logprobs = bool(body.logprobs)

    def choice(self, index: int, sample: Sample) -> ChatChoice:
        meta_info = sample["meta_info"]
        return ChatChoice(
            index=index,
            message=AnswerMessage(role="assistant", content=sample["text"]),
            logprobs=chat_logprobs(*LogprobCursor().take(meta_info))
            if self._with_logprobs
            else None,
            **ending(meta_info["finish_reason"]),
        )

    def opening(
        self, index: int, text: str, logprobs: LogprobCursor, sample: Sample
    ) -> list[ChatChunkChoice]:
        role = ChatChunkChoice(index=index, delta=AnswerMessage(role="assistant", content=""))
        return [role, *self.news(index, text, logprobs, sample)]

    def news(
        self, index: int, text: str, logprobs: LogprobCursor, sample: Sample
    ) -> list[ChatChunkChoice]:
        shown = self._new_logprobs(logprobs, sample)
        if not text and shown is None:
            return []
        return [ChatChunkChoice(index=index, delta=AnswerMessage(content=text), logprobs=shown)]

    def end(self, index: int, finish_reason: dict[str, Any]) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=AnswerMessage(), **ending(finish_reason))

    def _new_logprobs(self, cursor: LogprobCursor, sample: Sample) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        tokens, tops = cursor.take(sample["meta_info"])
        return chat_logprobs(tokens, tops) if tokens else None


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
