"""`POST /v1/completions`: a prompt, or several, continued."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sglang.srt.entrypoints.http.streaming import EventStream, JSONResponse
from sglang.srt.entrypoints.openai.answer import Sample, ending, respond
from sglang.srt.entrypoints.openai.logprobs import LogprobCursor, completion_logprobs
from sglang.srt.entrypoints.openai.protocol import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
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

_DEFAULT_MAX_TOKENS = 16


class CompletionServing:
    """Answers completions."""

    def __init__(self, manager: Generator, settings: ServingSettings) -> None:
        self._manager = manager
        self._settings = settings

    async def answer(self, body: CompletionRequest, request: Request) -> JSONResponse | EventStream:
        """Raises RequestError, ServiceError and ClientGoneError; a stream only before its first event."""
        obj = self._engine_request(body)
        view = _CompletionView(body, self._echo_texts(body))
        return await respond(self._manager, self._settings, body, obj, view, request)

    def _engine_request(self, body: CompletionRequest) -> GenerateReqInput:
        refuse_unsupported(body)
        _check(body)
        if self._manager.tokenizer is None:
            raise RequestError(
                "this server runs with --skip-tokenizer-init, which leaves no text to answer with; "
                "use /generate with input_ids"
            )
        max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        params = sampling_params(body, max_tokens, {"temperature": 1.0, "top_p": 1.0})
        params |= grammar_params(body, body.json_schema)
        prompt: Any = body.prompt
        is_text = _is_text(prompt)
        return engine_request(
            body,
            params,
            top_logprobs=body.logprobs,
            text=prompt if is_text else None,
            input_ids=None if is_text else prompt,
            logprob_start_len=0 if body.echo and body.logprobs is not None else -1,
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
        try:
            return [self._manager.tokenizer.decode(prompt) for prompt in prompts]
        except (OverflowError, TypeError, ValueError, IndexError) as error:
            raise RequestError(
                f"prompt holds a token id that cannot be decoded: {error}"
            ) from error


class _CompletionView:
    """Samples as text, behind the echoed prompt when that is wanted."""

    whole_type = Completion
    chunk_type = CompletionChunk

    def __init__(self, body: CompletionRequest, echo_texts: list[str]) -> None:
        self._body = body
        self._echo_texts = echo_texts

    def choice(self, index: int, sample: Sample) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=self._echo(index) + sample["text"],
            logprobs=self._logprobs(LogprobCursor(), sample, is_first=True),
            **ending(sample["meta_info"]["finish_reason"]),
        )

    def opening(
        self, index: int, text: str, logprobs: LogprobCursor, sample: Sample
    ) -> list[CompletionChoice]:
        shown = self._logprobs(logprobs, sample, is_first=True)
        return [CompletionChoice(index=index, text=self._echo(index) + text, logprobs=shown)]

    def news(
        self, index: int, text: str, logprobs: LogprobCursor, sample: Sample
    ) -> list[CompletionChoice]:
        shown = self._logprobs(logprobs, sample, is_first=False)
        if not text and (shown is None or not shown.tokens):
            return []
        return [CompletionChoice(index=index, text=text, logprobs=shown)]

    def end(self, index: int, finish_reason: dict[str, Any]) -> CompletionChoice:
        return CompletionChoice(index=index, text="", **ending(finish_reason))

    def _echo(self, index: int) -> str:
        return self._echo_texts[index // (self._body.n or 1)] if self._echo_texts else ""

    def _logprobs(
        self, cursor: LogprobCursor, sample: Sample, is_first: bool
    ) -> CompletionLogprobs | None:
        """New logprobs; the prompt's come with the first ones when it is echoed."""
        if self._body.logprobs is None:
            return None
        meta_info = sample["meta_info"]
        tokens, tops = cursor.take(meta_info)
        if is_first and self._body.echo:
            prompt = list(meta_info.get("input_token_logprobs") or [])
            prompt_tops = list(meta_info.get("input_top_logprobs") or [None] * len(prompt))
            tokens, tops = prompt + tokens, prompt_tops + tops
        return completion_logprobs(tokens, tops, want_top=self._body.logprobs > 0)


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise RequestError("suffix is not supported by this server; leave it out")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError("best_of is supported only when it equals n; leave it out")


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], str)
