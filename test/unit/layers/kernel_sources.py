"""Reads the sources of kernels: which of them are launched early, and whether they keep the rule of `dependent_launch`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import sglang.srt.layers

LAYERS = Path(next(iter(sglang.srt.layers.__path__)))
FOLDERS = ("triton_ops", "triton_ops/moe", "attention/triton_ops")
# A kernel, and the file that launches it.
PEERS = ("peer_kernel.py", "peer_memory.py")
# What a step only reads.
PARAMETERS = {"weight", "bias", "q_weight", "k_weight", "inboxes"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((LAYERS / folder).glob("*.py")):
            yield f"{folder}/{path.name}", ast.parse(path.read_text())
    folder = LAYERS.parent / "distributed" / "device_communicators"
    parts = [ast.parse((folder / name).read_text()) for name in PEERS]
    yield f"distributed/{PEERS[0]}", ast.Module([x for part in parts for x in part.body], [])


def kernels(module: ast.Module) -> dict[str, ast.FunctionDef]:
    """What is compiled, by name."""
    return {
        node.name: node
        for node in module.body
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def launched_early(module: ast.Module) -> set[str]:
    """Names of kernels that are launched with `launch_options`."""
    return {name for name, is_early in launches(module) if is_early}


def launches(module: ast.Module) -> Iterator[tuple[str, bool]]:
    """Each `kernel[grid](...)` by its name, and whether it is an early one."""
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef):
            continue
        options = {
            ast.unparse(node.targets[0])
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and "launch_options(" in ast.unparse(node.value)
        }
        for node in ast.walk(function):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)):
                continue
            spread = [ast.unparse(word.value) for word in node.keywords if word.arg is None]
            is_early = any(text.startswith("launch_options(") or text in options for text in spread)
            yield ast.unparse(node.func.value), is_early


def has_flag(kernel: ast.FunctionDef) -> bool:
    return any(arg.arg == "PDL" for arg in kernel.args.args)


def broken_rules(kernel: ast.FunctionDef, helpers: dict[str, ast.FunctionDef]) -> list[str]:
    """What an early kernel must not do; `helpers` are the compiled functions of its module."""
    before: list[ast.stmt] = []
    for statement in kernel.body:
        if _is_call(statement, "wait_for_earlier"):
            break
        before.append(statement)
    else:
        return ["it does not wait at the top of its body"]
    broken = []
    if sum(_is_call(statement, "launch_dependents") for statement in before) != 1:
        broken.append("it does not call launch_dependents before it waits")
    sources = {
        ast.unparse(target): node.value
        for statement in before
        for node in ast.walk(statement)
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    for statement in before:
        for node in ast.walk(statement):
            broken += _broken_by(node, sources, helpers)
    return broken


def _is_call(statement: ast.stmt, name: str) -> bool:
    return isinstance(statement, ast.Expr) and ast.unparse(statement) == f"{name}(PDL)"


def _broken_by(
    node: ast.AST, sources: dict[str, ast.expr], helpers: dict[str, ast.FunctionDef]
) -> list[str]:
    if isinstance(node, ast.Return):
        return ["it returns before it waits"]
    if not isinstance(node, ast.Call):
        return []
    name = ast.unparse(node.func)
    if name.startswith(("tl.store", "tl.atomic")):
        return ["it writes before it waits"]
    reads = name == "tl.load"
    if name in helpers:
        if _may_write(helpers[name]):
            return [f"it calls {name} before it waits"]
        reads = True
    elif not name.startswith("tl.") and name != "launch_dependents" and not name.endswith(".to"):
        return [f"it calls {name} before it waits"]
    unknown = _origins(node.args[0], sources) - PARAMETERS if reads else set()
    return [f"it reads {origin} before it waits" for origin in sorted(unknown)]


def _may_write(helper: ast.FunctionDef) -> bool:
    """Whether it does more than compute, read, and ask for what is read later."""
    for node in ast.walk(helper):
        if isinstance(node, ast.Call):
            text = ast.unparse(node)
            name = ast.unparse(node.func)
            if "inline_asm" in name and "prefetch" in text:
                continue
            is_known = name.startswith("tl.") or name.endswith(".to")
            if not is_known or any(word in name for word in ("store", "atomic", "inline_asm")):
                return True
    return False


def _origins(pointer: ast.expr, sources: dict[str, ast.expr]) -> set[str]:
    """The arguments that a pointer starts from: it comes first in a sum."""
    if isinstance(pointer, ast.Name) and pointer.id in sources:
        return _origins(sources[pointer.id], sources)
    if isinstance(pointer, ast.BinOp):
        return _origins(pointer.left, sources)
    if isinstance(pointer, ast.Subscript):
        return _origins(pointer.value, sources)
    if isinstance(pointer, ast.Call) and pointer.args:  # of a helper that computes pointers
        return _origins(pointer.args[0], sources)
    if isinstance(pointer, ast.IfExp):
        return _origins(pointer.body, sources) | _origins(pointer.orelse, sources)
    return {ast.unparse(pointer)}
