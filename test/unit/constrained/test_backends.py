"""Both backends: whatever a model prefers, what is sampled under the mask belongs to the grammar."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
import xgrammar

from sglang.srt.constrained import llguidance_backend, xgrammar_backend
from sglang.srt.constrained.base import (
    GrammarOptions,
    InvalidGrammarError,
    clear_tail,
    mask_words,
)
from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_batch import SamplingTable

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-c ]{0,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["x", "yy"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"
EBNF = 'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9] | "(" [a-c]+ ")"\n'
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<f"],
        "tags": [
            {
                "type": "tag",
                "begin": "<f=g>",
                "content": {"type": "json_schema", "json_schema": SCHEMA},
                "end": "</f>",
            }
        ],
    },
}
LEGACY_TAG = {
    "structures": [{"begin": "<f=g>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f"],
}


def allowed(matcher, vocab_size: int) -> list[int]:
    mask = np.full(mask_words(vocab_size), -1, dtype=np.int32)
    matcher.fill_mask(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any()
    return np.flatnonzero(bits).tolist()


def generate(matcher, tokenizer, vocab_size, seed: int, forced=(), limit: int = 400) -> str | None:
    """Text sampled from random logits under the mask; None when it did not end in time."""
    table = SamplingTable(1, vocab_size, "cpu")
    spec = SamplingSpec(temperature=2.0)
    table.set_row(RowSetup(row=0, sampling=spec, prompt_ids=[], output_ids=[]))
    work = RowWork(
        row=0,
        start=0,
        num_tokens=1,
        token_ids=None,
        prefix_slots=None,
        new_slots=b"",
        sample=True,
    )
    sampler, generator = Sampler(seed=seed), torch.Generator().manual_seed(seed)
    ids = list(forced)
    for token in ids:
        assert matcher.accept_token(token)
    mask = np.zeros(mask_words(vocab_size), dtype=np.int32)
    for _ in range(limit):
        matcher.fill_mask(mask)
        logits = 3 * torch.randn(1, vocab_size, generator=generator)
        # Whitespace may repeat without end; a model would not want that.
        logits[0, tokenizer.convert_tokens_to_ids(["Ġ", "ĠĠ", "Ċ", "ĉ", "č"])] -= 20
        out = sampler(logits, table.batch([0], [work], RowMasks([0], mask[None])))
        token = out.next_ids.item()
        assert not out.bad.any() and matcher.accept_token(token)
        ids.append(token)
        if matcher.is_terminated():
            return tokenizer.decode(ids, skip_special_tokens=True)
    return None


def check_schema(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["name", "age", "tags", "ok"]
    assert re.fullmatch("[a-c ]{0,6}", value["name"])
    assert 0 <= value["age"] <= 120 and isinstance(value["age"], int)
    assert len(value["tags"]) <= 3 and set(value["tags"]) <= {"x", "yy"}
    assert isinstance(value["ok"], bool)


@pytest.mark.parametrize("seed", range(4))
def test_json_is_valid_under_the_schema(backend, tokenizer, vocab_size, seed):
    matcher = backend.compile("json", json.dumps(SCHEMA)).new_matcher()
    text = generate(matcher, tokenizer, vocab_size, seed)
    assert text is not None
    check_schema(text)


@pytest.mark.parametrize("seed", range(3))
def test_regex_matches(backend, tokenizer, vocab_size, seed):
    text = generate(backend.compile("regex", DATE).new_matcher(), tokenizer, vocab_size, seed)
    assert text is not None and re.fullmatch(DATE, text)


@pytest.mark.parametrize("seed", range(3))
def test_ebnf_is_followed(backend, tokenizer, vocab_size, seed):
    text = generate(backend.compile("ebnf", EBNF).new_matcher(), tokenizer, vocab_size, seed)
    term = r"([0-9]|\([a-c]+\))"
    assert text is not None and re.fullmatch(rf"{term}(\+{term})*", text)


@pytest.mark.parametrize("tag", [TAG, LEGACY_TAG], ids=["format", "legacy"])
def test_structural_tags_leave_text_free_and_bind_what_the_trigger_opens(
    backend, tokenizer, vocab_size, tag
):
    matcher = backend.compile("structural_tag", json.dumps(tag)).new_matcher()
    free = set(allowed(matcher, vocab_size))
    assert set(tokenizer.convert_tokens_to_ids(["a", "{", "12"])) <= free
    prefix = tokenizer("hi <f").input_ids
    for token in prefix:
        assert matcher.accept_token(token)
    assert [tokenizer.decode([t]) for t in allowed(matcher, vocab_size)] == ["="]
    for token in tokenizer("=g>").input_ids:
        assert matcher.accept_token(token)
    assert {tokenizer.decode([t])[0] for t in allowed(matcher, vocab_size)} <= set("{ \n\t\r")
    closed = tokenizer('{"name": "a", "age": 3, "tags": [], "ok": true}</f> more').input_ids
    assert all(matcher.accept_token(token) for token in closed)


def test_stop_tokens_are_allowed_exactly_when_the_text_is_complete(backend, tokenizer, vocab_size):
    matcher = backend.compile("regex", "ab?c").new_matcher()
    stop_ids = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")}
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    names = tokenizer.convert_ids_to_tokens(allowed(matcher, vocab_size))
    assert sorted(names) == ["a", "ab", "abc"]
    assert matcher.accept_token(a) and set(allowed(matcher, vocab_size)) == {b, c}
    assert not matcher.accept_token(tokenizer.eos_token_id)
    assert matcher.accept_token(c)
    assert set(allowed(matcher, vocab_size)) == stop_ids or matcher.is_terminated()


@pytest.mark.parametrize("stop", ["</s>", "<|end|>"])
def test_every_stop_token_terminates(backend, tokenizer, stop):
    matcher = backend.compile("regex", "a+").new_matcher()
    assert matcher.accept_token(tokenizer.convert_tokens_to_ids("a"))
    assert not matcher.is_terminated()
    assert matcher.accept_token(tokenizer.convert_tokens_to_ids(stop))
    assert matcher.is_terminated()
    assert not matcher.accept_token(tokenizer.convert_tokens_to_ids("a"))


def test_a_refused_token_changes_nothing(backend, tokenizer, vocab_size):
    matcher = backend.compile("regex", "abc").new_matcher()
    before = allowed(matcher, vocab_size)
    for token in [tokenizer.convert_tokens_to_ids("z"), vocab_size - 1]:
        assert not matcher.accept_token(token)
    assert allowed(matcher, vocab_size) == before
    assert matcher.accept_token(before[0])


def test_rollback_restores_the_mask(backend, tokenizer, vocab_size):
    matcher = backend.compile("json", json.dumps(SCHEMA)).new_matcher()
    masks = []
    ids = tokenizer('{"name": "ab", "age": 12').input_ids
    for token in ids:
        masks.append(allowed(matcher, vocab_size))
        assert matcher.accept_token(token)
    for back in (1, 3, len(ids) - 4):
        matcher.rollback(back)
        ids = ids[:-back]
        assert allowed(matcher, vocab_size) == masks[len(ids)]


def test_matchers_of_one_grammar_are_independent(backend, tokenizer, vocab_size):
    compiled = backend.compile("regex", "abc|12")
    first, second = compiled.new_matcher(), compiled.new_matcher()
    before = allowed(second, vocab_size)
    assert first.accept_token(tokenizer.convert_tokens_to_ids("a"))
    assert allowed(second, vocab_size) == before != allowed(first, vocab_size)


def test_jump_forward_gives_the_text_that_is_forced(backend, tokenizer):
    matcher = backend.compile("regex", "hello [ab]").new_matcher()
    assert matcher.accept_token(tokenizer.convert_tokens_to_ids("h"))
    assert matcher.jump_forward() == "ello "


def test_dumped_grammars_load(backend, tokenizer, vocab_size):
    compiled = backend.compile("json", json.dumps(SCHEMA))
    again = backend.load(compiled.dump()).new_matcher()
    text = generate(again, tokenizer, vocab_size, seed=11)
    assert text is not None
    check_schema(text)


def test_a_vocabulary_may_be_serialised_as_a_kind_of_str(make_backend, monkeypatch):
    """As by xgrammar on older versions of its bindings; msgspec encodes str only."""

    class Text(str):
        pass

    serialize = xgrammar.TokenizerInfo.serialize_json
    monkeypatch.setattr(
        xgrammar.TokenizerInfo, "serialize_json", lambda info: Text(serialize(info))
    )
    assert make_backend("xgrammar").compile("regex", "[ab]+").new_matcher() is not None


@pytest.mark.parametrize(
    "kind, text",
    [
        ("json", "{"),
        ("json", '{"type": "no such type"}'),
        ("json", "[1]"),
        ("json", '{"$ref": "http://127.0.0.1:1/other.json"}'),
        ("json", '{"properties": {"a": {"items": [{"$ref": "other.json#/a"}]}}}'),
        ("regex", "[ab"),
        ("ebnf", "root ::= ("),
        ("ebnf", "root ::= missing"),
        ("structural_tag", "{"),
        ("structural_tag", "[]"),
        ("structural_tag", "{}"),
        ("structural_tag", '{"structures": [], "triggers": []}'),
        ("structural_tag", '{"structures": [{"begin": "<a>"}], "triggers": ["<"]}'),
        ("structural_tag", '{"format": {"type": "no such format"}}'),
        ("structural_tag", '{"format": {"type": "triggered_tags"}}'),
    ],
)
def test_what_is_no_grammar_is_refused_with_a_reason(backend, kind, text):
    with pytest.raises(InvalidGrammarError) as error:
        backend.compile(kind, text)
    assert str(error.value) and len(str(error.value)) <= 500


@pytest.mark.parametrize("name", ["xgrammar", "llguidance"])
def test_a_kind_that_nobody_knows_is_named(make_backend, name):
    with pytest.raises(InvalidGrammarError, match=f"{name} has no grammars of kind 'poem'"):
        make_backend(name).compile("poem", "text")


_TAG_CONTENT = {"type": "json_schema", "json_schema": {}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "const_string", "value": "a"}, "not 'const_string'"),
        ({"at_least_one": True}, "at_least_one"),
        ({"stop_after_first": True}, "stop_after_first"),
        ({"tags": []}, "at least one tag"),
        ({"triggers": ["[", "("]}, "no trigger starts the tag '<f>'"),
        ({"tags": [{"begin": "<f>", "content": {"type": "regex"}, "end": "</f>"}]}, "not 'regex'"),
    ],
)
def test_structural_tags_that_llguidance_lacks_are_refused(make_backend, changes, words):
    """And every other one is not: `<` opens what begins with `<f>`."""
    tag = {"begin": "<f>", "content": _TAG_CONTENT, "end": "</f>"}
    format_ = {"type": "triggered_tags", "triggers": ["[", "<"], "tags": [tag]}
    backend = make_backend("llguidance")
    assert backend.compile("structural_tag", json.dumps({"format": format_})).new_matcher()
    with pytest.raises(InvalidGrammarError, match=words):
        backend.compile("structural_tag", json.dumps({"format": {**format_, **changes}}))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/other.json"},
        {"properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "other.json#/a"}]}}},
    ],
)
def test_references_out_of_the_schema_are_named(make_backend, schema):
    with pytest.raises(InvalidGrammarError, match="leads outside the schema"):
        make_backend("xgrammar").compile("json", json.dumps(schema))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("[12:00:00] /a/b.cc:7: no such rule: x", "no such rule: x"),
        ("[12:00:00] no position", "[12:00:00] no position"),
        (" plain: words ", "plain: words"),
        ("x" * 600, "x" * 500),
    ],
)
def test_reasons_are_without_time_and_place(message, shown):
    assert xgrammar_backend._reason(RuntimeError(message)) == shown


def test_llguidance_needs_a_fast_tokenizer_and_an_end(tokenizer):
    with pytest.raises(ValueError, match="str is not a fast tokenizer"):
        llguidance_backend.make_recipe("text", 64, [2], GrammarOptions())
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="needs an EOS token"):
        llguidance_backend.make_recipe(endless, 64, [], GrammarOptions())


def test_the_empty_object_schema_gives_any_object(backend, tokenizer, vocab_size):
    matcher = backend.compile("json", '{"type": "object"}').new_matcher()
    forced = tokenizer('{"k": [1, {"a": null}]}').input_ids
    assert all(matcher.accept_token(token) for token in forced)
    assert tokenizer.eos_token_id in allowed(matcher, vocab_size) or matcher.is_terminated()


@pytest.mark.parametrize("name", ["xgrammar", "llguidance"])
def test_without_any_whitespace_json_has_one_spelling(make_backend, tokenizer, name):
    schema = '{"type":"object","properties":{"a":{"const":1},"b":{"const":2}},"required":["a","b"]}'
    accepts = {}
    for flexible in (True, False):
        compiled = make_backend(name, any_whitespace=flexible).compile("json", schema)
        for text in ('{"a": 1, "b": 2}', '{"a":1,  "b":2 }'):
            matcher = compiled.new_matcher()
            accepts[flexible, text] = all(map(matcher.accept_token, tokenizer(text).input_ids))
    assert list(accepts.values()) == [True, True, True, False]


def test_llguidance_takes_a_whitespace_pattern(make_backend, tokenizer):
    backend = make_backend("llguidance", whitespace_pattern="_?")
    compiled = backend.compile("json", '{"type":"array","items":{"const":1}}')
    for text, accepted in (("[_1_,1]", True), ("[1,1]", True), ("[ 1]", False)):
        matcher = compiled.new_matcher()
        assert all(map(matcher.accept_token, tokenizer(text).input_ids)) == accepted, text


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64])
def test_clear_tail(count):
    mask = np.full(2, -1, dtype=np.int32)
    clear_tail(mask, count)
    assert np.unpackbits(mask.view(np.uint8), bitorder="little").sum() == count


def fits(compiled, tokenizer, text: str) -> bool:
    matcher = compiled.new_matcher()
    if not all(map(matcher.accept_token, tokenizer(text).input_ids)):
        return False
    return matcher.is_terminated() or matcher.accept_token(tokenizer.eos_token_id)


# schema, a text that does not belong to it; docs/advanced_features/structured_outputs.md tells users
LEFT_OUT_BY_XGRAMMAR = {
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1,1]"),
    "not": ({"not": {"type": "string"}}, '"a"'),
    "if": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "if": {"required": ["a"]},
            "then": {"required": ["b"]},
        },
        '{"a":1}',
    ),
    "dependentRequired": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "dependentRequired": {"a": ["b"]},
        },
        '{"a":1}',
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1"),
    "format": ({"type": "string", "format": "nothing"}, '"x"'),
}


@pytest.mark.parametrize("keyword", LEFT_OUT_BY_XGRAMMAR)
def test_keywords_that_a_backend_does_not_know(make_backend, tokenizer, keyword):
    schema, text = LEFT_OUT_BY_XGRAMMAR[keyword]
    compiled = make_backend("xgrammar").compile("json", json.dumps(schema))
    assert fits(compiled, tokenizer, text)
    with pytest.raises(InvalidGrammarError):
        make_backend("llguidance").compile("json", json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 5, "exclusiveMaximum": 8}, "7", "8"),
        ({"type": "string", "pattern": "^a+$"}, '"aa"', '"b"'),
        ({"anyOf": [{"const": "a"}, {"enum": [1, None]}]}, "null", '"b"'),
        ({"$defs": {"x": {"const": 4}}, "$ref": "#/$defs/x"}, "4", "5"),
        ({"allOf": [{"type": "integer"}]}, "5", '"a"'),
        (
            {
                "type": "object",
                "patternProperties": {"^a": {"type": "integer"}},
                "additionalProperties": False,
            },
            '{"a":1}',
            '{"b":1}',
        ),
    ],
)
def test_keywords_that_both_backends_keep_to(backend, tokenizer, schema, good, bad):
    compiled = backend.compile("json", json.dumps(schema))
    for text, belongs in ((good, True), (bad, False)):
        assert fits(compiled, tokenizer, text) is belongs
