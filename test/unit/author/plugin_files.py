"""Writes packages and the metadata of installed distributions, as `pip install` would leave them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

CLASS_FILE = "class {name}:\n    pass\n\n\nEntryClass = {name}\n"


class Site:
    """A folder on sys.path that tests fill."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.syspath_prepend(folder)

    def package(self, name: str, **modules: str) -> str:
        """A package with one file per keyword."""
        root = self.folder / name
        root.mkdir()
        (root / "__init__.py").write_text(modules.pop("init", ""))
        for module, text in modules.items():
            (root / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    def install(self, distribution: str, group: str = "sglang.models", **points: str) -> None:
        """Metadata of a distribution with entry points."""
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        rows = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{rows}")
        importlib.invalidate_caches()
