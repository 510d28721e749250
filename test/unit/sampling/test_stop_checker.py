"""When requests end: the order of the checks, stop strings across tokens and characters, bounded regexes."""

from __future__ import annotations

import gc
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sglang.srt.managers.stop_checker import StopChecker
from sglang.srt.sampling.sampling_params import SamplingParams

VOCAB = 300


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, a few longer ones, and a special one."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for piece in ["END", "xE", "NDy", "Ġthe"]:
        vocab[piece] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture
def checker(tokenizer) -> StopChecker:
    return StopChecker(tokenizer, frozenset([tokenizer.eos_token_id]), VOCAB)


class Grammar:
    def __init__(self, terminated: bool) -> None:
        self._terminated = terminated

    def is_terminated(self) -> bool:
        return self._terminated


class Request:
    def __init__(self, tokenizer, max_new_tokens: int = 1000, grammar=None, **params) -> None:
        self.sampling_params = SamplingParams(**params)
        self.sampling_params.normalize(tokenizer)
        self.output_ids: list[int] = []
        self.max_new_tokens = max_new_tokens
        self.grammar = grammar


def feed(checker, req, ids):
    """Append ids one by one until a decision; (decision, number of ids)."""
    for token in ids:
        req.output_ids.append(token)
        decision = checker.check(req)
        if decision is not None:
            return decision, len(req.output_ids)
    return None, len(req.output_ids)


def test_length(checker, tokenizer):
    decision, count = feed(checker, Request(tokenizer, 3), [5] * 9)
    assert count == 3 and decision.reason.to_dict() == {"type": "length", "length": 3}
    assert decision.trim_ids == 0 and decision.trim_text is None


def test_no_new_tokens_is_a_length_at_once(checker, tokenizer):
    decision = checker.check(Request(tokenizer, 0))
    assert decision.reason.to_dict() == {"type": "length", "length": 0}


def test_eos_ends_unless_ignored(checker, tokenizer):
    eos = tokenizer.eos_token_id
    decision, count = feed(checker, Request(tokenizer), [5, eos, 5])
    assert count == 2 and decision.trim_ids == 1
    assert decision.reason.to_dict() == {"type": "stop", "matched": eos}
    assert feed(checker, Request(tokenizer, ignore_eos=True), [5, eos, 5]) == (None, 3)


def test_stop_ids_end_even_when_eos_is_ignored(checker, tokenizer):
    req = Request(tokenizer, stop_token_ids=[7], ignore_eos=True)
    decision, count = feed(checker, req, [5, tokenizer.eos_token_id, 7])
    assert count == 3 and decision.reason.matched == 7 and decision.trim_ids == 1


def test_no_stop_trim_keeps_everything(checker, tokenizer):
    decision, _ = feed(checker, Request(tokenizer, stop_token_ids=[7], no_stop_trim=True), [7])
    assert decision.trim_ids == 0
    req = Request(tokenizer, stop="END", no_stop_trim=True)
    decision, _ = feed(checker, req, tokenizer("aEND").input_ids)
    assert decision.reason.matched == "END" and decision.trim_text is None


def test_length_comes_before_eos_and_grammar_before_stop_ids(checker, tokenizer):
    eos = tokenizer.eos_token_id
    decision, _ = feed(checker, Request(tokenizer, 1), [eos])
    assert decision.reason.type == "length"
    req = Request(tokenizer, grammar=Grammar(True), ignore_eos=True)
    decision, _ = feed(checker, req, [eos])
    assert decision.reason.to_dict() == {"type": "stop", "matched": eos} and decision.trim_ids == 1
    decision, _ = feed(checker, Request(tokenizer, grammar=Grammar(True)), [9])
    assert decision.reason.matched == 9 and decision.trim_ids == 0
    assert feed(checker, Request(tokenizer, grammar=Grammar(False)), [9])[0] is None


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_ids_outside_the_vocabulary_fail_the_request(checker, tokenizer, token):
    decision, _ = feed(checker, Request(tokenizer, stop="x"), [token])
    assert (decision.reason.type, decision.reason.status_code) == ("abort", 500)


def ids_of(tokenizer, *tokens: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(tokens))


def test_a_stop_string_is_found_across_and_inside_tokens(checker, tokenizer):
    for ids in (
        ids_of(tokenizer, "a", "END", "b"),
        ids_of(tokenizer, "xE", "NDy", "b"),
        ids_of(tokenizer, "xE", "N", "D"),
    ):
        req = Request(tokenizer, stop=["never", "END"])
        decision, count = feed(checker, req, ids)
        text = tokenizer.decode(req.output_ids)
        assert "END" in text and "END" not in tokenizer.decode(req.output_ids[:-1])
        assert decision.reason.to_dict() == {"type": "stop", "matched": "END"}
        assert decision.trim_text == "END" and decision.trim_ids == 0 and count <= 3


def test_the_stop_string_that_begins_first_wins(checker, tokenizer):
    req = Request(tokenizer, stop=["NDy", "xEND", "D"])
    decision, _ = feed(checker, req, ids_of(tokenizer, "xE", "NDy"))
    assert decision.reason.matched == "xEND"


def test_a_special_token_can_be_a_stop_string(checker, tokenizer):
    req = Request(tokenizer, stop="<|im_end|>")
    decision, count = feed(checker, req, ids_of(tokenizer, "a", "<|im_end|>", "b"))
    assert count == 2 and decision.reason.matched == "<|im_end|>"


