"""The whole verification of one model, step by step: checkpoint, weights, forms, modules, text, ranks, speed.

A step that fails is a failed section with a sentence; what needs it is then skipped. Nothing is raised to the caller.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from sglang.srt.configs.model_config import ModelConfig, is_multimodal_model
from sglang.srt.environ import envs
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.models.registry import FALLBACK_ARCH, ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import get_tokenizer, read_config_dict
from sglang.test.prompts import CORRECTNESS_PROMPTS
from sglang.verify.comparison import RELATIVE_BOUND, bound_of
from sglang.verify.coverage import Coverage, measure_coverage
from sglang.verify.diverge import trace_modules
from sglang.verify.forms import FORMS, Ask, Form, batch_of, forms_named
from sglang.verify.media import MediaProof, family_of
from sglang.verify.media_forms import media_forms
from sglang.verify.media_tiny import write_media_config
from sglang.verify.plot import error_plot
from sglang.verify.proof import FormResult, Proof
from sglang.verify.ranks import Ranks, possible_sizes, prove_on_ranks
from sglang.verify.reference import fetch_checkpoint
from sglang.verify.report import markdown_table, to_dict
from sglang.verify.sections import (
    PLOT_NAME,
    TEXT_TOKENS,
    brief,
    coverage_sentence,
    module_section,
    ranks_section,
    speed_section,
    text_section,
    worst,
)
from sglang.verify.speed import SpeedReport, measure_speed
from sglang.verify.subject import SubjectConfig
from sglang.verify.summary import Section, Summary
from sglang.verify.tiny import require_reference, tiny_config, write_config

# Longer contexts only cost memory: no form is longer than 200 tokens.
_CONTEXT_LEN = 1024

ORDER = Form(
    "order of arrival reversed, page 1",
    (Ask("tiny"), Ask("middle", 3), Ask("single", 4), Ask("long", 5), Ask("short", 8)),
    expects=(batch_of(5, "decode"),),
)
WHOLE = Form("one prompt, whole", (Ask("long", num_tokens=4),))
QUICK: tuple[Form, ...] = (
    *forms_named(
        [
            "whole prefill",
            "prefill in chunks of 16",
            "prefill in chunks of 48",
            "full hit",
            "partial hit, page 16, chunks",
            "mixed with prefill",
            "retraction, page 16",
            "logprobs, page 1, chunks",
        ]
    ),
    ORDER,
)
FULL: tuple[Form, ...] = (*FORMS, ORDER)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to verify. Exactly one of `model` (folder or hub id) and `tiny` (see `tiny_config`) is set."""

    output: Path
    model: str | None = None
    tiny: str | None = None
    full: bool = False
    ranks: bool = True
    speed: bool = True
    model_impl: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        return self.model or f"tiny {self.tiny}"


class StepFailed(Exception):
    """A step whose section has failed and that ends the verification."""


