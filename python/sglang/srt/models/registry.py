"""Which class serves which architecture, and who put it there.

In order: the built-in files of `sglang.srt.models` (scanned as text, imported when asked for), installed plug-ins (entry points of the
group `sglang.models`), the packages of SGLANG_EXTERNAL_MODEL_PACKAGE, which override, and what the user's script assigns. Whatever is wrong
with somebody's plug-in is said once, when the model is loaded, and stops nobody who does not ask for that plug-in.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, KeysView
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.models.common.entry_class import (
    Assigned,
    Refused,
    Unimported,
    check_classes,
    names_in_package_text,
    names_in_text,
    read_package,
)
from sglang.srt.plugins import MODEL_GROUP, Plugin, find_plugins
from sglang.srt.utils.errors import ConfigError

logger = logging.getLogger(__name__)

BUILTIN_PACKAGE = "sglang.srt.models"
FALLBACK_ARCH = "TransformersForCausalLM"
# Files of the built-in package that are framework code, not models.
_NOT_MODELS = ("registry", "utils")


class ModelTable(dict[str, Any]):
    """`{architecture: class}`; a class that is not imported yet is imported when its value is read."""

    def __getitem__(self, name: str) -> type:
        value = super().__getitem__(name)
        return value.load() if isinstance(value, (Unimported, Refused)) else value

    def __iter__(self) -> Iterator[str]:
        # Defined so that `dict(table)` and `{**table}` read values through `__getitem__`.
        return super().__iter__()

    def raw(self, name: str) -> Any:
        """What is stored: a class or a stand-in; None when the name is not there."""
        return super().get(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> list[type]:  # type: ignore[override]
        return [value for _, value in self.items()]

    def items(self) -> list[tuple[str, type]]:  # type: ignore[override]
        """Pairs of what can be served; a name that is refused is left out."""
        return [(name, self[name]) for name in self if not isinstance(self.raw(name), Refused)]

    def pop(self, name: str, *default: Any) -> Any:
        value = self.get(name, *default) if default else self[name]
        super().pop(name, None)
        return value


@dataclass(frozen=True)
class Source:
    """Who offers a class. `kind` is built-in, plug-in, package or script."""

    kind: str
    label: str


BUILTIN = Source("built-in", "built-in")
SCRIPT = Source("script", "user's program (ModelRegistry.models)")


@dataclass(frozen=True)
class Entry:
    """One row of the table for people: nothing is imported to make it."""

    architecture: str
    source: Source
    path: str  # module:class
    problem: str  # why it cannot be served; empty when nothing is known against it


class _Registry:
    """The table of served architectures. `models` may be assigned to and updated by external code."""

    def __init__(self) -> None:
        self._table = ModelTable()
        self._is_built = False
        self._has_reported = False
        # What we put into the table ourselves. Any other value in it came from the user's program.
        self._placed: dict[str, tuple[Source, Any]] = {}
        self._problems: list[str] = []

    @property
    def models(self) -> ModelTable:
        """`{architecture: class}`, a plain dict to external code."""
        if not self._is_built:
            self._is_built = True  # first: a plug-in may look at the table while it is imported
            for name, value in _scan_builtin().items():
                self._place(name, value, BUILTIN)
            for plugin in find_plugins(MODEL_GROUP):
                self._add_plugin(plugin)
            for package in envs.SGLANG_EXTERNAL_MODEL_PACKAGE.get():
                self._add_package(package)
        return self._table

    @property
    def problems(self) -> list[str]:
        """What is wrong with plug-ins and external packages, one sentence each."""
        self.models  # noqa: B018  (builds the table)
        return list(self._problems)

    def register(self, package_name: str, overwrite: bool = False, strict: bool = False) -> None:
        """Add every entry class of a package.

        Raises ValueError when a name is already registered and `overwrite` is off; with `strict`, whatever
        the package or one of its modules raises at import.
        """
        try:
            classes = import_model_classes(package_name, strict)
        except ImportError as error:
            if strict:
                raise
            logger.warning("Ignore import error when loading package %s: %s", package_name, error)
            return
        for name, cls in classes.items():
            if name in self.models and not overwrite:
                raise ValueError(
                    f"Model architecture {name} is already registered; pass overwrite=True to replace it"
                )
            self.models[name] = cls

    def get_supported_archs(self) -> KeysView[str]:
        """A live view of the architecture names."""
        return self.models.keys()

    def resolve_model_cls(self, architectures: str | list[str]) -> tuple[type, str]:
        """The class of the first registered name, and that name.

        When a name is not registered, the transformers fallback is tried last. Raises ValueError.
        """
        asked = [architectures] if isinstance(architectures, str) else list(architectures)
        candidates = [name for name in asked if name in self.models]
        self._report_once(asked)
        if len(candidates) < len(asked) and FALLBACK_ARCH in self.models:
            logger.warning("%s: no model file of our own, trying %s", asked, FALLBACK_ARCH)
            candidates.append(FALLBACK_ARCH)
        for name in candidates:
            try:
                return self.models[name], name
            except ImportError as error:
                raise ValueError(
                    f"Model architectures {asked} failed to be inspected: {name} cannot be used: {error}"
                ) from error
        raise ValueError(unsupported_message(asked))

    def entries(self) -> list[Entry]:
        """The table for people, sorted by architecture."""
        return [self._entry(name) for name in sorted(self.models)]

    def source_of(self, name: str) -> Source:
        """Who offers the class of a registered name."""
        source, value = self._placed.get(name, (SCRIPT, None))
        return source if value is self.models.raw(name) else SCRIPT

    def assigned_paths(self) -> dict[str, str]:
        """`{architecture: "module:class"}` of what the user's program registered in this process, for `adopt` in a worker.

        Raises ConfigError for a value that is no class.
        """
        if not self._is_built:
            return {}
        names = [name for name in self._table if self.source_of(name) is SCRIPT]
        return {name: _path_of(name, self._table.raw(name)) for name in names}

    def adopt(self, paths: dict[str, str]) -> None:
        """Register in a worker what the main process holds. Imports nothing until a class is asked for."""
        for name, path in paths.items():
            own = self.models.raw(name) if self._is_from_script(name) else None
            self.models[name] = Assigned(name, path, own)

    def _is_from_script(self, name: str) -> bool:
        return name in self.models and self.source_of(name) is SCRIPT

    def _entry(self, name: str) -> Entry:
        raw = self.models.raw(name)
        path = raw.path if isinstance(raw, (Unimported, Refused)) else _path_of(name, raw)
        problem = raw.reason if isinstance(raw, Refused) else ""
        return Entry(name, self.source_of(name), path, problem)

    def _place(self, name: str, value: Any, source: Source) -> None:
        self._table[name] = value
        self._placed[name] = (source, value)

    def _add_plugin(self, plugin: Plugin) -> None:
        """An installed plug-in adds names; it takes none away from the built-in models or from another plug-in."""
        disabled = envs.SGLANG_DISABLED_MODEL_ARCHS.get()
        if plugin.name in disabled or plugin.module.rpartition(".")[2] in disabled:
            return
        source = Source("plug-in", str(plugin))
        try:
            offered = self._load_plugin(plugin, source)
        except Exception as error:  # a boundary: the plug-in's code may raise anything
            reason = f"the {plugin} cannot be loaded: {type(error).__name__}: {error}"
            self._problems.append(reason)
            offered = {name: Refused(reason, plugin.module) for name in _claims(plugin)}
        for name, value in offered.items():
            if name not in self._table:
                self._place(name, value, source)
            elif self._table.raw(name) is not value:
                self._settle(name, plugin, source)

    def _load_plugin(self, plugin: Plugin, source: Source) -> dict[str, Any]:
        if not plugin.attribute:
            return self._read_offer(plugin.module, source)
        found = plugin.load()
        if isinstance(found, (type, list, tuple)):
            return {cls.__name__: cls for cls in check_classes(found, str(plugin))}
        if not callable(found):
            raise TypeError(
                f"{plugin.attribute} must be a class, a list of classes or a function without arguments"
            )
        # A function may write to `ModelRegistry.models` itself; what it wrote is the plug-in's.
        before = dict.copy(self._table)
        found()
        for name in self._table:
            if self._table.raw(name) is not before.get(name):
                self._placed[name] = (source, self._table.raw(name))
        return {}

    def _settle(self, name: str, plugin: Plugin, source: Source) -> None:
        """Two want one name: the built-in class stays; between plug-ins the user must say which."""
        first = self.source_of(name)
        choice = f"SGLANG_EXTERNAL_MODEL_PACKAGE={plugin.module} makes this one win"
        if first is BUILTIN:
            self._problems.append(
                f"the {plugin} offers {name}, which is built in; the built-in class stays ({choice})"
            )
            return
        reason = f"{name} is offered by the {first.label} and by the {plugin}; uninstall one, or {choice}"
        self._problems.append(reason)
        self._place(name, Refused(reason, plugin.module), Source("plug-in", "several plug-ins"))

    def _add_package(self, package: str) -> None:
        """A package that the user names overrides what is there."""
        source = Source("package", f"package {package} (SGLANG_EXTERNAL_MODEL_PACKAGE)")
        try:
            offered = self._read_offer(package, source)
        except Exception as error:  # a boundary: the package's code may raise anything
            reason = f"the {source.label} cannot be loaded: {type(error).__name__}: {error}"
            self._problems.append(reason)
            offered = {name: Refused(reason, package) for name in names_in_package_text(package)}
        if not offered:
            self._problems.append(f"the {source.label} offers no model: no module has EntryClass")
        for name, value in offered.items():
            self._place(name, value, source)

    def _read_offer(self, package: str, source: Source) -> dict[str, Any]:
        """Classes of a package; its broken modules become problems and refuse the names that they claim."""
        offer = read_package(package, envs.SGLANG_DISABLED_MODEL_ARCHS.get())
        reasons = {}
        for module, error in offer.failures.items():
            reasons[module] = (
                f"{module} of the {source.label} cannot be imported: {type(error).__name__}: {error}"
            )
            self._problems.append(reasons[module])
        broken = {name: Refused(reasons[module], module) for name, module in offer.claims.items()}
        return {**broken, **offer.classes}

    def _report_once(self, asked: list[str]) -> None:
        """Log what there is to say about plug-ins, in the first rank only."""
        if self._has_reported:
            return
        self._has_reported = True
        from sglang.srt.distributed import get_world_group  # heavy: torch

        if get_world_group().rank_in_group != 0:
            return
        for problem in self._problems:
            logger.warning("Ignored: %s", problem)
        offers: dict[str, list[str]] = {}
        for entry in self.entries():
            if entry.source.kind != "built-in":
                offers.setdefault(entry.source.label, []).append(entry.architecture)
        for label, names in offers.items():
            used = [name for name in names if name in asked]
            if used:
                logger.info("%s is served by the %s", used[0], label)
            else:
                logger.warning(
                    "Nobody asks for %s of the %s: the architectures of this model are %s",
                    ", ".join(names),
                    label,
                    ", ".join(asked),
                )


def unsupported_message(architectures: list[str]) -> str:
    """The sentence users look for, with the list of what is served and what is wrong with plug-ins."""
    served = sorted(ModelRegistry.get_supported_archs())
    near = [close for name in architectures for close in get_close_matches(name, served, 2, 0.8)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    problems = "".join(f" Note: {problem}." for problem in ModelRegistry.problems)
    return (
        f"Model architectures {architectures} are not supported for now. "
        f"Supported architectures: {served}.{hint}{problems} docs/add_a_model.md says how to add one."
    )


@functools.lru_cache
def import_model_classes(package_name: str, strict: bool = False) -> dict[str, type]:
    """`{class name: class}` of the entry classes in a package's direct submodules, which are imported.

    A module that fails to import is logged and left out, or raises with `strict`. Raises AssertionError
    when two modules of the package name the same class.
    """
    offer = read_package(package_name, envs.SGLANG_DISABLED_MODEL_ARCHS.get(), strict)
    for module, error in offer.failures.items():
        logger.warning("Ignore import error when loading %s: %s", module, error)
    return offer.classes


def _scan_builtin() -> dict[str, Unimported]:
    """Entry class names of the built-in model files, read from their text."""
    disabled = envs.SGLANG_DISABLED_MODEL_ARCHS.get()
    found: dict[str, Unimported] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in disabled or path.stem in _NOT_MODELS:
            continue
        for name in names_in_text(path):
            assert name not in found, f"{name} is the entry class of two files, one is {path.name}"
            found[name] = Unimported(f"{BUILTIN_PACKAGE}.{path.stem}", name)
    return found


def _claims(plugin: Plugin) -> list[str]:
    """The architectures that a plug-in would serve, as far as its text or its entry point tells."""
    if plugin.attribute[:1].isupper() and plugin.attribute != "EntryClass":
        return [plugin.attribute]
    return names_in_package_text(plugin.module)


def _path_of(name: str, value: Any) -> str:
    if not isinstance(value, (type, Assigned)):
        raise ConfigError(f"ModelRegistry.models[{name!r}] is {value!r}; it must be a model class")
    return value.path if isinstance(value, Assigned) else f"{value.__module__}:{value.__qualname__}"


ModelRegistry = _Registry()
