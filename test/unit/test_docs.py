"""What the documentation names exists: links, headings, files, modules, commands and flags; and its code can be read."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang.cli.main import COMMANDS
from sglang.srt.arg_groups.fields import flag_specs
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.entrypoints.http.native_routes import GenerateBody
from sglang.srt.entrypoints.openai.protocol import (
    UNSUPPORTED_FIELDS,
    ChatCompletionRequest,
    CompletionRequest,
)
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.observability.metrics import FrontMetrics
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")]
    + list((ROOT / "benchmark").glob("*/README.md"))
)
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Where a path of the text may begin, beside the page's own folder.
BASES = ("", "python", "python/sglang", "python/sglang/srt", "python/sglang/srt/layers")
DEEP_BASES = (*BASES, "python/sglang/srt/layers/attention", "python/sglang/verify")
FILE_NAME = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|json|jinja|sh|toml))`")
# Flags of programs that are not ours, and names made up for an example.
FOREIGN_FLAGS = {"--index-url", "--flag"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, code in FENCE.findall(page.read_text("utf-8")):
        if language in languages:
            yield code


def anchor(heading: str) -> str:
    """As Markdown hosts make it: words of the heading in lower case, joined by dashes."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, heading = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{target}: no such file"
        assert not heading or heading in anchors(other), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_in_the_text_exist(page: Path) -> None:
    for path in FILE_NAME.findall(prose(page)):
        if "NAME" in path:
            continue
        places = [page.parent / path, *(ROOT / base / path for base in DEEP_BASES)]
        assert any(place.exists() for place in places), f"{path}: no such file"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_can_be_read(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    for code in blocks(page, "json"):
        json.loads(code)
    for code in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
        assert not done.stderr, f"{done.stderr}\n{code}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_and_commands_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for module in re.findall(r"python3? -m (sglang(?:\.\w+)+)", text):
        assert importlib.util.find_spec(module), module
    for command in re.findall(r"(?:^|`|\) )sglang ([a-z][\w-]*)(?=[ `\n])", text, re.M):
        assert command in COMMANDS, f"sglang {command}"


@functools.cache
def options_of_our_programs() -> set[str]:
    """Every option that a parser of the repository adds: written out, or made from the field of a dataclass."""
    found: set[str] = set()
    for folder in ("python/sglang", "scripts", "benchmark", "test"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and (path.suffix in (".py", ".sh") or folder == "scripts"):
                text = path.read_bytes().decode("utf-8", "replace")
                found.update(re.findall(r"""["' (](--[a-z][a-z0-9_-]*)["')= ]""", text))
    for folder in ("python/sglang/bench", "benchmark"):
        for path in (ROOT / folder).rglob("*.py"):
            names = re.findall(r"^    (\w+): ", path.read_text("utf-8"), re.M)
            found.update("--" + name.replace("_", "-") for name in names)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_exist(page: Path) -> None:
    flags = {option for spec in flag_specs(ServerArgs).values() for option in spec.options}
    known = flags | options_of_our_programs() | FOREIGN_FLAGS
    named = set(
        re.findall(r"(?<![\w-])(--[a-z][a-z0-9_-]*[a-z0-9])(?![\w*-])", page.read_text("utf-8"))
    )
    assert not named - known, f"no program of ours has {sorted(named - known)}"


# --- tables that name defaults and methods


def rows(page: str) -> Iterator[list[str]]:
    for line in (DOCS / page).read_text("utf-8").splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def literal(text: str) -> object:
    """A number, true or false; else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    try:
        return float(text)
    except ValueError:
        return text


def test_defaults_of_sampling_parameters() -> None:
    seen = set()
    for name, default, *_ in rows("basic_usage/sampling_params.md"):
        seen.add(name.strip("`"))
        field = SamplingParams.__struct_defaults__[
            SamplingParams.__struct_fields__.index(name.strip("`"))
        ]
        if isinstance(literal(default), float | bool | None):
            assert field == literal(default), name
    public = set(SamplingParams.__struct_fields__)
    filled = {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len"}
    assert seen == public - filled


def test_defaults_of_environment_variables() -> None:
    """Cells that hold one plain value for each variable of their row; others explain in words."""
    compared = 0
    for names, default, _ in rows("references/environment_variables.md"):
        fields = [envs.fields().get(name) for name in re.findall(r"`([A-Z_0-9]+)`", names)]
        values = [literal(value) for value in default.split(", ")]
        if len(values) != len(fields):
            continue
        for field, value in zip(fields, values, strict=True):
            if field is not None and isinstance(value, float | bool):
                assert field.default == value, field.name
                compared += 1
    assert compared > 20


def test_methods_of_the_engine() -> None:
    text = (DOCS / "basic_usage" / "offline_engine_api.md").read_text("utf-8")
    told = set(re.findall(r"`(\w+)\((?:\.\.\.)?\)`", text)) | {"generate", "async_generate"}
    public = {name for name, value in vars(Engine).items() if callable(value) and name[0] != "_"}
    assert told <= public
    hooks = {name for name in public if name.endswith(("_func", "_class"))}
    assert public - hooks - told <= {"async_encode"}


def test_metrics_are_told() -> None:
    told = {
        name.strip("`"): kind
        for name, kind, *_ in rows("references/metrics.md")
        if "sglang:" in name
    }
    text = FrontMetrics("m").render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    assert told == {name: kind for name, kind in kinds.items() if not name.endswith("_created")}


def test_fields_of_requests() -> None:
    told = set(re.findall(r"`(\w+)`", (DOCS / "basic_usage/openai_api_completions.md").read_text()))
    named = fields_told("basic_usage/openai_api_completions.md")
    known = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert named <= known
    # Taken and without effect on a model that neither thinks nor calls tools.
    silent = {"user", "custom_params", "reasoning", "separate_reasoning", "stream_reasoning"}
    assert known - told - set(UNSUPPORTED_FIELDS) <= silent | {"best_of", "suffix"}


def test_fields_of_generate() -> None:
    fields = set(GenerateBody.model_fields)
    named = fields_told("basic_usage/native_api.md")
    assert named <= fields
    taken = fields & set(GenerateReqInput.__dataclass_fields__)
    assert taken - named <= {"input_embeds", "log_metrics"}


def fields_told(page: str) -> set[str]:
    return {name for first, *_ in rows(page) for name in re.findall(r"`(\w+)`", first)}