def test_stop_strings_of_several_bytes_per_character(checker, tokenizer):
    ids = tokenizer("grün 日本語 end").input_ids
    decision, count = feed(checker, Request(tokenizer, stop="本"), ids)
    assert decision.reason.matched == "本"
    assert tokenizer.decode(ids[:count]).endswith("本")


def test_bytes_that_never_form_a_character_do_not_hide_later_stops(checker, tokenizer):
    broken = ids_of(tokenizer, "æ") * 30  # a first byte of three, again and again
    ids = broken + tokenizer("STOP").input_ids
    decision, count = feed(checker, Request(tokenizer, stop="STOP"), ids)
    assert decision.reason.matched == "STOP" and count == len(ids)


def test_against_a_search_in_the_whole_text(checker, tokenizer):
    """Random texts over few letters, so that near misses are frequent."""
    rng = random.Random(4)
    alphabet = ids_of(tokenizer, "E", "N", "D", "END", "xE", "NDy", "Ġthe", "Ġ")
    for _ in range(60):
        stops = ["".join(rng.choices("END ytheEx", k=rng.randint(2, 5))) for _ in range(3)]
        ids = rng.choices(alphabet, k=60)
        expected = next(
            (n for n in range(1, 61) if any(s in tokenizer.decode(ids[:n]) for s in stops)), None
        )
        decision, count = feed(checker, Request(tokenizer, stop=stops), ids)
        assert (count if decision else None) == expected
        if decision is not None:
            text = tokenizer.decode(ids[:count])
            first = min(text.find(s) for s in stops if s in text)
            assert text.find(decision.trim_text) == first


def test_several_tokens_at_once_are_taken_in(checker, tokenizer):
    req = Request(tokenizer, stop="STOP")
    req.output_ids = tokenizer("a long text that goes on until STOP and on").input_ids
    assert checker.check(req).reason.matched == "STOP"


def test_a_regex_stops_and_names_pattern_and_match(checker, tokenizer):
    req = Request(tokenizer, stop_regex=[r"\d{3}", r"(?<=k)\d"])
    decision, _ = feed(checker, req, tokenizer("call 12 or 456 now").input_ids)
    assert decision.reason.to_dict() == {"type": "stop", "matched": r"\d{3}"}
    assert decision.trim_text == "456"


def test_a_regex_anchor_means_the_start_of_the_text(checker, tokenizer):
    ids = tokenizer("a" * 3000).input_ids
    assert feed(checker, Request(tokenizer, stop_regex="^a{5}b|^aa$"), [*ids[:1]])[0] is None
    decision, count = feed(checker, Request(tokenizer, stop_regex="^aaaa"), ids)
    assert count == 4
    req = Request(tokenizer, max_new_tokens=5000, stop_regex="^b?a{7}$")
    req.output_ids = ids[:2000]
    assert checker.check(req) is None


def test_stop_strings_are_checked_before_regexes(checker, tokenizer):
    req = Request(tokenizer, stop="ab", stop_regex="b")
    decision, _ = feed(checker, req, tokenizer("xab").input_ids)
    assert decision.reason.matched == "ab"


def test_an_explosive_regex_aborts_its_request_only(checker, tokenizer):
    bad = Request(tokenizer, stop_regex="(a|aa)+$")
    decision, _ = feed(checker, bad, tokenizer("a" * 800 + "b").input_ids)
    if decision.reason.type == "stop":  # matches at once on a's alone
        bad = Request(tokenizer, stop_regex="(a|aa)+c")
        decision, _ = feed(checker, bad, tokenizer("a" * 800).input_ids)
    assert (decision.reason.type, decision.reason.status_code) == ("abort", 400)
    assert "too long" in decision.reason.message


def test_state_goes_away_with_the_request(checker, tokenizer):
    req = Request(tokenizer, stop="zzz")
    feed(checker, req, [5, 6])
    assert len(checker._tails) == 1
    del req
    gc.collect()
    assert len(checker._tails) == 0


def test_the_kept_text_is_bounded(checker, tokenizer):
    req = Request(tokenizer, 10**6, stop="zzz")
    feed(checker, req, tokenizer("abc " * 1000).input_ids)
    assert len(checker._tails[req]._text) <= 5


def test_without_a_tokenizer_only_ids_are_checked():
    checker = StopChecker(None, frozenset([2]), VOCAB)
    assert feed(checker, Request(None), [5, 2])[1] == 2
    stops = Request(None)
    stops.sampling_params.stop_strs = ["x"]
    assert feed(checker, stops, [5, 2])[1] == 2


def test_a_regex_that_is_none_ends_its_request(checker, tokenizer):
    req = Request(tokenizer, stop_regex="a")
    req.sampling_params.stop_regex_strs = ["("]
    decision, count = feed(checker, req, [5, 6])
    assert count == 1
    assert (decision.reason.type, decision.reason.status_code) == ("abort", 400)
    assert "'(' is not supported" in decision.reason.message


def test_a_text_that_just_fits_is_searched_from_its_start(checker, tokenizer):
    """One character more, and its first one is only there to look behind."""
    for num_more, is_found in ((0, True), (1, False)):
        req = Request(tokenizer, 10**6, stop_regex="^x[^E]*E$")
        feed(checker, req, tokenizer("x").input_ids)
        longest = checker._tails[req]._max_chars
        ids = tokenizer("a" * (longest + num_more) + "E").input_ids
        decision, _ = feed(checker, req, ids)
        assert (decision is not None) == is_found
