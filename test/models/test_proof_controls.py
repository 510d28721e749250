"""A proof that cannot fail is worthless: breaks one thing of the engine, or of a recorded run, at a time, and asserts that it is noticed."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models.proofs import make_proof

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.verify.comparison import Difference, compare_logprobs, compare_trace
from sglang.verify.forms import FORMS, Ask, Form, batch_of, cached, chunks, forms_named, retracted
from sglang.verify.proof import Proof
from sglang.verify.reference import Continuation
from sglang.verify.subject import LogprobAsk, Schedule, Trace

WHOLE = Form("one whole prefill", (Ask("long", num_tokens=2),))
WHOLE_WITH_DECODE = Form("a prefill and three decodes", (Ask("short", num_tokens=4),))
PARTIAL_HIT = forms_named(["partial hit, page 1"])[0]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Proof]:
    made: dict[str, Proof] = {}

    def get(name: str) -> Proof:
        if name not in made:
            made[name] = make_proof(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


# --- the model


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_every_form_notices_a_wrong_norm(proofs: Any, form: Form) -> None:
    """One element of one norm, two percent off."""
    proof = proofs("llama")
    assert proof.run(form).passed
    weight = proof.subject(form.page_size).model.model.norm.weight
    original = weight[7].item()
    with torch.no_grad():
        weight[7] = original * 1.02
    result = proof.run(form)
    with torch.no_grad():
        weight[7] = original
    assert not result.passed
    assert "differs by" in result.detail


@pytest.mark.parametrize("size", [-1, 6, 8])
@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window"])
def test_window_is_noticed(
    proofs: Any, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    """No window, and windows one token too short or too long: 8 tokens are seen, 7 of them earlier ones."""
    proof = proofs(name)
    assert proof.run(WHOLE).passed
    layers = [m for m in proof.subject(1).model.modules() if isinstance(m, RadixAttention)]
    windowed = [layer for layer in layers if layer.sliding_window_size > 0]
    assert windowed and all(layer.sliding_window_size == 7 for layer in windowed)
    for layer in windowed:
        monkeypatch.setattr(layer, "sliding_window_size", size)
    assert not proof.run(WHOLE).passed


def test_attention_scale_is_noticed(proofs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = proofs("llama")
    for module in proof.subject(1).model.modules():
        if isinstance(module, RadixAttention):
            monkeypatch.setattr(module, "scaling", module.scaling * 1.01)
    assert not proof.run(WHOLE).passed


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-theta", "llama-linear", "llama-llama3", "llama-yarn", "llama-dynamic"],
)
def test_rotation_of_one_position_is_noticed(proofs: Any, name: str) -> None:
    """Tokens from position 40 on are rotated as if they came one position later."""
    proof = proofs(name)
    assert proof.run(WHOLE).passed
    modules = proof.subject(1).model.modules()
    tables = {m.cos_sin_cache for m in modules if isinstance(m, RotaryEmbedding)}
    assert tables
    originals = [(table, table.clone()) for table in tables]
    for table, original in originals:
        length = proof.subject(1).context_len
        first = len(table) - length  # behind a short table, where there is one
        table[first + 40 : -1] = original[first + 41 :]
    result = proof.run(WHOLE)
    for table, original in originals:
        table.copy_(original)
    assert not result.passed


# --- the engine around it


def test_unwritten_prefix_is_noticed(proofs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = proofs("llama")
    assert proof.run(PARTIAL_HIT).passed
    monkeypatch.setattr(BatchBuilder, "_write_prefixes", lambda self, works: None)
    result = proof.run(PARTIAL_HIT)
    assert not result.passed


def test_one_wrong_cache_slot_is_noticed(proofs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 41 shared slots is another one's. (Two swapped slots would be the same sum.)"""
    proof = proofs("llama")
    honest = KVCacheManager.open

    def open_wrong(self: KVCacheManager, *args: Any, **kwargs: Any) -> Any:
        handle = honest(self, *args, **kwargs)
        if handle is not None and handle.cached_len > 20:
            handle.buffer = handle.buffer.copy()
            handle.buffer[3] = handle.buffer[17]
        return handle

    monkeypatch.setattr(KVCacheManager, "open", open_wrong)
    assert not proof.run(PARTIAL_HIT).passed


