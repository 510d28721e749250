"""Increments join to what the tokenizer decodes; nothing unsettled is shown."""

from __future__ import annotations

import random

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from sglang.srt.managers import detokenizer as detokenizer_module
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


def test_every_byte_of_a_byte_level_vocabulary_is_read_back():
    """By the alphabet of the library, for all bytes that UTF-8 has."""
    write = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    table = detokenizer_module._byte_of_char()
    assert sorted(table.values()) == list(range(256))
    for point in [*range(0x800), *range(0x800, 0xD800, 0x100), *range(0x10000, 0x110000, 0x10000)]:
        text = chr(point)
        ((token, _),) = write(text)
        assert bytes(table[char] for char in token) == text.encode()


def test_byte_level_vocabularies_need_no_decoding_by_the_library(monkeypatch):
    tokenizer = tiny_tokenizers.byte_level()
    ids = tokenizer.encode("naïve 好", add_special_tokens=False)
    monkeypatch.delattr(detokenizer_module, "_decode")
    assert join_in_chunks(tokenizer, ids, iter(lambda: 1, 0)) == "naïve 好"


# --- tokenizers in Python


class SlowTokenizer:
    """Bytes are tokens, and two more have a meaning."""

    is_fast = False
    END, UPPER = 256, 257
    all_special_ids = [END]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(text.encode()) + [self.END] * add_special_tokens

    def decode(
        self,
        ids: list[int],
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
        spaces_between_special_tokens: bool,
    ) -> str:
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        pieces = [[]]
        for token in ids:
            if token == self.END:
                pieces += [None, []]
            elif token < 256:
                pieces[-1].append(token)
        texts = ["<end>" if p is None else bytes(p).decode("utf-8", "replace") for p in pieces]
        text = (" " if spaces_between_special_tokens else "").join(t for t in texts if t)
        return text.upper() if self.UPPER in ids else text


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_increments_of_a_slow_tokenizer(size):
    tokenizer = SlowTokenizer()
    text = "naïve 好🙂 ok"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert join_in_chunks(tokenizer, ids, iter(lambda: size, 0)) == text


@pytest.mark.parametrize(
    ("skip", "spaces", "expected"),
    [(True, True, "ab"), (False, True, "a <end> b"), (False, False, "a<end>b")],
)
def test_special_tokens_of_a_slow_tokenizer(skip, spaces, expected):
    stream = Detokenizer(SlowTokenizer()).open(skip, spaces)
    ids = [ord("a"), SlowTokenizer.END, ord("b")]
    assert "".join(map(stream.push, [[token] for token in ids])) + stream.flush() == expected


def test_broken_bytes_are_shown_once_and_what_follows_is_whole():
    stream = Detokenizer(SlowTokenizer()).open()
    news = [stream.push([0x80]) for _ in range(9)]
    assert news == [""] * 8 + ["\ufffd" * 9], "nothing could still make them a character"
    assert stream.push([ord("a")]) == "a"
    assert stream.flush() == ""


def test_token_text_of_a_token_that_changes_what_is_before_it():
    detokenizer = Detokenizer(SlowTokenizer())
    assert detokenizer.token_text(ord("x")) == "x"
    assert detokenizer.token_text(SlowTokenizer.UPPER) == ""
