"""How large media may be. Everything here is compared with what a header declares, before anything is decoded."""

from __future__ import annotations

import dataclasses

from sglang.srt.environ import envs
from sglang.srt.utils.errors import RequestError

_MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class MediaLimits:
    """Bounds of one medium.

    A video whose sampled frames would take more than `max_frame_bytes` is scaled down while it is decoded; everything else that is too
    large is refused.
    """

    max_bytes: int = 256 * _MIB  # of the file
    max_pixels: int = 2**26  # of an image, or of a frame: 8192 x 8192
    max_side: int = 2**16  # pixels
    max_frames: int = 2**18  # in the file
    max_sampled_frames: int = 1024
    max_frame_bytes: int = 1024 * _MIB  # of all sampled frames, decoded
    max_audio_seconds: float = 3600.0
    fetch_seconds: float = 3.0  # per URL, redirects included

    @classmethod
    def from_environment(cls) -> MediaLimits:
        """The limits of a server. Raises ConfigError for a variable that does not parse."""
        return cls(
            max_bytes=envs.SGLANG_MEDIA_MAX_MB.get() * _MIB,
            max_pixels=envs.SGLANG_MEDIA_MAX_PIXELS.get(),
            fetch_seconds=envs.REQUEST_TIMEOUT.get(),
        )

    def check_bytes(self, size: int, kind: str) -> None:
        """Raises RequestError (413) for a file of `size` bytes that is too large."""
        if size > self.max_bytes:
            raise RequestError(
                f"the {kind} has more than the {self.max_bytes // _MIB} MiB that are allowed; send a smaller one", 413
            )  # fmt: skip

    def check_frames(self, count: int) -> None:
        """Raises RequestError for more sampled frames than are allowed."""
        if count > self.max_sampled_frames:
            raise RequestError(
                f"{count} frames of the video would be used; at most {self.max_sampled_frames} are allowed"
            )

    def check_size(self, width: int, height: int, kind: str) -> None:
        """Raises RequestError for declared sizes that are empty or too large."""
        if width < 1 or height < 1:
            raise RequestError(f"the {kind} has no pixels ({width} x {height})")
        if width * height > self.max_pixels or max(width, height) > self.max_side:
            raise RequestError(
                f"the {kind} has {width} x {height} pixels; at most {self.max_pixels} in all and {self.max_side} "
                "a side are allowed; scale it down"
            )
