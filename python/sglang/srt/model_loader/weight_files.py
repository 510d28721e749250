"""Reading one weight file: its tensors one at a time, or a sentence about what is wrong with it.

Safetensors and pickled files come memory-mapped where the format allows it, so a checkpoint is never in memory twice. Pickled files are
read with `weights_only`, which runs no code.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sglang.srt.utils.errors import ConfigError

__all__ = ["check_present", "stream_pickled", "stream_safetensors"]

_MADV_DONTNEED = 4  # of madvise(2)
_ZIP = b"PK\x03\x04"
_POINTER = b"version https://git-lfs"
_MAX_REASON = 200  # letters of another library's message


def stream_safetensors(path: Path, use_mmap: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name, tensor)` of every tensor of a safetensors file, on the host. Raises ConfigError naming the file."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    _refuse_pointer(path)
    try:
        if not use_mmap:
            yield from load(path.read_bytes()).items()
            return
        with safe_open(path, framework="pt", device="cpu") as file:
            pages = _MappedPages(path)
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_tensor(name)
                version = _version(tensor)
                yield name, tensor
                if version is not None and _version(tensor) == version:
                    pages.release(tensor)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, "it is probably truncated or damaged", error) from error
    except (KeyError, AttributeError) as error:  # a dtype that this torch or safetensors lacks
        raise _unreadable(path, "it holds numbers of a kind that is not known", error) from error


def stream_pickled(path: Path, use_mmap: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """`(name, tensor)` of every tensor of a pickled file, on the host. Raises ConfigError naming the file.

    Only the zip format can be mapped; torch wrote another one before 1.6.
    """
    _refuse_pointer(path)
    try:
        is_mapped = use_mmap and _begins_with(path, _ZIP)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # a boundary: damaged or hostile bytes may raise anything
        what = (
            "it is truncated or damaged, or holds Python objects besides tensors, which are never loaded; "
            "convert it to safetensors"
        )
        raise _unreadable(path, what, error) from error
    if not isinstance(state, dict):
        raise ConfigError(f"weight file {path} holds a {type(state).__name__}, not tensors by name")
    while state:
        name = next(iter(state))
        yield name, _checked(path, name, state.pop(name))


def check_present(path: Path) -> None:
    """Raises ConfigError when there is no such file, and when a link leads nowhere."""
    if path.is_file():
        return
    again = "download or copy the checkpoint again"
    if path.is_symlink():
        raise ConfigError(f"{path} is a link to {path.readlink()}, which does not exist; {again}")
    raise ConfigError(f"weight file {path.name!r} is not in {str(path.parent)!r}; {again}")


class _MappedPages:
    """The memory that a file is mapped to. Released pages are read again from the file when somebody looks at them.

    Without a release the whole checkpoint stays resident beside the parameters until the file is closed. Memory that is not mapped from the
    file would be zeroed, so it is never touched.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)
        self._ranges: list[range] | None = None  # looked up once the first tensor has mapped it

    def release(self, tensor: torch.Tensor) -> None:
        """Let the system drop the whole pages of a tensor that nobody has written to."""
        if sys.platform != "linux":
            return
        page = os.sysconf("SC_PAGE_SIZE")
        start = -(-tensor.data_ptr() // page) * page
        end = (tensor.data_ptr() + tensor.nbytes) // page * page
        if end > start and self._covers(start, end):
            _c_library().madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED
            )

    def _covers(self, start: int, end: int) -> bool:
        if self._ranges is None:
            self._ranges = list(self._read_ranges())
        return any(start in pages and end - 1 in pages for pages in self._ranges)

    def _read_ranges(self) -> Iterator[range]:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                # addresses, permissions, offset, device, inode, path
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) == 6 and fields[5] == self._path:
                    first, last = (int(address, 16) for address in fields[0].split("-"))
                    yield range(first, last)


@functools.cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


def _version(tensor: torch.Tensor) -> int | None:
    """Changes whenever the tensor, or a view of it, is written to. None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _checked(path: Path, name: Any, value: Any) -> torch.Tensor:
    if isinstance(name, str) and isinstance(value, torch.Tensor):
        return value.detach()  # it may be a parameter
    raise ConfigError(
        f"weight file {path} is no plain checkpoint: {name!r} is a {type(value).__name__}, where tensors by name are expected; "
        "save the model's state_dict alone"
    )


def _refuse_pointer(path: Path) -> None:
    check_present(path)
    if _begins_with(path, _POINTER):
        raise ConfigError(
            f"weight file {path} is a pointer of git LFS and not the file itself; run `git lfs pull` in its folder, or "
            "download the checkpoint again"
        )


def _begins_with(path: Path, beginning: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError as error:
        raise _unreadable(path, "the system refuses it", error) from error


def _unreadable(path: Path, what: str, error: Exception) -> ConfigError:
    size = path.stat().st_size if path.is_file() else 0
    lines = str(error).splitlines() or [""]
    reason = f"{type(error).__name__}: {lines[0][:_MAX_REASON]}"
    return ConfigError(f"weight file {path} ({size} bytes) cannot be read: {what} ({reason})")
