"""Which processor prepares the media of which model: found by scanning packages for subclasses, keyed by their `models`."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor
from sglang.srt.plugins import PROCESSOR_GROUP, find_plugins

logger = logging.getLogger(__name__)

_BUILT_IN = "sglang.srt.multimodal.processors"

# Model class, or the name of one that is not imported here -> processor class.
PROCESSOR_MAPPING: dict[Any, type[BaseMultimodalProcessor]] = {}


def import_processors(package_name: str, overwrite: bool = False) -> None:
    """Register the processors in the direct submodules of a package, or in one module.

    With `overwrite`, a processor replaces the one that a model class of the same name has. A module that cannot be imported is logged
    and skipped. Raises AssertionError for a processor without `models`.
    """
    package = importlib.import_module(package_name)
    names = [package_name]
    if "__path__" in vars(package):
        names += [
            f"{package_name}.{info.name}"
            for info in pkgutil.iter_modules(package.__path__)
            if not info.ispkg
        ]
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            # foreign code: whatever its import raises must not stop the others
            logger.warning("The processors of %s were left out: %r", name, error)
            continue
        _register_all(module, overwrite)


def load_all_processors() -> None:
    """The built-in processors, then those of installed plug-ins, then `SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE`; later ones win."""
    import_processors(_BUILT_IN)
    for plugin in find_plugins(PROCESSOR_GROUP):
        try:
            import_processors(plugin.module, overwrite=True)
        except Exception as error:  # as above
            logger.warning("The %s was left out: %s: %s", plugin, type(error).__name__, error)
    for package in envs.SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE.get():
        import_processors(package, overwrite=True)


def get_mm_processor(
    hf_config: Any,
    server_args: Any,
    processor: Any,
    transport_mode: Any = None,
    **kwargs: Any,
) -> BaseMultimodalProcessor:
    """The processor of the model's architecture. Raises ValueError naming the known ones when there is none."""
    for model, cls in PROCESSOR_MAPPING.items():
        if _name_of(model) in hf_config.architectures:
            return cls(hf_config, server_args, processor, transport_mode, **kwargs)
    known = ", ".join(sorted(_name_of(model) for model in PROCESSOR_MAPPING))
    raise ValueError(
        f"no processor registered for the architectures {hf_config.architectures}; registered: {known}"
    )


class DummyMultimodalProcessor(BaseMultimodalProcessor):
    """In the place of a processor for models that take no media."""

    models: list[Any] = []

    def __init__(self) -> None:
        """Needs nothing of a model, so the base class is not asked."""

    async def process_mm_data_async(self, *args: Any, **kwargs: Any) -> None:
        return None

    def close(self) -> None:
        pass


def get_dummy_processor() -> DummyMultimodalProcessor:
    """A processor that makes nothing of anything."""
    return DummyMultimodalProcessor()


def _register_all(module: Any, overwrite: bool) -> None:
    for _, cls in inspect.getmembers(module, inspect.isclass):
        is_own = cls.__module__ == module.__name__
        if is_own and issubclass(cls, BaseMultimodalProcessor) and not inspect.isabstract(cls):
            assert "models" in vars(cls), (
                f"{cls.__name__} must list the model classes it is for in `models`"
            )
            for model in cls.models:
                _register(model, cls, overwrite)


def _register(model: Any, cls: type[BaseMultimodalProcessor], overwrite: bool) -> None:
    same = [known for known in PROCESSOR_MAPPING if _name_of(known) == _name_of(model)]
    if overwrite:
        for known in same:
            del PROCESSOR_MAPPING[known]
    elif same:
        return
    PROCESSOR_MAPPING[model] = cls


def _name_of(model: Any) -> str:
    return model if isinstance(model, str) else model.__name__