def test_a_stale_slot_is_noticed(proofs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode token whose keys and values are written to the padding page leaves poison behind."""
    proof = proofs("llama")
    honest = BatchBuilder.build

    def misdirected(self: BatchBuilder, plan: Any) -> Any:
        batch = honest(self, plan)
        if plan.mode == "decode":
            batch.out_cache_loc = batch.out_cache_loc.clone()
            batch.out_cache_loc[0] = 0
        return batch

    monkeypatch.setattr(BatchBuilder, "build", misdirected)
    assert not proof.run(WHOLE_WITH_DECODE).passed


def test_tokens_of_the_wrong_row_are_noticed(proofs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = proofs("llama")
    honest = BatchBuilder._input_ids

    def shifted(self: BatchBuilder, plan: Any, *args: Any) -> torch.Tensor:
        ids = honest(self, plan, *args)
        return ids.roll(1) if plan.mode == "decode" else ids

    monkeypatch.setattr(BatchBuilder, "_input_ids", shifted)
    result = proof.run(forms_named(["decode at different lengths, page 1"])[0])
    assert not result.passed
    assert "greedy tokens differ" in result.detail


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (retracted, "no request was retracted"),
        (cached(0, 5), "0 cached tokens, not 5"),
        (chunks(1), "0 partial chunks instead of 1"),
        (batch_of(2, "decode"), "no decode step with 2 requests"),
        (batch_of(1, "mixed"), "no mixed step"),
    ],
)
def test_a_form_that_did_not_happen_fails(proofs: Any, expectation: Any, message: str) -> None:
    result = proofs("llama").run(dataclasses.replace(WHOLE, expects=(expectation,)))
    assert not result.passed
    assert message in result.detail


# --- the comparison itself, on doctored records


@pytest.fixture(scope="module")
def record(proofs: Any) -> tuple[Trace, LogprobAsk, Continuation]:
    proof = proofs("llama")
    session = proof.subject(1).session(Schedule(chunk_size=16))
    ask = LogprobAsk(0, top=3, token_ids=(5, 9))
    prompt = proof.material.prompts["middle"]
    session.submit("r", prompt, 6, ask)
    session.run()
    trace = session.traces["r"]
    return trace, ask, proof.reference.greedy(prompt, 6, trace.output_ids)


def judge(
    record: tuple[Trace, LogprobAsk, Continuation], doctor: Callable[[Trace], None]
) -> Difference:
    trace, ask, expected = copy.deepcopy(record[0]), record[1], record[2]
    doctor(trace)
    found = Difference()
    compare_trace("r", trace, expected, found)
    compare_logprobs("r", trace, ask, expected, found)
    return found


def test_an_honest_record_passes(record: Any) -> None:
    found = judge(record, lambda trace: None)
    assert found.passed, found
    assert found.num_positions == 37 + 5


def _set(items: list, place: int, value: Any) -> None:
    items[place] = value


DOCTORS: dict[str, Callable[[Trace], Any]] = {
    "a piece is missing": lambda t: t.pieces.pop(1),
    "one logit is off": lambda t: t.pieces[0].logits[3, 100].add_(0.01),
    "one logit is NaN": lambda t: t.pieces[1].logits[0, 0].fill_(float("nan")),
    "served row is off": lambda t: t.pieces[-1].served[4].sub_(0.01),
    "an output is wrong": lambda t: _set(t.output_ids, 2, t.output_ids[2] ^ 1),
    "an output is missing": lambda t: t.output_ids.pop(),
    "an output too many": lambda t: t.output_ids.append(1),
    "ended otherwise": lambda t: setattr(t, "finish_reason", "abort"),
    "input logprob is off": lambda t: _set(
        t.logprobs.input_token,
        4,
        (t.logprobs.input_token[4][0] + 0.01, t.logprobs.input_token[4][1]),
    ),
    "input logprobs shifted": lambda t: t.logprobs.input_token.pop(1),
    "first input logprob": lambda t: _set(t.logprobs.input_token, 0, (-1.0, t.prompt_ids[0])),
    "input top of position 0": lambda t: _set(t.logprobs.input_top, 0, t.logprobs.input_top[1]),
    "input top missing": lambda t: _set(t.logprobs.input_top, 5, None),
    "input top too short": lambda t: t.logprobs.input_top[5].pop(),
    "input top misses the best": lambda t: _set(
        t.logprobs.input_top, 5, [*t.logprobs.input_top[5][1:], t.logprobs.output_top[0][0]]
    ),
    "input ids swapped": lambda t: t.logprobs.input_ids[7].reverse(),
    "input ids missing": lambda t: t.logprobs.input_ids.clear(),
    "output logprob is off": lambda t: _set(
        t.logprobs.output_token, 1, (0.0, t.logprobs.output_token[1][1])
    ),
    "output logprobs of another token": lambda t: _set(
        t.logprobs.output_token, 1, (t.logprobs.output_token[1][0], 511)
    ),
    "output top missing": lambda t: t.logprobs.output_top.pop(),
    "output top repeated": lambda t: _set(
        t.logprobs.output_top, 1, [t.logprobs.output_top[1][0]] * 3
    ),
    "output ids off": lambda t: _set(t.logprobs.output_ids, 0, [(-1.0, 5), (-1.0, 9)]),
}


@pytest.mark.parametrize("doctor", DOCTORS.values(), ids=list(DOCTORS))
def test_a_doctored_record_fails(record: Any, doctor: Callable[[Trace], Any]) -> None:
    assert not judge(record, doctor).passed


def test_a_bad_draft_does_not_change_the_reference(proofs: Any) -> None:
    reference = proofs("llama").reference
    prompt = [5, 6, 7]
    honest = reference.greedy(prompt, 8)
    for draft in ([1] * 8, list(honest.output_ids[:4]), [*honest.output_ids[:5], 0, 0, 0]):
        again = reference.greedy(prompt, 8, draft)
        assert again.output_ids == honest.output_ids
        assert torch.equal(again.logits, honest.logits)


def test_greedy_is_what_transformers_generates(proofs: Any) -> None:
    reference = proofs("llama").reference
    prompt = [5, 6, 7]
    generated = reference.model.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert tuple(generated[0, 3:].tolist()) == reference.greedy(prompt, 8).output_ids
