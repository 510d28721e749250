"""The engine's logprob triples `(logprob, token id, text)` in the two layouts of the OpenAI routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.entrypoints.openai.protocol import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
)

Triple = Sequence[Any]  # (logprob or None, token id, text or None)


class LogprobCursor:
    """Follows the growing lists of one streamed sample and hands out what is new."""

    def __init__(self) -> None:
        self._num_seen = 0

    def take(self, meta_info: dict[str, Any]) -> tuple[list[Triple], list[list[Triple] | None]]:
        """New output triples and new top lists (empty when none were asked for)."""
        tokens = meta_info.get("output_token_logprobs") or []
        tops = meta_info.get("output_top_logprobs") or []
        start, self._num_seen = self._num_seen, len(tokens)
        return list(tokens[start:]), list(tops[start:])


def chat_logprobs(
    tokens: Sequence[Triple], tops: Sequence[Sequence[Triple] | None]
) -> ChatLogprobs:
    """Layout of chat completions."""
    content = []
    for position, (logprob, _, text) in enumerate(tokens):
        top = tops[position] if position < len(tops) else None
        content.append(
            TokenLogprob(
                token=text or "",
                bytes=_bytes(text),
                logprob=logprob,
                top_logprobs=[TopLogprob(t or "", _bytes(t), lp) for lp, _, t in top or ()],
            )
        )
    return ChatLogprobs(content)


def completion_logprobs(
    tokens: Sequence[Triple], tops: Sequence[Sequence[Triple] | None], want_top: bool
) -> CompletionLogprobs:
    """Layout of completions. Text offsets are not computed: -1."""
    top_logprobs: list[dict[str, float] | None] = []
    if want_top:
        padded = [*tops, *[None] * (len(tokens) - len(tops))]
        top_logprobs = [
            None if top is None else {t or "": lp for lp, _, t in top} for top in padded
        ]
    return CompletionLogprobs(
        tokens=[text or "" for _, _, text in tokens],
        token_logprobs=[logprob for logprob, _, _ in tokens],
        top_logprobs=top_logprobs,
        text_offset=[-1] * len(tokens),
    )


def _bytes(text: str | None) -> list[int]:
    return list((text or "").encode("utf-8", "surrogatepass"))
