"""The shape of the code base: imports point down the stack, `sglang` is light, the closure of a model file stays small."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "sglang"
MAX_LLAMA_CLOSURE = 60

# Rows of the stack, top first. The longest matching prefix decides.
ROWS: list[tuple[str, ...]] = [
    (
        "sglang.srt.entrypoints",
        "sglang.cli",
        "sglang.launch_server",
        "sglang.bench_",
        "sglang.bench",
        "sglang.check_env",
        "sglang.verify",
        "sglang.test",
        "sglang.srt.observability",
    ),
    # Processors name the model classes that they are for.
    ("sglang.srt.managers", "sglang.srt.multimodal.processors"),
    ("sglang.srt.model_executor",),
    ("sglang.srt.model_loader",),
    ("sglang.srt.models",),
    (
        "sglang.srt.layers",
        "sglang.srt.mem_cache",
        "sglang.srt.constrained",
        "sglang.srt.parser",
        "sglang.srt.multimodal",
        "sglang.srt.batch_overlap",
        "sglang.srt.compilation",
        "sglang.srt.speculative",
    ),
    (
        "sglang.srt.model_executor.forward_batch_info",
        "sglang.srt.managers.io_struct",
        "sglang.srt.managers.step_plan",
        "sglang.srt.sampling",
        "sglang.srt.model_loader.weight_files",
        "sglang.srt.model_loader.weight_utils",
        "sglang.srt.multimodal.inputs",
        "sglang.srt.runtime_context",
        "sglang.srt.layers.parameter",
    ),
    ("sglang.srt.distributed", "sglang.srt.platforms"),
    (
        "sglang.srt.configs",
        "sglang.srt.environ",
        "sglang.srt.eplb",
        "sglang.srt.plugins",
        "sglang.srt.utils",
        "sglang.srt.arg_groups",
        "sglang.srt.server_args",
        "sglang.version",
        "sglang.utils",
    ),
]

# The package root is a lazy index of public names, not a layer.
INDEX_MODULES = {"sglang", "sglang.api"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_of(module: str) -> int | None:
    best, length = None, -1
    for row, prefixes in enumerate(ROWS):
        for prefix in prefixes:
            hit = (
                module == prefix
                or module.startswith(prefix + ".")
                or (prefix.endswith("_") and module.startswith(prefix))
            )
            if hit and len(prefix) > length:
                best, length = row, len(prefix)
    return best


@cache
def all_modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(path: Path, *, top_level_only: bool) -> set[str]:
    """Our modules that a file imports when it runs; typing-only imports do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _running_nodes(tree, top_level_only):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name in all_modules()}


def _running_nodes(tree: ast.AST, top_level_only: bool):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        yield from _running_nodes(node, top_level_only)


def test_every_module_has_a_row():
    homeless = [
        name
        for name in all_modules()
        if row_of(name) is None and name not in INDEX_MODULES and not name == "sglang.srt"
    ]
    assert not homeless, f"no row in the stack for: {homeless}"


@pytest.mark.parametrize("module", sorted(all_modules()))
def test_imports_point_down(module):
    mine = row_of(module)
    if mine is None:
        return
    for target in imported_modules(all_modules()[module], top_level_only=True):
        theirs = row_of(target)
        assert theirs is None or theirs >= mine, (
            f"{module} (row {mine}) imports {target} (row {theirs}), which is above it"
        )


def closure(module: str) -> set[str]:
    """Our modules that importing `module` runs, parents included."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen or name not in all_modules():
            continue
        seen.add(name)
        todo += imported_modules(all_modules()[name], top_level_only=True)
        if "." in name:
            todo.append(name.rpartition(".")[0])
    return seen


def test_closure_of_llama_is_small():
    modules = closure("sglang.srt.models.llama")
    assert len(modules) <= MAX_LLAMA_CLOSURE, f"{len(modules)} modules: {sorted(modules)}"


@pytest.mark.parametrize(
    "module", ["sglang", "sglang.srt.server_args", "sglang.launch_server", "sglang.cli.main"]
)
def test_light_imports_do_not_load_torch(module):
    code = (
        f"import {module}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert result.returncode == 0, f"importing {module} loads torch or transformers {result.stderr}"


def test_nothing_unpickles():
    """Neither pickle nor its relatives are imported anywhere, and torch.load only reads weights."""
    banned = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    for module, path in all_modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not banned & set(names), f"{module} imports {names}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(
                    k.arg == "weights_only" and ast.unparse(k.value) == "True"
                    for k in node.keywords
                )
                assert safe, f"{module} calls torch.load without weights_only=True"


def test_trust_remote_code_is_never_hard_coded():
    for module, path in all_modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) != "True", f"{module} trusts remote code on its own"
