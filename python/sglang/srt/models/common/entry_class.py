"""`EntryClass`: how model files and packages say which classes they offer, read from text or by import.

Also the stand-ins that the registry keeps for a class that is not imported yet, or that cannot be.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


class Unimported:
    """A class known by its import path, imported when it is asked for."""

    def __init__(self, module: str, qualname: str) -> None:
        self.module = module
        self.qualname = qualname

    @property
    def path(self) -> str:
        return f"{self.module}:{self.qualname}"

    def load(self) -> type:
        """Raises ImportError when the path leads nowhere, or what the module raises."""
        value: Any = importlib.import_module(self.module)
        for part in self.qualname.split("."):
            if part not in vars(value):
                raise ImportError(f"{value.__name__!r} has no {part!r}")
            value = vars(value)[part]
        return value


class Assigned(Unimported):
    """A class that the user's script put into the table of the main process, seen from a worker.

    `own` is what the same script registered in this process, when the worker ran it again; it serves where the path does not.
    """

    def __init__(self, architecture: str, path: str, own: type | None) -> None:
        super().__init__(*path.split(":", 1))
        self.architecture = architecture
        self.own = own

    def load(self) -> type:
        try:
            return super().load()
        except Exception as error:  # a boundary: the user's module may raise anything
            if self.own is not None:
                return self.own
            raise ImportError(
                f"ModelRegistry.models[{self.architecture!r}] is the class {self.path}, which a worker process cannot "
                f"import ({type(error).__name__}: {error}). Workers get registered classes by import path: define the "
                "class at the top level of the script or of a module, not inside a function or an `if` block, and "
                "not in an interactive session."
            ) from error


class Refused:
    """A name that somebody claims and that cannot be served; asking for it raises ImportError with the reason."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason = reason
        self.path = path

    def load(self) -> type:
        raise ImportError(self.reason)


@dataclass
class Offer:
    """What one package offers: classes, and the modules that failed with the names their text claims."""

    classes: dict[str, type] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)  # architecture -> failed module

    def add(self, classes: Iterable[type], owner: str) -> None:
        for cls in classes:
            known = self.classes.setdefault(cls.__name__, cls)
            # Re-exporting one class from two modules is no conflict.
            assert known is cls, f"Duplicated model implementation for {cls.__name__} in {owner}"


def read_package(name: str, disabled: Iterable[str] = (), strict: bool = False) -> Offer:
    """Import a package's direct submodules (or a plain module) and collect their entry classes.

    A submodule that fails is noted; with `strict`, its exception is raised. Raises whatever importing the package raises,
    and AssertionError when two of its modules name different classes alike.
    """
    disabled = frozenset(disabled)
    offer = Offer()
    package = importlib.import_module(name)
    offer.add(entry_classes(package), name)
    for full_name in _submodules(package):
        if full_name.rpartition(".")[2] in disabled:
            continue
        try:
            classes = entry_classes(importlib.import_module(full_name))
        except Exception as error:  # a boundary: any failure of an author's file is theirs alone
            if strict:
                raise
            offer.failures[full_name] = error
            offer.claims.update(dict.fromkeys(_names_in_module_text(full_name), full_name))
            continue
        offer.add(classes, name)
    return offer


def entry_classes(module: ModuleType) -> list[type]:
    """The classes of `EntryClass`, none when the module has no such name. Raises TypeError for anything else in it."""
    return check_classes(vars(module).get("EntryClass", []), f"EntryClass of {module.__name__}")


def check_classes(entry: Any, owner: str) -> list[type]:
    """One class or a list of classes, as a list. Raises TypeError naming the owner."""
    classes = list(entry) if isinstance(entry, (list, tuple)) else [entry]
    for cls in classes:
        if not isinstance(cls, type):
            raise TypeError(f"{owner} must be a class or a list of classes, not {cls!r}")
    return classes


def names_in_text(path: Path) -> list[str]:
    """The names in `EntryClass = A` or `EntryClass = [A, B]`, without importing the file."""
    match = re.search(r"^EntryClass\b.*", path.read_text(encoding="utf-8-sig"), re.M | re.S)
    if match is None:
        return []
    statement = ast.parse(match.group()).body[0]
    value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
    names = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    return [name.id for name in names if isinstance(name, ast.Name)]


def names_in_package_text(name: str) -> list[str]:
    """The names that a package or module claims, for one that cannot be imported as a whole."""
    try:
        spec = importlib.util.find_spec(name)
    except (
        Exception
    ):  # a boundary: looking for a submodule imports its parent, which may raise anything
        return []
    if spec is None:
        return []
    paths = [Path(spec.origin)] if spec.origin else []
    for folder in spec.submodule_search_locations or []:
        paths += sorted(Path(folder).glob("*.py"))
    return [found for path in dict.fromkeys(paths) for found in _names_or_none(path)]


def _submodules(package: ModuleType) -> Iterator[str]:
    """Full names of the modules directly inside a package; none for a plain module."""
    search = vars(package).get("__path__", [])
    for _, full_name, is_package in pkgutil.iter_modules(search, package.__name__ + "."):
        if not is_package:
            yield full_name


def _names_in_module_text(full_name: str) -> list[str]:
    spec = importlib.util.find_spec(full_name)
    return _names_or_none(Path(spec.origin)) if spec is not None and spec.origin else []


def _names_or_none(path: Path) -> list[str]:
    """As `names_in_text`; a file that is not readable Python claims nothing."""
    try:
        return names_in_text(path) if path.suffix == ".py" else []
    except (SyntaxError, OSError, UnicodeDecodeError):
        return []
