"""The OpenAI-compatible routes; the work is done in `entrypoints/openai`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from sglang.srt.entrypoints.http.state import server_state
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models")
async def list_models(request: Request) -> Any:
    """The served model."""
    return server_state(request).models.list_models()


@router.get("/models/{model_id:path}")
async def get_model(model_id: str, request: Request) -> Any:
    """One model; 404 when it is not the served one."""
    return server_state(request).models.get_model(model_id)


@router.post("/chat/completions")
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
    """Answer a conversation."""
    return await server_state(request).chat.answer(body, request)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Any:
    """Continue a prompt."""
    return await server_state(request).completions.answer(body, request)
