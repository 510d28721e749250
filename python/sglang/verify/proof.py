"""Runs forms of one checkpoint against its reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from sglang.verify.comparison import Difference, compare_logprobs, compare_trace
from sglang.verify.forms import FORMS, Ask, Form, Material
from sglang.verify.reference import Continuation, ReferenceModel
from sglang.verify.subject import Session, Subject, SubjectConfig, Trace


@dataclasses.dataclass(frozen=True)
class FormResult:
    """The outcome of one form. `max_abs_diff` and `bound` belong to the position that is worst relative to its bound."""

    name: str
    passed: bool
    max_abs_diff: float
    bound: float
    detail: str


class Proof:
    """A checkpoint with its reference, loaded once per page size; `run` proves one form.

    Args:
        folder: checkpoint folder.
        config: how to load it into the engine; the page size is that of the forms.
        material: the prompts, random ones by default.
    """

    def __init__(
        self, folder: str, config: SubjectConfig | None = None, material: Material | None = None
    ) -> None:
        self._folder = folder
        self._config = config or SubjectConfig()
        self._subjects: dict[int, Subject] = {}
        self._expected: dict[tuple[int, ...], Continuation] = {}
        first = self.subject(self._config.page_size)
        self.reference = ReferenceModel(
            folder,
            rope_length=first.context_len,
            trust_remote_code=self._config.trust_remote_code,
        )
        vocab_size = self.reference.vocab_size
        self.material = material or Material.random(vocab_size, first.context_len)

    def subject(self, page_size: int) -> Subject:
        """The engine with this page size."""
        if page_size not in self._subjects:
            config = dataclasses.replace(self._config, page_size=page_size)
            self._subjects[page_size] = Subject(self._folder, config)
        return self._subjects[page_size]

    def run(self, form: Form) -> FormResult:
        """Prove one form. An error of the engine is not caught."""
        session = self.subject(form.page_size).session(form.schedule)
        self.play(form, session)
        found = Difference()
        for ask, (rid, trace) in zip(form.asks, session.traces.items(), strict=True):
            expected = self.expect(ask, trace)
            compare_trace(rid, trace, expected, found)
            if ask.logprobs is not None:
                compare_logprobs(rid, trace, ask.logprobs, expected, found)
        found.problems += [text for text in (e(session) for e in form.expects) if text]
        return _result(form, session, found)

    def play(self, form: Form, session: Session) -> None:
        """Submit the requests of a form as they arrive and run them to their ends."""
        for place, ask in enumerate(form.asks):
            if ask.wait != 0:
                session.run(ask.wait)
            rid = f"{place}-{ask.prompt}"
            prompt = self._prompt(ask, session)
            session.submit(rid, prompt, self._num_tokens(ask), ask.logprobs)
        session.run()

    def expect(self, ask: Ask, trace: Trace) -> Continuation:
        """What the reference says to the prompt of a request that was played. Known answers are kept."""
        num_tokens, key = self._num_tokens(ask), tuple(trace.prompt_ids)
        known = self._expected.get(key)
        if known is None or len(known.output_ids) < num_tokens:
            known = self.reference.greedy(trace.prompt_ids, num_tokens, trace.output_ids)
            self._expected[key] = known
        return known.head(num_tokens)

    def _prompt(self, ask: Ask, session: Session) -> list[int]:
        if ask.continues is None:
            return self.material.prompts[ask.prompt]
        earlier = list(session.traces.values())[ask.continues]
        return earlier.prompt_ids + earlier.output_ids + self.material.follow_up

    def _num_tokens(self, ask: Ask) -> int:
        return self.material.num_tokens if ask.num_tokens is None else ask.num_tokens


def prove(
    folder: str, forms: Iterable[Form] = FORMS, config: SubjectConfig | None = None
) -> list[FormResult]:
    """All forms of a checkpoint folder."""
    proof = Proof(folder, config)
    return [proof.run(form) for form in forms]


def _result(form: Form, session: Session, found: Difference) -> FormResult:
    summary = f"{found.num_positions} positions, {found.num_tokens} greedy tokens, {len(session.steps)} steps"
    problems = list(found.problems)
    if found.max_abs_diff > found.bound:
        problems.insert(0, f"differs by {found.max_abs_diff:.3g} at {found.where}")
    return FormResult(
        name=form.name,
        passed=found.passed,
        max_abs_diff=found.max_abs_diff,
        bound=found.bound,
        detail="; ".join([*problems, summary]),
    )
