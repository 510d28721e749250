"""Writes the documentation page of the flags from their declarations."""

from __future__ import annotations

from typing import Any

from sglang.srt.arg_groups.fields import FlagSpec, Status, flags_by_topic

_HEAD = """\
# Server arguments

<!-- Written by scripts/generate_server_arguments.py from python/sglang/srt/arg_groups; do not edit. -->

Every flag of `python -m sglang.launch_server` and `sglang serve`. The same names, with underscores, are keywords of
`sglang.Engine`. Long options may be shortened while they stay unambiguous, and take their value as `--flag value` or
`--flag=value`. `--config FILE.yaml` reads flags from a file; the command line wins over the file.

| Status | A value other than the default |
|---|---|
| implemented | works; where the table lists values in bold, those work and the others are refused by name |
| accepted | changes nothing here yet, and no result depends on it |
| refused | is an error: the subject is not implemented |
| ignored | is a warning: vendor specific or deprecated |
"""


def server_arguments_page(args_class: type) -> str:
    """The page as Markdown, one table per topic."""
    parts = [_HEAD]
    for title, specs in flags_by_topic(args_class).items():
        parts.append(f"\n## {title}\n")
        parts.append("| Flag | Type | Default | Meaning | Status |\n|---|---|---|---|---|")
        parts += [_row(spec) for spec in specs]
    return "\n".join(parts) + "\n"


def _row(spec: FlagSpec) -> str:
    names = ", ".join(f"`{option}`" for option in spec.options) or f"`{spec.name}` (Python only)"
    meaning = f"{spec.help} {_choices(spec)}".strip()
    cells = (names, _type(spec), _default(spec), meaning, spec.status.value)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(spec: FlagSpec) -> str:
    names: dict[Any, str] = {dict: "JSON object", object: "Python object"}
    name = "JSON string" if spec.is_json else names.get(spec.kind, spec.kind.__name__)
    return f"list of {name}" if spec.is_list else name


def _default(spec: FlagSpec) -> str:
    if spec.default is None:
        return "unset"
    if spec.kind is bool:
        return "off"
    return f"`{spec.default!r}`" if spec.default in ("", [], {}) else f"`{spec.default}`"


def _choices(spec: FlagSpec) -> str:
    if not spec.choices:
        return ""
    ready = spec.supports if spec.supports is not None else ()
    bold = spec.status is not Status.REFUSED
    words = [f"**{c}**" if c in ready and bold else str(c) for c in spec.choices]
    return f"One of: {', '.join(words)}."
