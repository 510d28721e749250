"""Writes a package with a processor, as an author outside the project would."""

from __future__ import annotations

from pathlib import Path

PROCESSOR = """
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor


class CustomQwen2VL:
    pass


class CustomProcessor(QwenVLImageProcessor):
    models = [CustomQwen2VL]
"""


def write_package(folder: Path, name: str) -> None:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "processor.py").write_text(PROCESSOR)
    (package / "broken.py").write_text("import a_module_that_does_not_exist\n")
