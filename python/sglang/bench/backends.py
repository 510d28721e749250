"""How a request is put to each kind of server, and how its answer is timed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any, Protocol

from sglang.bench.datasets import BenchRequest
from sglang.bench.http_client import HttpClient, HttpStatusError
from sglang.srt.utils.errors import ConfigError

# A request that takes longer is counted as failed, in seconds.
REQUEST_TIMEOUT = 6 * 3600.0


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """What is the same for every request of a run."""

    model: str = "default"
    stream: bool = True
    ignore_eos: bool = True
    return_logprob: bool = False
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Outcome:
    """One answered (or failed) request. Times in seconds, `started` of `time.perf_counter`; lengths in tokens."""

    prompt_len: int
    started: float
    latency: float = 0.0
    ttft: float = 0.0
    itls: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    output_len: int = 0
    vision_len: int = 0  # tokens that the server counted for pictures and the template around them
    error: str = ""
    has_pictures: bool = False
    _last_arrival: float = 0.0

    @property
    def success(self) -> bool:
        return not self.error

    def tokens_arrived(self, count: int, now: float) -> None:
        """Tokens that came together share the time since the arrival before."""
        if count <= 0:
            return
        if self.output_len == 0:
            self.ttft = now - self.started
        else:
            self.itls += [(now - self._last_arrival) / count] * count
        self.output_len += count
        self._last_arrival = now


class Backend(Protocol):
    """One kind of server."""

    path: str

    def body(self, request: BenchRequest) -> dict[str, Any]:
        """The JSON body. Raises ConfigError for a prompt that the route cannot take."""
        ...

    def read(self, answer: dict[str, Any], outcome: Outcome, now: float) -> None:
        """Note one event of a stream, or the whole answer; sets `outcome.error` for one that reports an error."""
        ...


class NativeBackend:
    """`/generate`: cumulative text, token counts in every event."""

    path = "/generate"

    def __init__(self, options: RequestOptions) -> None:
        self._options = options

    def body(self, request: BenchRequest) -> dict[str, Any]:
        options = self._options
        if _is_messages(request.prompt):
            raise ConfigError("/generate takes no chat messages; add --apply-chat-template")
        media = {"image_data": list(request.images)} if request.images else {}
        key = "text" if isinstance(request.prompt, str) else "input_ids"
        return {
            key: request.prompt,
            **media,
            "sampling_params": {
                "temperature": 0.0,
                "max_new_tokens": request.output_len,
                "ignore_eos": options.ignore_eos,
            },
            "stream": options.stream,
            "return_logprob": options.return_logprob,
            "logprob_start_len": -1,
            **options.extra_body,
        }

    def read(self, answer: dict[str, Any], outcome: Outcome, now: float) -> None:
        info = answer["meta_info"]
        _note_pictures(outcome, info.get("prompt_tokens"))
        outcome.text = answer.get("text") or outcome.text
        outcome.tokens_arrived(info["completion_tokens"] - outcome.output_len, now)
        reason = info.get("finish_reason")
        if reason and reason["type"] == "abort":
            outcome.error = f"aborted: {reason.get('message')}"


class CompletionsBackend:
    """`/v1/completions`: text deltas, counts in `usage` where the server sends them."""

    path = "/v1/completions"

    def __init__(self, options: RequestOptions) -> None:
        self._options = options

    def body(self, request: BenchRequest) -> dict[str, Any]:
        options = self._options
        body: dict[str, Any] = {
            "model": options.model,
            **self._prompt_fields(request),
            "temperature": 0.0,
            "stream": options.stream,
            "ignore_eos": options.ignore_eos,
        }
        if options.stream:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return {**body, **options.extra_body}

    def read(self, answer: dict[str, Any], outcome: Outcome, now: float) -> None:
        text = "".join(self._text(choice) for choice in answer.get("choices") or [])
        outcome.text += text
        usage = answer.get("usage") or {}
        counted = usage.get("completion_tokens")
        _note_pictures(outcome, usage.get("prompt_tokens"))
        if counted is not None and (text or outcome.output_len == 0 or not self._options.stream):
            outcome.tokens_arrived(counted - outcome.output_len, now)
        elif counted is not None:  # the closing total, after the last token
            outcome.output_len = counted
        elif text:
            outcome.tokens_arrived(1, now)

    def _prompt_fields(self, request: BenchRequest) -> dict[str, Any]:
        if request.images:
            raise ConfigError("/v1/completions takes no pictures; use another --backend")
        if _is_messages(request.prompt):
            raise ConfigError("/v1/completions takes no chat messages; add --apply-chat-template")
        fields: dict[str, Any] = {"prompt": request.prompt, "max_tokens": request.output_len}
        return {**fields, "logprobs": 1} if self._options.return_logprob else fields

    def _text(self, choice: dict[str, Any]) -> str:
        return choice.get("text") or ""


class ChatBackend(CompletionsBackend):
    """`/v1/chat/completions`: the prompt becomes one user message."""

    path = "/v1/chat/completions"

    def _prompt_fields(self, request: BenchRequest) -> dict[str, Any]:
        messages: Any = request.messages or request.prompt
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        elif not _is_messages(messages):
            raise ConfigError(
                "/v1/chat/completions takes no token ids; leave --tokenize-prompt out"
            )
        fields: dict[str, Any] = {
            "messages": messages,
            "max_completion_tokens": request.output_len,
        }
        return {**fields, "logprobs": True} if self._options.return_logprob else fields

    def _text(self, choice: dict[str, Any]) -> str:
        part = choice.get("delta") or choice.get("message") or {}
        return (part.get("reasoning_content") or "") + (part.get("content") or "")


BACKENDS: dict[str, type[NativeBackend] | type[CompletionsBackend]] = {
    "sglang": NativeBackend,
    "sglang-native": NativeBackend,
    "sglang-oai": CompletionsBackend,
    "sglang-oai-chat": ChatBackend,
    "vllm": CompletionsBackend,
    "vllm-chat": ChatBackend,
    "lmdeploy": CompletionsBackend,
    "lmdeploy-chat": ChatBackend,
}


async def send(
    client: HttpClient, backend: Backend, request: BenchRequest, *, stream: bool
) -> Outcome:
    """Put one request and wait for its end. A failure of the server or the network is an outcome, not an exception."""
    body = backend.body(request)
    outcome = Outcome(prompt_len=request.prompt_len, started=time.perf_counter())
    outcome.has_pictures = bool(request.images)
    try:
        await asyncio.wait_for(
            _exchange(client, backend, body, outcome, stream), timeout=REQUEST_TIMEOUT
        )
    except (HttpStatusError, OSError, EOFError, asyncio.TimeoutError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    except (KeyError, TypeError, ValueError) as error:
        outcome.error = f"the answer is not what {backend.path} sends: {error!r}"
    outcome.latency = time.perf_counter() - outcome.started
    if outcome.success and outcome.output_len == 0:
        outcome.error = "the answer holds no token"
    return outcome


async def _exchange(
    client: HttpClient, backend: Backend, body: dict[str, Any], outcome: Outcome, stream: bool
) -> None:
    if not stream:
        answer = await client.json("POST", backend.path, body)
        _note(backend, answer, outcome)
        return
    is_done = False
    async for data in client.events(backend.path, body):
        if data == b"[DONE]":
            is_done = True
        else:
            _note(backend, json.loads(data), outcome)
    if not is_done and not outcome.error:
        outcome.error = "the stream ended early"


def _note_pictures(outcome: Outcome, prompt_tokens: int | None) -> None:
    if outcome.has_pictures and prompt_tokens:
        outcome.vision_len = max(prompt_tokens - outcome.prompt_len, 0)


def _note(backend: Backend, answer: dict[str, Any], outcome: Outcome) -> None:
    now = time.perf_counter()
    if answer.get("error"):
        outcome.error = json.dumps(answer["error"])
    else:
        backend.read(answer, outcome, now)


def _is_messages(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
