"""Runs forms of one checkpoint against its reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from sglang.verify.comparison import RELATIVE_BOUND, Difference, compare_logprobs, compare_trace
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

    # Modules whose rows are not the tokens' are not compared one by one: beginnings of their names.
    off_tokens: tuple[str, ...] = ()

    def __init__(
        self, folder: str, config: SubjectConfig | None = None, material: Material | None = None
    ) -> None:
        self.folder = folder
        self.config = config or SubjectConfig()
        self._subjects: dict[int, Subject] = {}
        self._expected: dict[tuple[int, ...], Continuation] = {}
        context_len = self.subject(self.config.page_size).context_len
        self.reference = self._load_reference(context_len)
        vocab_size = self.reference.vocab_size
        self.material = material or Material.random(vocab_size, context_len)

    def _load_reference(self, context_len: int) -> ReferenceModel:
        return ReferenceModel(
            self.folder,
            rope_length=context_len,
            trust_remote_code=self.config.trust_remote_code,
        )

    def subject(self, page_size: int) -> Subject:
        """The engine with this page size."""
        if page_size not in self._subjects:
            config = dataclasses.replace(self.config, page_size=page_size)
            self._subjects[page_size] = Subject(self.folder, config)
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
        return result_of(form.name, found, f"{len(session.steps)} steps")

    def play(self, form: Form, session: Session) -> None:
        """Submit the requests of a form as they arrive and run them to their ends."""

        def submit(rid: str, ask: Ask, prompt: list[int]) -> None:
            self._submit(rid, ask, prompt, session)

        play_form(form, session, self.material, submit)

    def _submit(self, rid: str, ask: Ask, prompt: list[int], session: Session) -> None:
        session.submit(rid, prompt, self.material.num_tokens_of(ask), ask.logprobs)

    def packed_media(self) -> dict[str, bytes]:
        """The media of prompts that have some, by name, as requests bring them."""
        return {}

    def first_medium(self, rid: str) -> int | None:
        """Where the first medium of a request begins; None without one."""
        return None

    def name_in_reference(self, tensor: str) -> str:
        """What the reference calls a tensor of the checkpoint."""
        return tensor

    def logits_of(self, rid: str, token_ids: list[int]) -> torch.Tensor:
        """What the reference says to the tokens of the request `rid` of a form, float32 [n, V]."""
        return self.reference.logits(token_ids)

    def expect(self, ask: Ask, trace: Trace) -> Continuation:
        """What the reference says to the prompt of a request that was played. Known answers are kept."""
        num_tokens, key = self.material.num_tokens_of(ask), tuple(trace.prompt_ids)
        known = self._expected.get(key)
        if known is None or list(known.output_ids[:num_tokens]) != trace.output_ids[:num_tokens]:
            outputs = trace.output_ids
            known = self.reference.greedy(trace.prompt_ids, num_tokens, outputs, RELATIVE_BOUND)
            self._expected[key] = known
        return known.head(num_tokens)


def play_form(
    form: Form,
    session: Session,
    material: Material,
    submit: Callable[[str, Ask, list[int]], None],
) -> None:
    """Submit the requests of a form (as `submit(rid, ask, prompt)`) as they arrive and run them to their ends."""
    for place, ask in enumerate(form.asks):
        if ask.wait != 0:
            session.run(ask.wait)
        if ask.continues is None:
            prompt = material.prompts[ask.prompt]
        else:
            earlier = list(session.traces.values())[ask.continues]
            prompt = earlier.prompt_ids + earlier.output_ids + material.follow_up
        submit(f"{place}-{ask.prompt}", ask, prompt)
    session.run()


def prove(
    folder: str, forms: Iterable[Form] = FORMS, config: SubjectConfig | None = None
) -> list[FormResult]:
    """All forms of a checkpoint folder."""
    proof = Proof(folder, config)
    return [proof.run(form) for form in forms]


def result_of(name: str, found: Difference, more: str) -> FormResult:
    """The outcome of a form whose requests were compared into `found`; `more` ends the detail."""
    summary = f"{found.num_positions} positions, {found.num_tokens} greedy tokens, {more}"
    problems = list(found.problems)
    if found.max_abs_diff > found.bound:
        problems.insert(0, f"differs by {found.max_abs_diff:.3g} at {found.where}")
    return FormResult(
        name=name,
        passed=found.passed,
        max_abs_diff=found.max_abs_diff,
        bound=found.bound,
        detail="; ".join([*problems, summary]),
    )
