"""What a client may write where a medium is expected, turned into the bytes of a file."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from sglang.srt.environ import envs
from sglang.srt.multimodal.media.fetch import fetch
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.utils.errors import RequestError

_SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus"),
}
# A data URL may name its own kind, or one of these.
_NEUTRAL_TYPES = ("", "application/octet-stream", "application/ogg")


@dataclasses.dataclass(frozen=True)
class SourcePolicy:
    """Where media may come from.

    Args:
        any_path: the caller is this machine's own user (`Engine`), who may name any file.
        root: folder that files named by clients must lie under; None: clients cannot name files.
        private_hosts: hosts that may be fetched from although their address is not public.
    """

    limits: MediaLimits = dataclasses.field(default_factory=MediaLimits)
    any_path: bool = False
    root: str | None = None
    private_hosts: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> SourcePolicy:
        """The policy of a server. Raises ConfigError for a variable that does not parse."""
        return cls(
            limits=MediaLimits.from_environment(),
            root=envs.SGLANG_MEDIA_ROOT.get(),
            private_hosts=envs.SGLANG_MEDIA_ALLOW_PRIVATE_HOSTS.get(),
        )


def read_source(source: Any, kind: str, policy: SourcePolicy) -> bytes:
    """The bytes behind `source`: bytes, http(s) URL, data URL, `file://` URL, path, or base64.

    Args:
        kind: "image", "video" or "audio".

    Raises RequestError for a source that is malformed, not allowed, missing or too large. May block on the network.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        policy.limits.check_bytes(len(source), kind)
        return bytes(source)
    if isinstance(source, Path):
        return _read_file(source, kind, policy)
    if not isinstance(source, str):
        raise RequestError(
            f"a {kind} cannot be given as {type(source).__name__}; give a URL, a data URL, base64, or a path"
        )
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return fetch(source, kind, policy.limits, policy.private_hosts)
    if scheme.startswith("data:"):
        return _read_data_url(source, kind, policy)
    if scheme.startswith("file://"):
        return _read_file(Path(_file_url_path(source, kind)), kind, policy)
    if _is_path(source, kind, policy):
        return _read_file(Path(source), kind, policy)
    return _read_base64(source, kind, policy)


def _is_path(source: str, kind: str, policy: SourcePolicy) -> bool:
    if len(source) > 4096 or "\0" in source:
        return False
    if source.lower().endswith(_SUFFIXES[kind]):
        return True
    try:
        return policy.any_path and Path(source).is_file()
    except OSError:  # no name that a file could have: longer than names may be
        return False


def _file_url_path(url: str, kind: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or "\0" in unquote(parts.path):
        raise RequestError(f"the {kind} URL must have the form file:///folder/name")
    return unquote(parts.path)


def _read_file(path: Path, kind: str, policy: SourcePolicy) -> bytes:
    if not policy.any_path:
        path = _under_root(path, kind, policy.root)
    try:
        # Opening a pipe could block for ever, so what it is comes first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RequestError(f"the {kind} path does not name a file")
        policy.limits.check_bytes(status.st_size, kind)
        with path.open("rb") as file:
            content = file.read(policy.limits.max_bytes + 1)
    except OSError as error:
        raise RequestError(f"the {kind} file {path.name!r} cannot be read") from error
    policy.limits.check_bytes(len(content), kind)
    return content


def _under_root(path: Path, kind: str, root: str | None) -> Path:
    """The real path, links followed. Raises RequestError for one that clients may not name."""
    if root is None:
        raise RequestError(
            f"this server reads no files for its clients; send the {kind} as a URL, a data URL or base64 "
            "(SGLANG_MEDIA_ROOT names a folder whose files they may use)"
        )
    try:
        real, folder = path.resolve(), Path(root).resolve()
    except (OSError, RuntimeError) as error:
        raise RequestError(f"the {kind} path cannot be followed") from error
    if not real.is_relative_to(folder):
        raise RequestError(
            f"the {kind} path is outside the folder that this server reads for its clients"
        )
    return real


def _read_data_url(url: str, kind: str, policy: SourcePolicy) -> bytes:
    header, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise RequestError(
            f"the {kind} data URL is malformed; it must be data:{kind}/...;base64,..."
        )
    mime, *options = (part.strip().lower() for part in header.split(";"))
    if mime not in _NEUTRAL_TYPES and not mime.startswith(f"{kind}/"):
        raise RequestError(f"the data URL is of type {ascii(mime)[:60]}, which is no {kind}")
    if "base64" in options:
        return _read_base64(body, kind, policy)
    policy.limits.check_bytes(len(body) // 3, kind)
    return unquote_to_bytes(body)


def _read_base64(text: str, kind: str, policy: SourcePolicy) -> bytes:
    policy.limits.check_bytes(len(text) * 3 // 4 - 2, kind)
    compact = "".join(text.split()).rstrip("=")
    padded = compact + "=" * (-len(compact) % 4)
    try:
        content = base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"the {kind} {ascii(text[:40])} is neither a URL, a data URL, the path of a known file type, nor base64"
        ) from error
    if not content:
        raise RequestError(f"the {kind} is empty")
    return content
