"""Stops are cut where the last token completed them, and nothing that could become one is shown before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.managers.output_text import OutputText


class Letters:
    """A stream whose tokens are characters."""

    def push(self, ids):
        return "".join(map(chr, ids))

    def flush(self):
        return ""


def ids_of(text):
    return [ord(char) for char in text]


@given(st.text("abE", max_size=20), st.lists(st.text("abE", min_size=1, max_size=4), min_size=1))
def test_held_text_is_the_longest_end_that_begins_a_stop(text, stops):
    held = max(
        (k for stop in stops for k in range(len(stop)) if k and text.endswith(stop[:k])), default=0
    )
    output = OutputText(Letters(), stops)
    output.append(ids_of(text))
    assert output.visible == text[: len(text) - held]


@pytest.mark.parametrize("one_by_one", [True, False])
def test_visible_text_only_grows_and_ends_before_the_stop(one_by_one):
    text, stop = "one \n two \n\n", "\n\n"
    output = OutputText(Letters(), [stop])
    seen = [""]
    if one_by_one:
        for char in text[:-1]:
            output.append(ids_of(char))
            assert output.visible.startswith(seen[-1])
            seen.append(output.visible)
        output.finish(ids_of(text[-1]), trim_text=stop)
    else:
        output.finish(ids_of(text), trim_text=stop)
    assert output.visible == "one \n two "
    assert output.visible.startswith(seen[-1])


def test_an_earlier_occurrence_that_did_not_stop_is_kept():
    output = OutputText(Letters(), ["aa"])
    output.finish(ids_of("xaayaa"), trim_text="aa")
    assert output.visible == "xaay"


def test_text_held_back_is_shown_when_no_stop_came():
    output = OutputText(Letters(), ["END"])
    output.append(ids_of("xEN"))
    assert output.visible == "x"
    output.finish([])
    assert output.visible == "xEN"


def test_pieces_join_to_the_cut_text():
    output = OutputText(Letters(), ["END"], keep_pieces=True)
    output.append(ids_of("abEN"))
    output.finish(ids_of("D!")[:1], trim_text="END")
    assert output.visible == "ab"
    assert output.pieces == ["a", "b", "", "", ""]


def test_stop_tokens_have_empty_pieces():
    output = OutputText(Letters(), keep_pieces=True)
    output.finish(ids_of("abZ"), trim_ids=1)
    assert output.visible == "ab" and output.pieces == ["a", "b", ""]


class Words(Letters):
    """Tokens are words; the end of the text comes with the flush."""

    def __init__(self, words, end=""):
        self._words, self._end = words, end

    def push(self, ids):
        return "".join(self._words[i] for i in ids)

    def flush(self):
        return self._end


@pytest.mark.parametrize(
    ("words", "visible"),
    [
        (["x", "aa-aa"], "x"),
        (["aa-aa"], ""),
        (["xa", "a-aa"], "x"),
        (["aa", "x", "aa"], "aax"),
        (["aa", "x", "y"], ""),  # not where it should be
        (["x", "y"], "xy"),
    ],
)
def test_the_cut_is_at_the_first_stop_that_the_last_token_completed(words, visible):
    output = OutputText(Words(words), ["aa"])
    output.finish(list(range(len(words))), trim_text="aa")
    assert output.visible == visible


def test_what_the_stream_held_belongs_to_the_last_token():
    output = OutputText(Words(["a", "b"], end="\ufffd"), keep_pieces=True)
    output.append([0])
    output.finish([1])
    assert output.visible == "ab\ufffd" and output.pieces == ["a", "b\ufffd"]


def test_a_stop_in_what_the_stream_held_is_cut():
    output = OutputText(Words(["a", "E"], end="ND"), ["END"], keep_pieces=True)
    output.finish([0, 1], trim_text="END")
    assert output.visible == "a" and output.pieces == ["a", ""]


def test_nothing_was_put_out():
    output = OutputText(Words([], end=""), keep_pieces=True)
    output.finish([])
    assert output.visible == "" and output.pieces == [] and output.is_final
