"""Requests and replies: what callers hand in, and the typed messages between the front and the scheduler.

Messages are msgspec structs, tagged by class name and encoded as MessagePack; tensors and arbitrary Python objects cannot travel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from sglang.srt.sampling.sampling_params import SamplingParams


@dataclasses.dataclass
class GenerateReqInput:
    """A generation request as the caller states it: single or batch (every list field then has batch length)."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    input_embeds: list | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int] | list[list[int] | None] | None = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    priority: int | None = None
    extra_key: str | list[str] | None = None
    log_metrics: bool = True
    media_is_local: bool = False  # media may name any file; only `Engine` sets it


@dataclasses.dataclass
class EmbeddingReqInput:
    """An embedding or reward request as the caller states it."""

    text: Any = None
    input_ids: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    dimensions: int | None = None
    lora_path: Any = None
    rid: Any = None


class Message(msgspec.Struct, tag=True, kw_only=True):
    """Base of everything that crosses a socket."""


# --- front -> scheduler


class TokenizedGenerateReq(Message):
    """One sample of one request (`n > 1` is expanded by the front)."""

    rid: str
    input_ids: list[int]
    sampling_params: SamplingParams  # normalised
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1  # -1: output logprobs only
    top_logprobs_num: int = 0
    token_ids_logprob: list[int] | None = None
    extra_key: str | None = None
    mm_inputs: bytes | None = None  # a processor's result, packed by `multimodal.transport`
    received_ts: float = 0.0  # time.monotonic of the front; both processes share the clock


class AbortReq(Message):
    """Ends requests whose rid starts with `rid` (exactly equal when `exact`); all of them with `abort_all`."""

    rid: str = ""
    exact: bool = False
    abort_all: bool = False
    message: str = "Aborted"
    status_code: int | None = None


class FlushCacheReq(Message):
    call_id: str


class InternalStateReq(Message):
    call_id: str


class ProfileOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which steps to record and how; None: the server's default."""

    output_dir: str | None = None
    start_step: int | None = None
    num_steps: int | None = None
    activities: list[str] | None = None
    with_stack: bool | None = None
    record_shapes: bool | None = None
    profile_by_stage: bool = False
    merge_profiles: bool = False
    profile_prefix: str | None = None
    profile_stages: list[str] | None = None


class ProfileReq(Message):
    """Starts a recording with `options`, ends the running one without."""

    call_id: str
    options: ProfileOptions | None = None


class ShutdownReq(Message):
    """Asks the scheduler to leave its loop."""


# --- scheduler -> front


class FinishReason(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why a request ended; `type` is stop, length or abort. Rendered as a plain dict in `meta_info`."""

    type: str
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None
    status_code: int | None = None
    err_type: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The dict callers see: only the keys that belong to the type."""
        keys = {
            "stop": ("matched",),
            "length": ("length",),
            "abort": ("message", "status_code", "err_type"),
        }[self.type]
        return {"type": self.type, **{key: getattr(self, key) for key in keys}}


class LogprobChunk(msgspec.Struct, kw_only=True):
    """Logprobs added since the request's last output. Triples are (logprob, token id); the front adds text.

    `input_*` are set once, with the first output.
    """

    input_token: list[tuple[float | None, int]] | None = None
    input_top: list[list[tuple[float, int]] | None] | None = None
    input_ids: list[list[tuple[float, int]] | None] | None = None
    output_token: list[tuple[float, int]] = []
    output_top: list[list[tuple[float, int]]] = []
    output_ids: list[list[tuple[float, int]]] = []


class TokenOutput(msgspec.Struct, kw_only=True):
    """News of one request."""

    rid: str
    new_ids: list[int]  # ids since the last output, including one that ended generation
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    retractions: int = 0
    finish_reason: FinishReason | None = None
    trim_ids: int = 0  # how many last ids are a stop token that the text must not show
    trim_text: str | None = None  # stop string or matched regex text to cut the text at
    logprobs: LogprobChunk | None = None
    queue_time: float = 0.0


class BatchTokenOutput(Message):
    outputs: list[TokenOutput]


class SchedulerReady(Message):
    """First message of a scheduler; `error` set instead when it could not start."""

    info: dict[str, Any] = {}
    error: str | None = None


class FlushCacheReply(Message):
    call_id: str
    success: bool
    message: str = ""


class InternalStateReply(Message):
    call_id: str
    state: dict[str, Any]


class ProfileReply(Message):
    call_id: str
    success: bool
    message: str


SchedulerInbound = (
    TokenizedGenerateReq | AbortReq | FlushCacheReq | InternalStateReq | ProfileReq | ShutdownReq
)
FrontInbound = (
    BatchTokenOutput | SchedulerReady | FlushCacheReply | InternalStateReply | ProfileReply
)


class Codec:
    """MessagePack encoder and typed decoder of one direction. Not thread-safe."""

    def __init__(self, inbound: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(inbound)

    def encode(self, message: Message) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes) -> Any:
        """Raises `msgspec.ValidationError` for anything that is not one of the inbound messages."""
        return self._decoder.decode(data)
