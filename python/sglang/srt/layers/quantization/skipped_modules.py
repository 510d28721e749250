"""Which modules of a quantized checkpoint are not quantized, by the checkpoint's names."""

from __future__ import annotations

import re

from sglang.srt.utils.errors import ConfigError


class SkippedModules:
    """Entries name a module, a module around it (`model.layers.0`) or its last names (`mlp.gate`); "re:" starts a pattern of the whole name.

    `packed_modules_mapping`: fused name -> names in the checkpoint.
    """

    def __init__(self, entries: list[str], packed_modules_mapping: dict[str, list[str]]) -> None:
        self._entries = entries
        self._packed = packed_modules_mapping

    def has(self, prefix: str) -> bool:
        """Whether the linear layer at `prefix` is one. Raises ConfigError when only a part of a fused layer is."""
        around, _, name = prefix.rpartition(".")
        if name not in self._packed:
            return self._matches(prefix)
        parts = [f"{around}.{part}" if around else part for part in self._packed[name]]
        found = [part for part in (prefix, *parts) if self._matches(part)]
        if prefix in found or len(found) == len(parts):
            return True
        if found:
            raise ConfigError(
                f"{prefix} is fused of {', '.join(parts)}, of which only {', '.join(found)} is excluded from quantization; "
                "that is not implemented"
            )
        return False

    def has_experts(self, prefix: str) -> bool:
        """Whether the experts at `prefix` are; one expert excluded excludes all, and then all must be stored plain."""
        return self._matches(prefix) or any(
            entry.startswith(f"{prefix}.") for entry in self._entries
        )

    def _matches(self, name: str) -> bool:
        return any(_matches(entry, name) for entry in self._entries)


def _matches(entry: str, name: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry[3:], name) is not None
    return name == entry or name.startswith(f"{entry}.") or name.endswith(f".{entry}")