class Verification:
    """Runs the steps. `say` is called with every section as soon as it is there."""

    def __init__(self, options: Options, command: str, say: Callable[[Section], None]) -> None:
        self._options = options
        self._say = say
        self._forms = FULL if options.full else QUICK
        self.summary = Summary(options.name, command, _versions())
        self._folder = ""
        self._coverage = Coverage()
        self._results: list[FormResult] = []
        self._proof: Proof | None = None

    def run(self) -> Summary:
        """All steps, then the report's files in the output folder."""
        self._options.output.mkdir(parents=True, exist_ok=True)
        needed = (
            ("checkpoint", self._find_checkpoint),
            ("weights", self._cover_weights),
            ("reference", self._load_both),
        )
        independent = [
            ("forms", self._prove_forms),
            ("modules", self._compare_modules),
            ("text", self._compare_text),
        ]
        if self._options.ranks:
            independent.append(("ranks", self._prove_ranks))
        if self._options.speed:
            independent.append(("speed", self._measure_speed))
        try:
            for title, step in needed:
                if self._do(title, step).passed is False:
                    raise StepFailed(title)
            for title, step in independent:
                self._do(title, step)
        except StepFailed:
            done = {section.title for section in self.summary.sections}
            for title, _ in (*needed, *independent):
                if title not in done:
                    self._add(Section(title, None, "not done, because a step before it failed"))
        self.summary.write(self._options.output)
        return self.summary

    def _do(self, title: str, step: Callable[[], Section]) -> Section:
        started = time.perf_counter()
        try:
            section = step()
        except Exception as error:  # the command's boundary: the model file may raise anything
            section = Section(title, False, describe_error(error))
            section.data["traceback"] = traceback.format_exc()
            if not isinstance(error, ConfigError):
                section.text = f"```\n{traceback.format_exc()}```"
        section.seconds = time.perf_counter() - started
        self._add(section)
        return section

    def _add(self, section: Section) -> None:
        self.summary.sections.append(section)
        self._say(section)

    # --- steps

    def _find_checkpoint(self) -> Section:
        options = self._options
        if options.tiny is not None:
            folder = options.output / "checkpoint"
            raw = tiny_config(options.tiny)
            takes_media = family_of(raw["architectures"]) is not None
            write = write_media_config if takes_media else write_config
            self._folder = str(write(raw, folder))
            made = f"a random checkpoint was written to {self._folder}; "
        else:
            assert options.model is not None, "neither a model nor a tiny configuration"
            self._folder = fetch_checkpoint(options.model, options.revision)
            made = ""
        config = self._model_config()
        _let_media_in(config.architectures)
        cls, name = get_model_architecture(config)
        label = ModelRegistry.source_of(name).label
        served = f"{', '.join(config.architectures)} is served by {cls.__module__}:{cls.__name__} ({label})"
        data = {
            "folder": self._folder,
            "class": f"{cls.__module__}:{cls.__name__}",
            "source": label,
        }
        return Section("checkpoint", True, made + served, data=data)

    def _cover_weights(self) -> Section:
        self._coverage = found = measure_coverage(self._folder, self._model_config())
        data = {
            "tensors": found.num_tensors,
            "parameters": found.num_parameters,
            "elements": found.num_elements,
            "unfilled_parameters": found.unfilled,
            "ignored_tensors": found.ignored,
            "is_traced": found.is_traced,
        }
        return Section("weights", found.passed, coverage_sentence(found), data=data)

    def _load_both(self) -> Section:
        family = family_of(self._model_config().architectures)
        if not self._options.trust_remote_code and family is None:
            require_reference(read_config_dict(self._folder))
        context_len = min(self._model_config().derived_context_len, _CONTEXT_LEN)
        config = SubjectConfig(
            context_length=context_len,
            model_impl=self._options.model_impl,
            trust_remote_code=self._options.trust_remote_code,
        )
        if family is None:
            self._proof = Proof(self._folder, config)
        else:
            media = MediaProof(
                self._folder, family, self._model_config().hf_config.to_dict(), config
            )
            self._proof, self._forms = media, (*self._forms, *media_forms(media.media))
        reference = self._proof.reference
        owner = "a reference of our own:" if reference.is_own else "transformers'"
        name = type(reference.model).__name__
        return Section("reference", True, f"{owner} {name}, float32, eager attention")

    def _prove_forms(self) -> Section:
        assert self._proof is not None
        for form in self._forms:
            self._results.append(_prove(self._proof, form))
        failed = [result for result in self._results if not result.passed]
        count = f"{len(self._results) - len(failed)} of {len(self._results)} forms passed"
        summary = f"{count}, largest difference {worst(self._results)}"
        if failed:
            summary = f"{count}; first to fail: {failed[0].name}: {brief(failed[0].detail)}"
        data = to_dict(self._results)
        return Section("forms", not failed, summary, markdown_table(self._results), data)

    def _compare_modules(self) -> Section:
        assert self._proof is not None
        failed = [r.name for r in self._results if not r.passed and not math.isinf(r.max_abs_diff)]
        form = next((f for f in self._forms if failed and f.name == failed[0]), WHOLE)
        trace = trace_modules(self._proof, form, self._coverage.placements)
        layers = trace.layers()
        title = f"{self.summary.model}: relative error by layer ({form.name})"
        plot = error_plot(title, layers, RELATIVE_BOUND)
        (self._options.output / PLOT_NAME).write_text(plot, encoding="utf-8")
        return module_section(trace, layers)

    def _compare_text(self) -> Section:
        proof = self._proof
        assert proof is not None
        try:
            tokenizer = get_tokenizer(
                self._folder, trust_remote_code=self._options.trust_remote_code
            )
        except ConfigError as error:
            return Section("text", None, f"no tokenizer: {error}")
        names = [f"text {i}" for i in range(len(CORRECTNESS_PROMPTS))]
        encoded = [list(tokenizer.encode(prompt)) for prompt in CORRECTNESS_PROMPTS]
        proof.material.prompts.update(zip(names, encoded, strict=True))
        form = Form("text", tuple(Ask(name, num_tokens=TEXT_TOKENS) for name in names))
        session = proof.subject(form.page_size).session(form.schedule)
        proof.play(form, session)
        rows = []
        for prompt, ask, trace in zip(
            CORRECTNESS_PROMPTS, form.asks, session.traces.values(), strict=True
        ):
            texts = [
                tokenizer.decode(ids)
                for ids in (trace.output_ids, proof.expect(ask, trace).output_ids)
            ]
            rows.append({"prompt": prompt, "ours": texts[0], "transformers": texts[1]})
        return text_section(rows)

    def _prove_ranks(self) -> Section:
        proof = self._proof
        assert proof is not None
        model_config = proof.subject(1).model_config
        sizes = possible_sizes(model_config.facts.num_attention_heads)
        if type(proof.subject(1).model).__name__ == FALLBACK_ARCH:
            return Section("ranks", None, "the transformers fallback runs on one rank")
        if not sizes:
            heads = model_config.facts.num_attention_heads
            return Section("ranks", None, f"{heads} heads cannot be cut into 2 or 4 parts")
        results = []
        with Ranks(max(sizes)) as ranks:
            for size in sizes:
                results += prove_on_ranks(ranks, proof, size)
        is_right_alone = all(result.passed for result in self._results)
        return ranks_section(sizes, results, is_right_alone)

    def _measure_speed(self) -> Section:
        proof = self._proof
        assert proof is not None
        report = measure_speed(
            self._folder,
            proof.reference.model,
            proof.reference.vocab_size,
            self._options.trust_remote_code,
            self._options.model_impl,
        )
        return speed_section(report, self._is_tie(report))

    def _is_tie(self, report: SpeedReport) -> bool:
        """Whether the served tokens are those of transformers, as far as rounding decides nothing."""
        assert self._proof is not None
        pairs = zip(report.engine_ids, report.reference_ids, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if place is None:
            return len(report.engine_ids) == len(report.reference_ids)
        ids = [*report.prompt_ids, *report.engine_ids[:place]]
        logits = self._proof.reference.logits(ids)[-1]
        gap = float(logits.max() - logits[report.engine_ids[place]])
        return gap <= bound_of(float(logits.abs().max()))

    def _model_config(self) -> ModelConfig:
        return ModelConfig(
            self._folder,
            dtype="float32",
            model_impl=self._options.model_impl,
            trust_remote_code=self._options.trust_remote_code,
        )


def describe_error(error: BaseException) -> str:
    """One sentence about an exception: its message when it is meant for users, else with its type."""
    text = str(error).strip() or "no message"
    if isinstance(error, ConfigError):
        return text
    return f"{type(error).__name__}: {text}{_place_of(error)}"


def _place_of(error: BaseException) -> str:
    """` (in acme.py, line 72)`: where the code that is not PyTorch's raised it; empty without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.filename]
    return f" (in {Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _let_media_in(architectures: Sequence[str]) -> None:
    """A plug-in's class that extends one with media takes them too: here, and in the processes of the ranks."""
    if family_of(architectures) is not None and not is_multimodal_model(architectures):
        variable = envs.SGLANG_EXTERNAL_MM_MODEL_ARCH
        variable.set((*variable.get(), *architectures))


def _prove(proof: Proof, form: Form) -> FormResult:
    try:
        return proof.run(form)
    except Exception as error:  # the command's boundary: the others are still worth running
        return FormResult(form.name, False, math.inf, math.inf, describe_error(error))


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}
