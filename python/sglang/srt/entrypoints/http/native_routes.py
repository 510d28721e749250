"""The native inference routes."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.entrypoints.http.errors import native_stream_error
from sglang.srt.entrypoints.http.state import server_state
from sglang.srt.entrypoints.http.streaming import (
    DONE_EVENT,
    EventStream,
    JSONResponse,
    event,
    single,
)
from sglang.srt.entrypoints.openai.protocol import DetokenizeRequest, TokenizeRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.utils.errors import RequestError

router = APIRouter()


class GenerateBody(BaseModel):
    """Body of `/generate`. A list holds one value per prompt; a scalar is for all prompts."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    input_embeds: Any = None
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

    # Known, not implemented: refused when set
    modalities: Any = None
    lora_path: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: Any = None
    session_params: Any = None
    return_routed_experts: Any = None
    routed_experts_start_len: Any = None
    bootstrap_host: Any = None
    bootstrap_port: Any = None
    bootstrap_room: Any = None
    bootstrap_pair_key: Any = None
    data_parallel_rank: Any = None
    return_entropy: Any = None

    def engine_request(self) -> GenerateReqInput:
        """Raises RequestError for a set field whose subject is not implemented."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in values.keys() - GenerateReqInput.__dataclass_fields__.keys():
            value = values.pop(name)
            if any(item not in (None, False, "") for item in _flat(value)):
                raise RequestError(f"{name} is not supported by this server; leave it out")
        return GenerateReqInput(**{**values, "rid": self.rid or uuid.uuid4().hex})


@router.post("/generate")
@router.put("/generate")
async def generate(body: GenerateBody, request: Request) -> Any:
    """Generate from text or token ids; with `stream`, server-sent events with the text so far."""
    manager = server_state(request).manager
    if body.stream:
        return EventStream(_events(manager, body))
    return JSONResponse(await single(request, manager.generate_request(body.engine_request())))


@router.post("/encode")
@router.put("/encode")
@router.post("/classify")
@router.put("/classify")
@router.post("/v1/embeddings")
@router.post("/v1/classify")
@router.post("/v1/score")
@router.post("/v1/rerank")
@router.put("/v1/rerank")
async def embed() -> Response:
    """Not implemented: every model generates text."""
    raise RequestError(
        "this server generates text and gives no embeddings or scores; models that do, and --is-embedding, "
        "are not implemented yet"
    )


@router.post("/tokenize", tags=["openai"])
@router.post("/v1/tokenize", tags=["openai"])
async def tokenize(body: TokenizeRequest, request: Request) -> Any:
    """Token ids of a text."""
    return await server_state(request).tokenize.tokenize(body)


@router.post("/detokenize", tags=["openai"])
@router.post("/v1/detokenize", tags=["openai"])
async def detokenize(body: DetokenizeRequest, request: Request) -> Any:
    """Text of token ids."""
    return await server_state(request).tokenize.detokenize(body)


async def _events(manager: Any, body: GenerateBody) -> AsyncIterator[bytes]:
    try:
        items = manager.generate_request(body.engine_request())
        async with contextlib.aclosing(items) as closing:
            async for item in closing:
                yield event(item)
    except Exception as error:  # the boundary of the request: the status line is sent already
        yield event(native_stream_error(error))
    yield DONE_EVENT


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
