"""What a model class from outside this repository says about its own proof, in attributes of the class."""

from __future__ import annotations

import importlib
from typing import Any

from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError

REFERENCE = "reference"  # a function from a config.json to a plain decoder, see `references`
MEDIA_FAMILY = "media_family"  # a `MediaFamily` class without arguments


def named_by_class(architecture: str, attribute: str) -> Any | None:
    """What the class of a plug-in, a package or a script names as "package.module:name" in an attribute of its own; None without one.

    Raises ConfigError when that cannot be imported.
    """
    if architecture not in ModelRegistry.models:
        return None
    if ModelRegistry.source_of(architecture).kind == "built-in":
        return None
    cls = ModelRegistry.models[architecture]
    path = vars(cls).get(attribute)
    if path is None:
        return None
    module, _, name = str(path).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{cls.__module__}:{cls.__name__} has {attribute} = {path!r}, which cannot be imported ({error}); write "
            '"package.module:name"'
        ) from error
