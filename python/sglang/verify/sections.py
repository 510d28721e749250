"""The sections of the report: findings as sentences, tables and plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from sglang.verify.coverage import Coverage
from sglang.verify.diverge import ModuleTrace
from sglang.verify.proof import FormResult
from sglang.verify.report import markdown_table, to_dict
from sglang.verify.speed import BATCH, NUM_TOKENS, PROMPT_LEN, Speed, SpeedReport
from sglang.verify.summary import Section, cell

PLOT_NAME = "error_by_layer.svg"
TEXT_TOKENS = 16
_MAX_NAMES = 20
_MAX_PARTS = 2
_CAUSE_OF_RANKS = (
    ". One rank is right, so look at what depends on their number: a size that is cut twice or not at all, a sum over ranks that is "
    "missing or done twice, a weight that every rank takes whole"
)


def worst(results: Sequence[FormResult]) -> str:
    found = max(results, key=lambda r: r.max_abs_diff / r.bound)
    return f"{found.max_abs_diff:.2e} (allowed {found.bound:.2e})"


def brief(detail: str) -> str:
    """The first findings of a form; the report has all of them."""
    parts = detail.split("; ")
    return detail if len(parts) <= _MAX_PARTS else f"{'; '.join(parts[:_MAX_PARTS])}; ..."


def coverage_sentence(found: Coverage) -> str:
    parts = [
        f"{found.num_tensors} tensors, {found.num_parameters} parameters of {found.class_name} "
        f"({found.num_elements} numbers)"
    ]
    if found.unfilled:
        parts.append(f"not filled, or NaN in the checkpoint: {_names(found.unfilled)}")
    if found.not_accounted:
        parts.append(f"tensors that reach no parameter: {_names(found.not_accounted)}")
    if found.allowed:
        parts.append(
            f"left out on purpose (rule skip, or the copy of a tied head): {_names(found.allowed)}"
        )
    if found.crossed:
        parts.append(f"loaded into a parameter of another name: {_names(found.crossed)}")
    if not found.is_traced:
        parts.append("placed by transformers, whose loading report was clean")
    elif found.passed and not found.allowed:
        parts.append("every tensor is used and every number of every parameter is filled")
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def module_section(trace: ModuleTrace, layers: list[tuple[str, float]]) -> Section:
    first = trace.first
    where = f"form {trace.form!r}, request {trace.rid}"
    if first is None:
        summary = f"no module differs in {where}; {len(trace.sites)} places compared"
    else:
        summary = f"first difference in {where}: {first.describe()}; {trace.cause}"
    if trace.epsilons:
        summary += f"; norms with another epsilon, too small to show here: {_names(trace.epsilons)}"
    rows = [
        "| module | compared | first token | largest difference | allowed |",
        "|---|---|---|---|---|",
    ]
    for error in trace.sites:
        shard = f", shard {error.site.shard}" if error.site.shard else ""
        token = "" if error.first_token is None else str(error.first_token)
        rows.append(
            f"| `{error.site.ours}`{shard} | {error.site.part} | {token} | {error.max_abs:.2e} | {error.bound:.2e} |"
        )
    data: dict[str, Any] = {"form": trace.form, "request": trace.rid, "layers": layers}
    data["epsilons"] = trace.epsilons
    if first is not None:
        data["first"] = {
            "module": first.site.ours,
            "reference": first.site.theirs,
            "compared": first.site.part,
            "shard": first.site.shard,
            "token": first.first_token,
            "difference": first.max_abs,
            "bound": first.bound,
            "cause": trace.cause,
        }
    text = (
        f"![relative error by layer]({PLOT_NAME})\n\nIn the order of the reference:\n\n"
        + "\n".join(rows)
    )
    return Section("modules", first is None and not trace.epsilons, summary, text, data)


def text_section(rows: list[dict[str, str]]) -> Section:
    same = sum(row["ours"] == row["transformers"] for row in rows)
    lines = ["| prompt | here | reference |", "|---|---|---|"]
    for row in rows:
        cells = (cell(repr(value)) for value in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    summary = (
        f"{same} of {len(rows)} greedy texts of {TEXT_TOKENS} tokens are those of the reference"
    )
    return Section("text", same == len(rows), summary, "\n".join(lines), {"texts": rows})


def ranks_section(
    sizes: Sequence[int], results: Sequence[FormResult], is_right_alone: bool
) -> Section:
    """Tensor parallelism on CPU processes. `is_right_alone`: one rank passed its forms."""
    failed = [result for result in results if not result.passed]
    names = " = ".join(str(size) for size in (1, *sizes))
    summary = f"TP {names}: the reference's logits and tokens, largest difference {worst(results)}"
    if failed:
        summary = f"{failed[0].name}: {brief(failed[0].detail)}"
        if is_right_alone:
            summary += _CAUSE_OF_RANKS
    data = {"sizes": list(sizes), **to_dict(results)}
    return Section("ranks", not failed, summary, markdown_table(results), data)


def speed_section(report: SpeedReport, is_same: bool) -> Section:
    def row(name: str, speed: Speed) -> str:
        return (
            f"| {name} | {speed.ttft * 1e3:.1f} | {speed.tokens_per_second:.1f} | "
            f"{speed.batch_tokens_per_second:.1f} |"
        )

    ours, theirs = report.engine, report.reference
    lines = [
        f"Prompts of {PROMPT_LEN} tokens, {NUM_TOKENS} new tokens, float32, {torch.get_num_threads()} threads, "
        "best of three runs; the engine in processes of its own, transformers with its cache, a reference of our own without.",
        "",
        f"| | TTFT, ms | tokens/s, 1 request | tokens/s, {BATCH} requests |",
        "|---|---|---|---|",
        row("here", ours),
        row("reference", theirs),
    ]
    summary = (
        f"TTFT {ours.ttft * 1e3:.1f} ms (reference {theirs.ttft * 1e3:.1f}), {ours.tokens_per_second:.0f} tokens/s "
        f"({theirs.tokens_per_second:.0f})"
    )
    if not is_same:
        summary = f"the served tokens are not those of the reference: {report.engine_ids} instead of {report.reference_ids}"
    return Section("speed", is_same, summary, "\n".join(lines), dataclasses.asdict(report))
