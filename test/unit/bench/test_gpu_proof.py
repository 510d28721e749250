"""The parts of `test/gpu/run_proof.py` that decide: the judge, the choice of rows, and processes that die or hang."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gpu"))

import proof_table  # noqa: E402
from proof_judge import Said, judge  # noqa: E402
from proof_kinds import KINDS, MEDIA, TEXT  # noqa: E402
from proof_references import Prompt, Scores  # noqa: E402
from proof_rows import GRAPHS, HALF_ONLY, NO_GRAPHS, Row, rows_of  # noqa: E402

PROMPT = Prompt((5, 6, 7))
OUTPUT = [8, 9, 10, 11]
EXACT = torch.linspace(-4.0, -1.0, len(PROMPT.ids) + len(OUTPUT) - 1)


class StubReferences:
    """Transformers errs by `error` in bfloat16; the tokens of the output are `behind` the best ones."""

    def __init__(self, error: float = 0.05, behind: float = 0.0) -> None:
        self._error = error
        self._behind = behind

    def exact(self, prompt: Prompt, output_ids: list[int]) -> Scores:
        return Scores(EXACT, torch.full_like(EXACT, self._behind), scale=8.0)

    def rounded(self, prompt: Prompt, output_ids: list[int]) -> Scores:
        return Scores(EXACT + self._error, torch.zeros_like(EXACT), scale=8.0)


def said(errors: float | torch.Tensor = 0.0, output: list[int] = OUTPUT) -> Said:
    values = (EXACT + errors).tolist()
    first = len(PROMPT.ids) - 1
    prompt_logprobs = {position + 1: values[position] for position in range(first)}
    return Said(PROMPT, output, values[first:], prompt_logprobs)


def is_right(
    item: Said, references: Any, dtype: str = "float32", num_tokens: int = len(OUTPUT), **flags: Any
) -> bool:
    return judge([said(), item], references, dtype, num_tokens, **flags).is_right


def at(place: int, error: float) -> torch.Tensor:
    errors = torch.zeros_like(EXACT)
    errors[place] = error
    return errors


@pytest.mark.parametrize("place", [0, 1, 2, 5], ids=["first", "prompt", "output", "last"])
def test_one_wrong_logprob_fails_float32(place: int) -> None:
    assert is_right(said(at(place, 7e-4)), StubReferences())  # 1e-4 of the largest logit, 8
    assert not is_right(said(at(place, 9e-4)), StubReferences())
    assert not is_right(said(at(place, math.nan)), StubReferences())


def test_a_token_must_be_the_most_likely_one_but_for_rounding() -> None:
    assert is_right(said(), StubReferences(behind=7e-4))
    assert not is_right(said(), StubReferences(behind=9e-4))


def test_a_missing_token_fails() -> None:
    assert not is_right(said(), StubReferences(), num_tokens=len(OUTPUT) + 1)


def test_bfloat16_is_measured_by_the_error_of_transformers() -> None:
    references = StubReferences(error=0.05)
    judged = {error: judge([said(error)], references, "bfloat16", 4) for error in (0.09, 0.11)}
    assert judged[0.09].is_right and not judged[0.11].is_right
    assert not is_right(said(math.nan), references, "bfloat16")
    assert not is_right(said(), StubReferences(error=0.05, behind=0.3), "bfloat16")


def test_the_largest_error_counts_and_experts_may_have_larger_ones() -> None:
    references = StubReferences(error=0.05)
    assert not is_right(said(at(3, 0.15)), references, "bfloat16")
    assert is_right(said(at(3, 0.15)), references, "bfloat16", has_experts=True)
    assert not is_right(said(at(3, 0.25)), references, "bfloat16", has_experts=True)


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k.task in (TEXT, MEDIA)], ids=lambda k: k.name
)
def test_every_kind_meets_every_backend_with_and_without_graphs(kind: Any) -> None:
    backends = ["triton", "flashinfer", "fa3", "torch_native"]
    rows = rows_of(kind, backends, ["float32", "bfloat16"], "cuda")
    found = {(row.backend, row.dtype, row.mode) for row in rows}
    for backend in backends[:3]:
        dtypes = ["bfloat16"] if backend in HALF_ONLY else ["float32", "bfloat16"]
        assert {(backend, d, m) for d in dtypes for m in (GRAPHS, NO_GRAPHS)} <= found
    assert ("torch_native", "float32", NO_GRAPHS) in found
    assert not any(d == "float32" and b in HALF_ONLY for b, d, _ in found)


WORKER = """
import json, os, sys, time
rows = json.loads(sys.argv[sys.argv.index("--rows") + 1])
for backend, dtype, mode in rows:
    if mode == "dies":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    if mode == "hangs":
        time.sleep(600)
    print(json.dumps({"status": "ok", "words": mode, "notes": [], "seconds": 1.0}), flush=True)
"""


def test_a_process_that_dies_or_hangs_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(proof_table, "_SCRIPT", str(script))
    table = proof_table.Table(proof_table.Settings("cpu", 2, 3.0, tmp_path, tmp_path))
    rows = [Row("triton", "float32", mode) for mode in ("a", "dies", "b", "hangs", "c")]
    table.run([(KINDS[0], rows)])
    table.print_summary()
    out = capsys.readouterr().out
    assert table.num_failed == 2
    assert "its process ended with status 3" in out and "no result within 3 s" in out
    assert "triton 3 ok 2 FAIL" in out
    assert "the last words" in out
