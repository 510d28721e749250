"""Imports of transformers without what a server never uses of it.

Two of its modules import others for a name each that hardly any call needs, and those bring the loading of models, torchvision and torch's
compiler, a thousand modules. Within `light_imports` they get a stand-in instead, which takes everything from the real module as soon
as it is asked for anything.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

_MODEL_CLASSES = "transformers.models.auto.modeling_auto"
_MODELS = "transformers.models"
_PROCESSORS = "transformers.models.auto.processing_auto"

T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """`user` imports `name` of `module`, and rarely needs it; where it `only_annotates` with it, never."""

    user: str
    module: str
    name: str
    only_annotates: bool = False


_CHECKS = "transformers.utils.type_validators"
CUTS = (
    # The check of config fields that name an activation; few families have one.
    Cut(_CHECKS, "transformers.activations", "ACT2FN"),
    # Checks of fields of processors. Where torchvision is installed, pictures and videos import it.
    Cut(_CHECKS, "transformers.image_utils", "PILImageResampling"),
    Cut(_CHECKS, "transformers.video_utils", "VideoMetadataType", only_annotates=True),
    # The check of a processor's audio codec when it is given one.
    Cut(
        "transformers.processing_utils",
        "transformers.modeling_utils",
        "PreTrainedAudioTokenizerBase",
    ),
)


@contextmanager
def light_imports() -> Iterator[None]:
    """Within it, modules of transformers are imported without the heavy ones that they hardly use.

    Of no effect for what is imported already. Afterwards everything can be imported as ever.
    """
    import_model_names()
    stand_ins = [
        _StandIn(cut)
        for cut in CUTS
        if cut.module not in sys.modules and cut.user not in sys.modules
    ]
    for module in stand_ins:
        sys.modules[module.__name__] = module
    try:
        yield
    finally:
        for module in stand_ins:
            module.leave()


def without_model_classes(build: Callable[[], T]) -> T:
    """`build()`, during which transformers finds no model classes.

    It looks for them to name one in the docstring of a config class, and imports a thousand modules for that. It takes their absence well,
    as where what they need is not installed.
    """
    if _MODEL_CLASSES in sys.modules:
        return build()
    cast(Any, sys.modules)[_MODEL_CLASSES] = None  # how to say that there is no such module
    try:
        return build()
    except ImportError:
        pass  # a config that needs them for more
    finally:
        sys.modules.pop(_MODEL_CLASSES, None)
    return build()


def import_model_names() -> None:
    """Import `transformers` and `transformers.models`, and read the names in their thousands of files once instead of twice.

    Both ask for them, by different paths of one folder, so that the memory of the first answer is not used for the second.
    """
    import_utils = importlib.import_module("transformers.utils.import_utils")
    define = vars(import_utils).get("define_import_structure")
    if define is None or _MODELS in sys.modules:
        importlib.import_module(_MODELS)
        return

    def define_by_folder(module_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        path = Path(module_path)
        return define(path.parent if path.name == "__init__.py" else path, *args, **kwargs)

    vars(import_utils)["define_import_structure"] = define_by_folder
    try:
        importlib.import_module(_MODELS)
    finally:
        vars(import_utils)["define_import_structure"] = define


def import_processors() -> None:
    """Import what processors stand on: whoever imports them next finds it, without the loading of models."""
    with light_imports():
        without_model_classes(lambda: importlib.import_module(_PROCESSORS))


class _StandIn(ModuleType):
    """In the place of a module: has the name of its cut while the user is being imported, and makes room when anything else is wanted."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut.module)
        self._cut = cut

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        user = sys.modules.get(self._cut.user)
        if name == self._cut.name and user is not None and name not in vars(user):
            return Any if self._cut.only_annotates else _Later(self._cut)
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)


class _Later:
    """A class or mapping whose module is imported when something is asked of it. It then leaves its place to the real one."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    def _real(self) -> Any:
        cut = self._cut
        real = getattr(importlib.import_module(cut.module), cut.name)
        user = sys.modules.get(cut.user)
        if user is not None and vars(user).get(cut.name) is self:
            vars(user)[cut.name] = real
        return real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __len__(self) -> int:
        return len(self._real())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real())

    def __contains__(self, key: object) -> bool:
        return key in self._real()

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, other: type) -> bool:
        return issubclass(other, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:
        return self._real() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._real()
