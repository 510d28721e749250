"""Logprobs of a request as they add up, and the texts of their tokens."""

from __future__ import annotations

from sglang.srt.managers.io_struct import LogprobChunk
from sglang.srt.managers.logprobs import LogprobRecord


def chunk(*tokens: int, **more) -> LogprobChunk:
    return LogprobChunk(output_token=[(-float(token), token) for token in tokens], **more)


def test_pieces_are_the_texts_of_output_tokens_only():
    """A token of half a character has its own text, but adds none to that of the output."""
    record = LogprobRecord(1, False, lambda token: f"<{token}>")
    record.add(chunk(7, input_token=[(None, 4)], output_top=[[(-7.0, 7)]]))
    record.add(chunk(8, 9, output_top=[[(-8.0, 8)], [(-9.0, 9)]]))
    shown = record.render(["", "ä"])
    assert shown["input_token_logprobs"] == [(None, 4, "<4>")]
    assert shown["output_token_logprobs"] == [(-7.0, 7, ""), (-8.0, 8, "ä"), (-9.0, 9, "<9>")]
    assert shown["output_top_logprobs"][1] == [(-8.0, 8, "<8>")]
    assert record.render(None)["output_token_logprobs"][0] == (-7.0, 7, "<7>")
    assert set(shown) == {
        "input_token_logprobs",
        "output_token_logprobs",
        "input_top_logprobs",
        "output_top_logprobs",
    }


def test_what_was_shown_does_not_grow():
    record = LogprobRecord(0, True, None)
    record.add(chunk(7, output_ids=[[(-1.0, 3)]]))
    shown = record.render(None)
    record.add(chunk(8, output_ids=[[(-2.0, 3)]]))
    assert shown["output_token_logprobs"] == [(-7.0, 7, None)]
    again = record.render(None)
    assert again["output_token_ids_logprobs"] == [[(-1.0, 3, None)], [(-2.0, 3, None)]]
    assert again["input_token_ids_logprobs"] == []
