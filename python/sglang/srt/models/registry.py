"""Which class serves which architecture.

Every file of `sglang.srt.models` that assigns `EntryClass` is a model. The built-in package is scanned as
text and a file is imported when its class is asked for; external packages are imported at registration.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import pkgutil
import re
from collections.abc import KeysView
from pathlib import Path
from typing import Any

from sglang.srt.environ import envs

logger = logging.getLogger(__name__)

BUILTIN_PACKAGE = "sglang.srt.models"
FALLBACK_ARCH = "TransformersForCausalLM"
# Files of the built-in package that are framework code, not models.
_NOT_MODELS = ("registry", "utils")


class ModelTable(dict[str, Any]):
    """`{architecture: class}`; a built-in class is imported when its value is first read."""

    def __getitem__(self, name: str) -> type:
        value = super().__getitem__(name)
        if isinstance(value, _Unimported):
            value = value.load()
            super().__setitem__(name, value)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> list[type]:  # type: ignore[override]
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, type]]:  # type: ignore[override]
        return [(name, self[name]) for name in self]

    def pop(self, name: str, *default: Any) -> Any:
        value = self.get(name, *default) if default else self[name]
        super().pop(name, None)
        return value


class _Registry:
    """The table of served architectures. `models` may be assigned to and updated by external code."""

    @functools.cached_property
    def models(self) -> ModelTable:
        """`{architecture: class}`: the built-in models, then the external packages, which override them."""
        table = ModelTable()
        _register(table, BUILTIN_PACKAGE, overwrite=False, strict=False)
        for package in envs.SGLANG_EXTERNAL_MODEL_PACKAGE.get():
            _register(table, package, overwrite=True, strict=False)
        return table

    def register(self, package_name: str, overwrite: bool = False, strict: bool = False) -> None:
        """Add every entry class of a package.

        Raises ValueError when a name is already registered and `overwrite` is off; with `strict`, whatever
        a module of the package raises at import.
        """
        _register(self.models, package_name, overwrite, strict)

    def get_supported_archs(self) -> KeysView[str]:
        """A live view of the architecture names."""
        return self.models.keys()

    def resolve_model_cls(self, architectures: str | list[str]) -> tuple[type, str]:
        """The class of the first registered name, and that name.

        When a name is not registered, the transformers fallback is tried last. Raises ValueError.
        """
        asked = [architectures] if isinstance(architectures, str) else list(architectures)
        candidates = [name for name in asked if name in self.models]
        if len(candidates) < len(asked) and FALLBACK_ARCH in self.models:
            logger.warning("%s: no model file of our own, trying %s", asked, FALLBACK_ARCH)
            candidates.append(FALLBACK_ARCH)
        for name in candidates:
            try:
                return self.models[name], name
            except ImportError as error:
                raise ValueError(
                    f"Model architectures {asked} failed to be inspected: the model file of {name} "
                    f"cannot be imported: {error}"
                ) from error
        raise ValueError(unsupported_message(asked))


def unsupported_message(architectures: list[str]) -> str:
    """The sentence users look for, with the list of what is served."""
    return (
        f"Model architectures {architectures} are not supported for now. "
        f"Supported architectures: {sorted(ModelRegistry.get_supported_archs())}"
    )


@functools.lru_cache
def import_model_classes(package_name: str, strict: bool = False) -> dict[str, type]:
    """`{class name: class}` of the entry classes in a package's direct submodules, which are imported.

    A module that fails to import is logged and left out, or raises with `strict`. Raises AssertionError
    when two modules of the package name the same class.
    """
    package = importlib.import_module(package_name)
    disabled = envs.SGLANG_DISABLED_MODEL_ARCHS.get()
    classes: dict[str, type] = {}
    for _, full_name, is_package in pkgutil.iter_modules(package.__path__, package_name + "."):
        basename = full_name.rpartition(".")[2]
        if is_package or basename in disabled:
            continue
        try:
            module = importlib.import_module(full_name)
        except Exception as error:  # a boundary: any failure of an author's file is theirs alone
            if strict:
                raise
            logger.warning("Ignore import error when loading %s: %s", full_name, error)
            continue
        entry = vars(module).get("EntryClass", [])
        for cls in entry if isinstance(entry, (list, tuple)) else [entry]:
            assert cls.__name__ not in classes, (
                f"Duplicated model implementation for {cls.__name__} in {package_name}"
            )
            classes[cls.__name__] = cls
    return classes


class _Unimported:
    """A class that is known by name and not imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def load(self) -> type:
        return vars(importlib.import_module(self.module))[self.name]


def _register(table: ModelTable, package_name: str, overwrite: bool, strict: bool) -> None:
    found: dict[str, Any]
    try:
        found = (
            _scan_builtin()
            if package_name == BUILTIN_PACKAGE
            else import_model_classes(package_name, strict)
        )
    except ImportError as error:
        if strict:
            raise
        logger.warning("Ignore import error when loading package %s: %s", package_name, error)
        return
    for name, value in found.items():
        if name in table and not overwrite:
            raise ValueError(
                f"Model architecture {name} is already registered; pass overwrite=True to replace it"
            )
        table[name] = value


def _scan_builtin() -> dict[str, _Unimported]:
    """Entry class names of the built-in model files, read from their text."""
    disabled = envs.SGLANG_DISABLED_MODEL_ARCHS.get()
    found: dict[str, _Unimported] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in disabled or path.stem in _NOT_MODELS:
            continue
        for name in _entry_class_names(path):
            assert name not in found, f"{name} is the entry class of two files, one is {path.name}"
            found[name] = _Unimported(f"{BUILTIN_PACKAGE}.{path.stem}", name)
    return found


def _entry_class_names(path: Path) -> list[str]:
    """The names in `EntryClass = A` or `EntryClass = [A, B]`, without importing the file."""
    match = re.search(r"^EntryClass\b.*", path.read_text(encoding="utf-8-sig"), re.M | re.S)
    if match is None:
        return []
    statement = ast.parse(match.group()).body[0]
    value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
    names = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    return [name.id for name in names if isinstance(name, ast.Name)]


ModelRegistry = _Registry()
