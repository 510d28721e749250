"""Sampling parameters: what is accepted, what is refused and in which words, and what reaches the scheduler."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from sglang.srt.sampling import sampling_params as module
from sglang.srt.sampling.sampling_params import CLIENT_FIELDS, SamplingParams
from sglang.srt.utils.errors import RequestError

VOCAB_SIZE = 100
TOKENIZER: Any = object()  # `normalize` only asks whether there is one


def refuse(**values: Any) -> str:
    """The message with which the values are refused."""
    with pytest.raises(RequestError) as caught:
        SamplingParams(**values).verify(VOCAB_SIZE)
    assert caught.value.status_code == 400
    return str(caught.value)


def test_defaults_are_those_of_the_contract() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in CLIENT_FIELDS} == {
        "max_new_tokens": 128,
        "min_new_tokens": 0,
        "stop": None,
        "stop_token_ids": None,
        "stop_regex": None,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "n": 1,
        "json_schema": None,
        "regex": None,
        "ebnf": None,
        "structural_tag": None,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "no_stop_trim": False,
        "logit_bias": None,
        "sampling_seed": None,
        "stream_interval": None,
        "custom_params": None,
    }
    params.verify(VOCAB_SIZE)


def test_unknown_key_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(RequestError, match="'temprature'.*allowed:.*temperature"):
        SamplingParams(temprature=1)
    with pytest.raises(RequestError, match="'stop_strs'"):
        SamplingParams(stop_strs=["derived, not for clients"])
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{"x" * 10_000: 1})
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": None, "min_new_tokens": 7},
        {"max_new_tokens": 5, "min_new_tokens": 5},
        {"temperature": 0},
        {"temperature": 5},
        {"top_p": 1},
        {"top_p": 1e-9},
        {"top_k": -1},
        {"top_k": 1},
        {"top_k": 10**6},
        {"min_p": 0},
        {"min_p": 1},
        {"frequency_penalty": -2, "presence_penalty": 2},
        {"repetition_penalty": 2},
        {"repetition_penalty": 0.01},
        {"n": module.MAX_N},
        {"stop": "x"},
        {"stop": []},
        {"stop": ["é"] * module.MAX_STOP_STRINGS},
        {"stop_token_ids": [0, VOCAB_SIZE - 1]},
        {"stop_regex": [r"\d{3}", "a|b"]},
        {"logit_bias": {"5": -100, 6: 1.5}},
        {"sampling_seed": -(2**63)},
        {"stream_interval": 1},
        {"custom_params": {"a": [1, {"b": None}]}},
        {"json_schema": '{"type": "object"}'},
        {"json_schema": json.dumps({"const": "[" * 1000 + '\\"'})},
        {"structural_tag": "{}"},
        {"regex": "a+"},
        {"ebnf": "root ::= 'a'"},
    ],
)
def test_good_values_pass(values: dict[str, Any]) -> None:
    params = SamplingParams(**values)
    params.verify(VOCAB_SIZE)
    params.normalize(TOKENIZER)
    params.verify(VOCAB_SIZE)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens=2.0 must be a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens=True must be a whole number"),
        ({"max_new_tokens": 2**31}, "max_new_tokens"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens=4 must not exceed"),
        ({"min_new_tokens": None}, "min_new_tokens"),
        ({"temperature": -0.1}, "temperature=-0.1 must be a finite number in [0, inf)"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": "1"}, "temperature='1' must be a number"),
        ({"temperature": False}, "temperature=False must be a number"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": 10**5000}, "temperature"),
        ({"top_p": 0}, "in (0, 1]"),
        ({"top_p": 1.01}, "in (0, 1]"),
        ({"top_k": 0}, "use -1"),
        ({"top_k": -2}, "top_k=-2"),
        ({"min_p": 1.1}, "in [0, 1]"),
        ({"frequency_penalty": 2.1}, "in [-2, 2]"),
        ({"presence_penalty": -2.1}, "in [-2, 2]"),
        ({"repetition_penalty": 0}, "in (0, 2]"),
        ({"repetition_penalty": 2.5}, "in (0, 2]"),
        ({"n": 0}, "n=0"),
        ({"n": module.MAX_N + 1}, "n=4097 must be from 1 to 4096"),
        ({"ignore_eos": 1}, "ignore_eos=1 must be true or false"),
        ({"skip_special_tokens": None}, "skip_special_tokens"),
        ({"stop": 5}, "stop=5"),
        ({"stop": ["a", 5]}, "must be a string"),
        ({"stop": ""}, "empty string"),
        ({"stop": "\ud800"}, "not valid Unicode"),
        ({"stop": ["a"] * (module.MAX_STOP_STRINGS + 1)}, "is 65, more than the 64"),
        ({"stop": "a" * (module.MAX_STOP_STRING_CHARS + 1)}, "more than the 4096"),
        ({"stop_regex": "("}, "is not a regular expression"),
        ({"stop_regex": "a" * (module.MAX_STOP_REGEX_CHARS + 1)}, "more than the 512"),
        ({"stop_token_ids": 5}, "must be a list"),
        ({"stop_token_ids": [-1]}, "not a token id"),
        ({"stop_token_ids": [True]}, "not a token id"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "outside the vocabulary of 100"),
        ({"stop_token_ids": [1] * (module.MAX_STOP_TOKEN_IDS + 1)}, "more than"),
        ({"logit_bias": [1]}, "must map token ids"),
        ({"logit_bias": {"x": 1}}, "not a token id"),
        ({"logit_bias": {"05": 1}}, "not a token id"),
        ({"logit_bias": {"100": 1}}, "outside the vocabulary"),
        ({"logit_bias": {"5": float("inf")}}, "logit_bias[5]=inf"),
        ({"logit_bias": {i: 0 for i in range(module.MAX_LOGIT_BIAS_ENTRIES + 1)}}, "more than"),
        ({"sampling_seed": 2**63}, "sampling_seed"),
        ({"stream_interval": 0}, "stream_interval=0"),
        ({"custom_params": [1]}, "must be an object"),
        ({"custom_params": {"a": object()}}, "cannot be sent"),
        ({"custom_params": {"a": "\ud800"}}, "cannot be sent"),
        ({"custom_params": {"a": 2**70}}, "cannot be sent"),
        ({"custom_params": {"a": "x" * module.MAX_CUSTOM_PARAMS_BYTES}}, "more than"),
        ({"json_schema": {"type": "object"}}, "must be a string"),
        ({"json_schema": "{"}, "not valid JSON"),
        ({"json_schema": "[" * 65 + "]" * 65}, "nested deeper than the 64"),
        ({"json_schema": "[" * 200_000}, "nested deeper"),
        ({"json_schema": '"' + "a" * module.MAX_GRAMMAR_BYTES + '"'}, "more than"),
        ({"structural_tag": "nope"}, "not valid JSON"),
        ({"regex": "a" * (module.MAX_REGEX_CHARS + 1)}, "more than the 16384"),
        ({"ebnf": "a" * (module.MAX_GRAMMAR_BYTES + 1)}, "more than"),
        ({"regex": "a", "ebnf": "b"}, "at most one"),
        ({"json_schema": "{}", "structural_tag": "{}"}, "at most one"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    message = refuse(**values)
    assert words in message
    assert len(message) < 500, "what a client sends must not fill the log"
    if "outside the vocabulary" not in words:  # `normalize` does not know the vocabulary
        with pytest.raises(RequestError):
            SamplingParams(**values).normalize(TOKENIZER)


def test_vocabulary_bound_is_checked_only_when_it_is_known() -> None:
    params = SamplingParams(stop_token_ids=[VOCAB_SIZE], logit_bias={str(VOCAB_SIZE): 1})
    params.verify(None)
    params.verify(VOCAB_SIZE + 1)


@pytest.mark.parametrize("temperature", [0, 0.0, 9e-7])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=50)
    assert params.is_greedy
    params.normalize(TOKENIZER)
    assert (params.temperature, params.top_k) == (1.0, 1)
    assert params.is_greedy


def test_temperature_at_the_bound_is_not_greedy() -> None:
    params = SamplingParams(temperature=1e-6, top_k=50)
    params.normalize(TOKENIZER)
    assert (params.temperature, params.top_k) == (1e-6, 50)
    assert not params.is_greedy


def test_normalize_brings_values_into_one_form_and_is_idempotent() -> None:
    params = SamplingParams(
        stop=["ab", "né!"],
        stop_regex="x+",
        stop_token_ids=[5, 3, 5],
        logit_bias={"7": -100, 8: 1},
    )
    params.normalize(TOKENIZER)
    assert params.stop_strs == ["ab", "né!"]
    assert params.stop_str_max_len == len("né!".encode())
    assert params.stop_regex_strs == ["x+"]
    assert params.stop_regex_max_len == module.STOP_REGEX_WINDOW_TOKENS
    assert params.stop_token_ids == [3, 5]
    assert params.logit_bias == {7: -100.0, 8: 1.0}
    once = msgspec.structs.asdict(params)
    params.normalize(TOKENIZER)
    assert msgspec.structs.asdict(params) == once


def test_stop_text_needs_a_tokenizer() -> None:
    for values in ({"stop": "a"}, {"stop_regex": "a"}):
        with pytest.raises(RequestError, match="stop_token_ids"):
            SamplingParams(**values).normalize(None)
    SamplingParams(stop_token_ids=[1]).normalize(None)


def test_crosses_processes_unchanged() -> None:
    params = SamplingParams(
        stop="ab", logit_bias={"7": 1}, custom_params={"a": [1.5, None]}, max_new_tokens=None
    )
    params.normalize(TOKENIZER)
    sent = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(sent, type=SamplingParams) == params
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(SamplingParams())) == {}, "sent defaults"


def test_derived_lists_are_not_shared() -> None:
    first, second = SamplingParams(), SamplingParams()
    first.stop_strs.append("a")
    assert second.stop_strs == []


@pytest.mark.parametrize("name", ["json_schema", "regex", "ebnf", "structural_tag"])
def test_has_grammar(name: str) -> None:
    assert SamplingParams(**{name: "{}"}).has_grammar
    assert not SamplingParams().has_grammar
