"""Logprobs of one output as callers see them: `(logprob, token id, text or None)` triples under the names of `meta_info`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sglang.srt.managers.io_struct import LogprobChunk

Pair = tuple[float | None, int]
Triple = tuple[float | None, int, str | None]
TokenText = Callable[[int], str]


class LogprobRecord:
    """Collects the chunks of one request. Fields are kept ready to show, so that a streamed item costs only a copy of lists.

    Args:
        token_text: text of a token on its own; None leaves all texts out.
    """

    def __init__(
        self, top_logprobs_num: int, wants_ids: bool, token_text: TokenText | None
    ) -> None:
        self._token_text = token_text
        self._unread: list[LogprobChunk] = []
        suffixes = ["token_logprobs"]
        suffixes += ["top_logprobs"] if top_logprobs_num > 0 else []
        suffixes += ["token_ids_logprobs"] if wants_ids else []
        self._fields: dict[str, list] = {
            f"{side}_{suffix}": [] for suffix in suffixes for side in ("input", "output")
        }

    def add(self, chunk: LogprobChunk) -> None:
        self._unread.append(chunk)

    def render(self, pieces: Sequence[str] | None) -> dict[str, Any]:
        """The fields of `meta_info`.

        Args:
            pieces: what each output token added to the text; these are the texts of the output tokens.
        """
        for chunk in self._unread:
            self._read(chunk)
        self._unread.clear()
        fields = {name: list(values) for name, values in self._fields.items()}
        if pieces is not None:
            own = fields["output_token_logprobs"]
            # `max_new_tokens=0` reports the logprob of a token that is not part of the output: more records than pieces.
            for i, piece in enumerate(pieces[: len(own)]):
                own[i] = (own[i][0], own[i][1], piece)
        return fields

    def _read(self, chunk: LogprobChunk) -> None:
        rows: dict[str, list[Any]] = {
            "input_token_logprobs": self._triples(chunk.input_token or []),
            "output_token_logprobs": self._triples(chunk.output_token),
            "input_top_logprobs": self._rows(chunk.input_top or []),
            "output_top_logprobs": self._rows(chunk.output_top),
            "input_token_ids_logprobs": self._rows(chunk.input_ids or []),
            "output_token_ids_logprobs": self._rows(chunk.output_ids),
        }
        for name, values in self._fields.items():
            values += rows[name]

    def _triples(self, pairs: Sequence[Pair]) -> list[Triple]:
        text = self._token_text
        if text is None:
            return [(value, token_id, None) for value, token_id in pairs]
        return [(value, token_id, text(token_id)) for value, token_id in pairs]

    def _rows(self, rows: Sequence[Sequence[Pair] | None]) -> list[list[Triple] | None]:
        return [None if row is None else self._triples(row) for row in rows]
