"""The text of one output as its caller may see it: decoded, cut at the stop, and not shown while it could still become one."""

from __future__ import annotations

from collections.abc import Sequence

from sglang.srt.managers.detokenizer import TextStream


class OutputText:
    """Grows by token ids; `visible` is what a streaming caller may be shown now. After `finish` it is final.

    Args:
        stream: decoder of this output.
        stop_strings: text that ends generation and must not be shown; empty when it is kept.
        keep_pieces: also remember the text that each token added.
    """

    def __init__(
        self, stream: TextStream, stop_strings: Sequence[str] = (), keep_pieces: bool = False
    ) -> None:
        self._stream = stream
        self._stop_strings = stop_strings
        self._text = ""
        self.is_final = False
        self.pieces: list[str] | None = [] if keep_pieces else None

    def append(self, ids: list[int]) -> None:
        if self.pieces is None:
            self._text += self._stream.push(ids)
            return
        for token_id in ids:
            piece = self._stream.push([token_id])
            self.pieces.append(piece)
            self._text += piece

    def finish(self, ids: list[int], trim_ids: int = 0, trim_text: str | None = None) -> None:
        """Append the last ids and cut.

        Args:
            ids: ids since the last `append`, including the one that ended generation.
            trim_ids: how many of the last ids add no text.
            trim_text: the stop text; the output is cut in front of its occurrence that the last token completed.
        """
        shown = ids[: len(ids) - trim_ids] if trim_ids else ids
        self.append(shown[:-1])
        len_before_last = len(self._text)
        self.append(shown[-1:])
        self._add(self._stream.flush())
        if trim_text:
            self._cut(trim_text, len_before_last)
        if self.pieces is not None:
            self._fit_pieces(num_hidden=len(ids) - len(shown))
        self.is_final = True

    @property
    def visible(self) -> str:
        if self.is_final or not self._stop_strings:
            return self._text
        return self._text[: len(self._text) - self._num_held()]

    def _num_held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        text, held = self._text, 0
        for stop in self._stop_strings:
            at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while at >= 0 and not stop.startswith(text[at:]):
                at = text.find(stop[0], at + 1)
            held = max(held, len(text) - at if at >= 0 else 0)
        return held

    def _add(self, text: str) -> None:
        self._text += text
        if self.pieces and text:
            self.pieces[-1] += text

    def _cut(self, trim_text: str, len_before_last: int) -> None:
        at = self._text.find(trim_text, max(0, len_before_last - len(trim_text) + 1))
        if at < 0:
            at = self._text.rfind(trim_text)
        if at >= 0:
            self._text = self._text[:at]

    def _fit_pieces(self, num_hidden: int) -> None:
        """Cut the pieces so that joined they are the text."""
        assert self.pieces is not None, "only called when pieces are kept"
        room = len(self._text)
        for i, piece in enumerate(self.pieces):
            self.pieces[i] = piece[:room]
            room -= len(self.pieces[i])
        self.pieces += [""] * num_hidden
