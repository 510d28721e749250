"""A serving system for language and multimodal models.

`import sglang` costs a few milliseconds: the public names below are imported on first use, so that
`sglang --help` and plug-in packages do not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from sglang.version import __version__

# Public name -> module that defines it.
_LAZY_NAMES = {
    "Engine": "sglang.srt.entrypoints.engine",
    "ServerArgs": "sglang.srt.server_args",
}

__all__ = ["Engine", "ServerArgs", "__version__"]  # noqa: F822  (resolved by __getattr__)


def __getattr__(name: str) -> Any:
    """Import a public name on first access and keep it as a plain module attribute."""
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module 'sglang' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_NAMES})
