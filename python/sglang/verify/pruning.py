"""Takes out of a copied model file what the copy does not need: other architectures, what only other files import, imports left over."""

from __future__ import annotations

import ast

Defined = ast.ClassDef | ast.FunctionDef | ast.Assign
_WIDTH = 100


def prune(text: str, entry: str) -> str:
    """The file's text with `entry`, the class that its EntryClass names, and what that one uses, directly or not."""
    while (node := _unused(ast.parse(text), entry)) is not None:
        text = _without(text, node)
    return _without_unused_imports(text)


def _unused(tree: ast.Module, entry: str) -> Defined | None:
    """The last definition that nothing else in the file refers to. `__getattr__` serves those who import from the copied file."""
    for node in reversed(tree.body):
        name = _name_of(node)
        if name is None or name in (entry, "EntryClass"):
            continue
        if not any(name in _names_in(other) for other in tree.body if other is not node):
            assert isinstance(node, Defined)
            return node
    return None


def _name_of(node: ast.stmt) -> str | None:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def _names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _without(text: str, node: Defined) -> str:
    """The text without a definition, its decorators and the comment above it."""
    lines = text.splitlines(keepends=True)
    decorators = [] if isinstance(node, ast.Assign) else node.decorator_list
    start = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while lines[start - 1].startswith("#"):
        start -= 1
    before = "".join(lines[:start]).rstrip("\n") + "\n"
    return before + "".join(lines[node.end_lineno or node.lineno :])


def _without_unused_imports(text: str) -> str:
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    used = set[str]().union(*(_names_in(node) for node in tree.body if node not in imports))
    lines = text.splitlines(keepends=True)
    for node in reversed(imports):
        kept = [alias for alias in node.names if _bound_name(alias) in used]
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if is_future or len(kept) == len(node.names):
            continue
        node.names = kept
        lines[node.lineno - 1 : node.end_lineno] = _import_lines(node) if kept else []
    return "".join(lines)


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _import_lines(node: ast.Import | ast.ImportFrom) -> list[str]:
    line = ast.unparse(node)
    if len(line) <= _WIDTH or isinstance(node, ast.Import):
        return [f"{line}\n"]
    head = line.partition(" import ")[0]
    names = [f"    {ast.unparse(alias)},\n" for alias in node.names]
    return [f"{head} import (\n", *names, ")\n"]
