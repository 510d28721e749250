"""Every tiny model in every form against transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models.configs import CASES
from models.proofs import make_proof
from models.record import note, note_ranks

from sglang.verify.forms import FORMS, Ask, Form, forms_named
from sglang.verify.proof import Proof, prove
from sglang.verify.ranks import TP_SIZES, Ranks, prove_on_ranks
from sglang.verify.report import markdown_table, to_dict

# Served by the transformers fallback although there is a model file of ours.
FALLBACK = "-on-fallback"
NAMES = [*CASES, f"llama{FALLBACK}", f"qwen2-window{FALLBACK}"]
# The first configuration of every architecture with a model file.
ON_RANKS = list(
    {c.architecture: n for n, c in reversed(CASES.items()) if not c.is_fallback}.values()
)
WHOLE = Form("one whole prefill", (Ask("long", num_tokens=2),))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def proof(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """One per model, used for all of its forms."""
    name = request.param.removesuffix(FALLBACK)
    folder = tmp_path_factory.mktemp(name)
    return make_proof(name, folder, on_fallback=request.param.endswith(FALLBACK))


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
@pytest.mark.parametrize("proof", NAMES, indirect=True, scope="module")
def test_form(proof: Proof, form: Form, request: pytest.FixtureRequest) -> None:
    result = proof.run(form)
    note(request, _param(request), _architecture(proof), result)
    assert result.passed, result.detail


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(max(TP_SIZES)) as processes:
        yield processes


@pytest.mark.parametrize("tp_size", TP_SIZES)
@pytest.mark.parametrize("proof", ON_RANKS, indirect=True, scope="module")
def test_ranks(proof: Proof, ranks: Ranks, tp_size: int, request: pytest.FixtureRequest) -> None:
    """One configuration of every architecture, cut over processes."""
    results = prove_on_ranks(ranks, proof, tp_size)
    note_ranks(request, _param(request), _architecture(proof), tp_size, results)
    assert all(result.passed for result in results), results


def _param(request: pytest.FixtureRequest) -> str:
    return request.node.callspec.params["proof"]


def _architecture(proof: Proof) -> str:
    """What the checkpoint asks for."""
    return proof.subject(1).model_config.architectures[0]


@pytest.mark.parametrize("proof", NAMES, indirect=True, scope="module")
def test_every_parameter_counts(proof: Proof) -> None:
    """A tenth of its spread added at random to any one parameter is noticed, so none is unused or left out of the comparison."""
    assert proof.run(WHOLE).passed
    unnoticed = []
    model = proof.subject(1).model
    for name, parameter in model.named_parameters():
        original = parameter.detach().clone()
        noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            spread = original.std() if original.numel() > 1 else 1.0
            parameter += 0.1 * spread * noise
        if proof.run(WHOLE).passed:
            unnoticed.append(name)
        with torch.no_grad():
            parameter.copy_(original)
    assert not unnoticed
    assert proof.run(WHOLE).passed, "the parameters were not restored"


def test_forms_cover_what_is_promised() -> None:
    """Removing a form is a decision, not an accident."""
    assert {form.page_size for form in FORMS} == {1, 16}
    assert {form.schedule.chunk_size for form in FORMS} >= {None, 1, 3, 16, 64}
    assert {form.schedule.depth for form in FORMS} == {0, 1}
    assert all(any(ask.num_tokens is None for ask in form.asks) for form in FORMS)
    for kind in (
        "whole",
        "chunks",
        "full hit",
        "partial hit",
        "decode",
        "mixed",
        "retraction",
        "logprobs",
    ):
        pages = {form.page_size for form in forms_named([kind])}
        assert pages == {1, 16}, kind


def test_form_names_are_unique() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)
    with pytest.raises(ValueError, match="no form has 'hole in one'"):
        forms_named(["hole in one"])


def test_prove_and_report(tmp_path: Path) -> None:
    make_proof("llama", tmp_path)
    results = prove(str(tmp_path), [WHOLE])
    table = markdown_table(results)
    assert "| one whole prefill | pass |" in table
    assert "1 of 1 forms passed" in table
    plain = to_dict(results)
    assert plain["passed"] is True
    assert plain["forms"][0]["max_abs_diff"] <= plain["forms"][0]["bound"]
    assert to_dict([])["passed"] is False, "nothing proven is not a success"
