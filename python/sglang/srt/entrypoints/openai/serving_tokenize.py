"""`/tokenize` and `/detokenize`: the served model's tokenizer over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang.srt.entrypoints.http.streaming import JSONResponse
from sglang.srt.entrypoints.openai.protocol import DetokenizeRequest, TokenizeRequest
from sglang.srt.entrypoints.openai.serving_base import ServingSettings
from sglang.srt.utils.errors import RequestError


class TokenizeServing:
    """`tokenizer` is None for a server without one."""

    def __init__(self, tokenizer: Any, settings: ServingSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings

    async def tokenize(self, body: TokenizeRequest) -> JSONResponse:
        """Raises RequestError when there is no tokenizer."""
        tokenizer = self._require_tokenizer()
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]

        def encode() -> list[list[int]]:
            return [
                list(tokenizer.encode(p, add_special_tokens=body.add_special_tokens))
                for p in prompts
            ]

        # A thread, since a prompt may be long.
        tokens = await asyncio.to_thread(encode)
        counts = [len(ids) for ids in tokens]
        is_batch = isinstance(body.prompt, list)
        return JSONResponse(
            {
                "tokens": tokens if is_batch else tokens[0],
                "count": counts if is_batch else counts[0],
                "max_model_len": self._settings.context_len,
            }
        )

    async def detokenize(self, body: DetokenizeRequest) -> JSONResponse:
        """Raises RequestError when there is no tokenizer or an id is outside the vocabulary."""
        tokenizer = self._require_tokenizer()
        is_batch = bool(body.tokens) and isinstance(body.tokens[0], list)
        batch: list[Any] = body.tokens if is_batch else [body.tokens]
        size = len(tokenizer)
        for token in (token for ids in batch for token in ids):
            if not 0 <= token < size:
                raise RequestError(f"tokens holds {token}; allowed: 0 to {size - 1}")

        def decode() -> list[str]:
            return [
                tokenizer.decode(i, skip_special_tokens=body.skip_special_tokens) for i in batch
            ]

        texts = await asyncio.to_thread(decode)
        return JSONResponse({"text": texts if is_batch else texts[0]})

    def _require_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise RequestError("this server runs with --skip-tokenizer-init and has no tokenizer")
        return self._tokenizer
