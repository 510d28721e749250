"""How weights get from disk into the model."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.utils.errors import ConfigError

LOAD_FORMATS = ("auto", "safetensors", "pt", "dummy")


@dataclass(frozen=True)
class LoadConfig:
    """`load_format`: "auto" prefers safetensors and falls back to .bin files; "dummy" reads no file.

    `download_dir`: where hub snapshots go, None for the hub's own cache. `use_mmap`: map files instead of
    reading them, so that a checkpoint is never in memory twice; off helps on some network file systems. Raises ConfigError for an unknown format.
    """

    load_format: str = "auto"
    download_dir: str | None = None
    use_mmap: bool = True

    def __post_init__(self) -> None:
        if self.load_format not in LOAD_FORMATS:
            raise ConfigError(
                f"load_format={self.load_format!r} is not supported; allowed: {', '.join(LOAD_FORMATS)}"
            )
