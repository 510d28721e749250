"""`sglang models list` and `sglang models explain MODEL`: what can be served, and what would serve one checkpoint.

Explaining goes the way of a server's start up to the point where it would read weights: it reads config.json, chooses the class, and builds
the model without memory, so that what a model file refuses is known before a GPU is taken.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from sglang.srt.configs.model_config import MODEL_IMPLS, ModelConfig
from sglang.srt.models.registry import FALLBACK_ARCH, Entry, ModelRegistry
from sglang.srt.utils.errors import ConfigError


@dataclass
class Explanation:
    """What would serve a checkpoint. `refusals` is empty when something would."""

    model: str
    architectures: list[str] = field(default_factory=list)  # what config.json says
    served_by: str = ""  # name in the registry
    path: str = ""  # module:class
    file: str = ""
    source: str = ""
    why: str = ""
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is wrong with plug-ins


def main(argv: Sequence[str], prog: str) -> int:
    """Exit code 0; 1 when the explained model would be refused; 2 for a wrong command line."""
    parser = _parser(prog)
    try:
        args = parser.parse_args(list(argv))
    except SystemExit as end:
        return int(end.code or 0)
    try:
        code = _answer(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; what is left must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _answer(args: argparse.Namespace) -> int:
    logging.disable(logging.WARNING)  # what the log would say is part of the answer
    try:
        if args.action == "list":
            return _list(args.json)
        explanation = explain(args.model, args.model_impl, args.trust_remote_code, args.revision)
    finally:
        logging.disable(logging.NOTSET)
    print(json.dumps(asdict(explanation), indent=2) if args.json else render(explanation))
    return 1 if explanation.refusals else 0


def explain(
    model: str,
    model_impl: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Explanation:
    """Find what would serve a model folder or hub repository, without reading weights."""
    found = Explanation(model, notes=ModelRegistry.problems)
    try:
        config = ModelConfig(
            model, trust_remote_code=trust_remote_code, revision=revision, model_impl=model_impl
        )
    except ConfigError as error:
        found.refusals.append(str(error))
        return found
    found.architectures = list(config.architectures)
    try:
        _choose(found, config)
    except ValueError as error:
        found.refusals.append(str(error))
    return found


def render(found: Explanation) -> str:
    """The explanation as lines of text."""
    rows = [
        ("model", found.model),
        ("architectures", ", ".join(found.architectures) or "unknown"),
        ("served by", found.served_by or "nothing"),
        ("class", found.path),
        ("file", found.file),
        ("from", found.source),
        ("why", found.why),
        *(("refused", text) for text in found.refusals),
        *(("note", text) for text in found.notes),
    ]
    return "\n".join(f"{name:<14} {text}" for name, text in rows if text)


def _choose(found: Explanation, config: ModelConfig) -> None:
    """Fill in the class. Raises ValueError with the reason when there is none or it refuses the config."""
    # Heavy: torch, and transformers with the config class.
    import torch

    from sglang.srt.model_loader.loader import build_model
    from sglang.srt.model_loader.utils import get_model_architecture

    model_class, found.served_by = get_model_architecture(config)
    found.path = f"{model_class.__module__}:{model_class.__qualname__}"
    found.file = _file_of(model_class.__module__)
    found.source = ModelRegistry.source_of(found.served_by).label
    found.why = _why(found, config)
    try:
        build_model(model_class, config, torch.device("meta"))
    except ValueError:
        raise
    except Exception as error:  # a boundary: the constructor may be a plug-in's
        raise ValueError(
            f"{found.path} cannot be built for this config: {type(error).__name__}: {error}"
        ) from error


def _why(found: Explanation, config: ModelConfig) -> str:
    if config.model_impl == "transformers":
        return "--model-impl transformers asks for the class that runs any transformers text model"
    if found.served_by == FALLBACK_ARCH and FALLBACK_ARCH not in config.architectures:
        return "no model file of the checkpoint's architectures exists; transformers has one that can be run"
    skipped = config.architectures[: config.architectures.index(found.served_by)]
    after = f"; nobody offers {', '.join(skipped)}" if skipped else ""
    return f"the checkpoint names {found.served_by}{after}"


def _list(as_json: bool) -> int:
    entries = ModelRegistry.entries()
    if as_json:
        rows = [{**asdict(entry), "source": entry.source.label} for entry in entries]
        print(json.dumps({"models": rows, "notes": ModelRegistry.problems}, indent=2))
        return 0
    width = max((len(entry.architecture) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry.architecture:<{width}}  {_row(entry)}")
    for problem in ModelRegistry.problems:
        print(f"note: {problem}")
    return 0


def _row(entry: Entry) -> str:
    where = f"{entry.path}  {entry.source.label}"
    return f"{where}  REFUSED: {entry.problem}" if entry.problem else where


def _file_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return (spec.origin or "") if spec is not None else ""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="What can be served, and by what.")
    actions = parser.add_subparsers(dest="action", required=True)
    table = actions.add_parser("list", help="every architecture, its class and who offers it")
    single = actions.add_parser(
        "explain", help="what would serve MODEL, why, and what would refuse"
    )
    single.add_argument("model", metavar="MODEL", help="a folder or a hub repository id")
    single.add_argument("--model-impl", choices=MODEL_IMPLS, default="auto")
    single.add_argument("--trust-remote-code", action="store_true")
    single.add_argument("--revision")
    for action in (table, single):
        action.add_argument("--json", action="store_true", help="print JSON")
    return parser
