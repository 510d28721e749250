"""What the device is and can do, behind one object chosen at start."""

from __future__ import annotations

from sglang.srt.platforms.base import Platform
from sglang.srt.platforms.cpu import CpuPlatform
from sglang.srt.platforms.cuda import CudaPlatform
from sglang.srt.utils import is_cuda
from sglang.srt.utils.cuda_probe import why_no_cuda

__all__ = ["CpuPlatform", "CudaPlatform", "Platform", "create_platform"]

_PLATFORMS: dict[str, type[Platform]] = {"cpu": CpuPlatform, "cuda": CudaPlatform}


def create_platform(device: str = "auto", index: int = 0) -> Platform:
    """The platform of device number `index`.

    `device` is "cpu", "cuda" or "auto" (cuda when torch can use one). Raises ValueError for another
    name, and for "cuda" on a machine without a usable GPU.
    """
    if device == "auto":
        device = "cuda" if is_cuda() else "cpu"
    if device not in _PLATFORMS:
        allowed = ", ".join(["auto", *_PLATFORMS])
        raise ValueError(f"device {device!r} is not supported; allowed: {allowed}")
    if device == "cuda" and not is_cuda():
        raise ValueError(
            f"device 'cuda' was asked for, but torch sees no usable GPU ({why_no_cuda()}); use 'cpu'"
        )
    return _PLATFORMS[device](index)
