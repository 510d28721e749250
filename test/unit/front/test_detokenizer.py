"""Increments join to what the tokenizer decodes; nothing unsettled is shown."""

from __future__ import annotations

import random

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.managers.detokenizer import Detokenizer

ALL = {
    name: getattr(tiny_tokenizers, name)
    for name in ("byte_level", "metaspace", "word_level", "byte_fallback")
}
# Random ids of `byte_fallback` are broken UTF-8, for which its decoder takes back what it said before.
EXACT = {name: ALL[name] for name in ("byte_level", "metaspace", "word_level")}


def join_in_chunks(tokenizer, ids, sizes, skip_special_tokens=True):
    stream = Detokenizer(tokenizer).open(skip_special_tokens)
    text, at = "", 0
    while at < len(ids):
        size = next(sizes)
        text += stream.push(ids[at : at + size])
        at += size
    return text + stream.flush()


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=150, deadline=None)
def test_increments_of_random_ids_join_to_the_decoded_text(name, data, skip):
    tokenizer = EXACT[name]()
    # Three ids beyond the vocabulary: models may have more rows than the tokenizer has tokens.
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), max_size=40))
    sizes = iter(lambda: data.draw(st.integers(1, 5)), 0)
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert join_in_chunks(tokenizer, ids, sizes, skip) == expected


@pytest.mark.parametrize("name", ALL)
@given(text=st.text(alphabet="x y,the foxü好🙂\u200d\n", max_size=40), data=st.data())
@settings(max_examples=100, deadline=None)
def test_increments_of_encoded_text_join_to_the_decoded_text(name, text, data):
    tokenizer = ALL[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    sizes = iter(lambda: data.draw(st.integers(1, 12)), 0)
    assert join_in_chunks(tokenizer, ids, sizes) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_character_is_shown_when_its_last_byte_has_come(name):
    tokenizer = ALL[name]()
    ids = tokenizer.encode("\U0001f9ff", add_special_tokens=False)  # in no training text
    assert len(ids) >= 2
    stream = Detokenizer(tokenizer).open()
    assert [stream.push([i]) for i in ids] == [""] * (len(ids) - 1) + ["\U0001f9ff"]
    assert stream.flush() == ""


def test_an_incomplete_character_is_shown_at_the_end_only():
    tokenizer = tiny_tokenizers.byte_level()
    ids = tokenizer.encode("\U0001f9ff", add_special_tokens=False)[:-1]
    stream = Detokenizer(tokenizer).open()
    assert stream.push(ids) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("name", ALL)
def test_endless_broken_bytes_keep_the_stream_bounded(name):
    tokenizer = ALL[name]()
    rng = random.Random(0)
    ids = [rng.randrange(len(tokenizer)) for _ in range(2000)]
    decode_sizes = []
    stream = Detokenizer(tokenizer).open()
    for token_id in ids:
        stream.push([token_id])
        if name != "byte_level":
            decode_sizes.append(len(stream._context) + len(stream._pending))
    assert max(decode_sizes, default=0) < 40


def test_skipped_special_tokens_do_not_swallow_the_space_after_them():
    tokenizer = tiny_tokenizers.metaspace()
    eos = tokenizer.eos_token_id
    the = tokenizer.encode("the", add_special_tokens=False)
    ids = [*the, eos, eos, *the]
    assert join_in_chunks(tokenizer, ids, iter(lambda: 1, 0)) == "the the"


def test_token_text_keeps_the_space_of_a_word_token():
    tokenizer = tiny_tokenizers.byte_fallback()
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.token_text(tokenizer.convert_tokens_to_ids("▁fox")) == " fox"
    assert detokenizer.token_text(tokenizer.convert_tokens_to_ids("fox")) == "fox"


def test_token_text_of_a_special_token_is_its_name():
    tokenizer = tiny_tokenizers.byte_level()
    assert Detokenizer(tokenizer).token_text(tokenizer.eos_token_id) == "</s>"
