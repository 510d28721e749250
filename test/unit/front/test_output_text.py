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
