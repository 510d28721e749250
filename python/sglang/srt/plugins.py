"""Installed packages that announce themselves through Python entry points.

A distribution writes, for instance, `[project.entry-points."sglang.models"] acme = "acme_models"`, and `pip install` is all
it takes: every process finds it. This module only finds and imports; what the found object means is the group's business.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

MODEL_GROUP = "sglang.models"
PROCESSOR_GROUP = "sglang.processors"  # points are named after the architecture that they are for


@dataclass(frozen=True)
class Plugin:
    """One entry point: `name = "module"` or `name = "module:attribute"`."""

    name: str
    module: str
    attribute: str  # empty: the module itself
    distribution: str  # "acme-models 1.0", or empty

    def load(self) -> Any:
        """Import what the entry point names. Raises whatever the plug-in's code raises."""
        value = importlib.import_module(self.module)
        for part in filter(None, self.attribute.split(".")):
            value = getattr(value, part)
        return value

    def __str__(self) -> str:
        origin = f" of {self.distribution}" if self.distribution else ""
        target = f"{self.module}:{self.attribute}" if self.attribute else self.module
        return f"plug-in {self.name!r}{origin} ({target})"


def find_plugins(group: str) -> list[Plugin]:
    """The entry points of a group, sorted by name; nothing is imported."""
    from importlib.metadata import entry_points  # late: it reads the metadata of every package

    found = {}
    for point in entry_points(group=group):
        owner = f"{point.dist.name} {point.dist.version}" if point.dist is not None else ""
        plugin = Plugin(point.name, point.module, point.attr or "", owner)
        # A folder that is on sys.path twice, or an editable install, shows the same entry point twice.
        found[plugin.name, plugin.module, plugin.attribute] = plugin
    return [found[key] for key in sorted(found)]
