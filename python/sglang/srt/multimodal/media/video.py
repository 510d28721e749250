"""Decodes the frames of a video that a sampler chooses. Needs PyAV (`pip install av`)."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sglang.srt.multimodal.media.data import VideoFrames
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.utils.errors import RequestError

logger = logging.getLogger(__name__)

# (number of frames, frames per second) -> indices of the frames to take, ascending.
FrameSampler = Callable[[int, float], list[int]]

_DEFAULT_FPS = 24.0  # of a file that does not say


def decode_video(
    content: bytes, sampler: FrameSampler, limits: MediaLimits | None = None
) -> VideoFrames:
    """The sampled frames of a video file.

    Raises RequestError for what is no video, has no frames, is too large or broken, and when PyAV is not installed.
    """
    limits = limits or MediaLimits()
    total, fps = measure_video(content, limits)
    indices = checked_indices(sampler(total, fps), total, limits)
    frames = read_frames(content, indices, limits)
    return VideoFrames(frames, indices[: len(frames)], fps, total)


def measure_video(content: bytes, limits: MediaLimits) -> tuple[int, float]:
    """(frames, frames per second) of a file. Raises as `decode_video`."""
    return _guarded(lambda av: _measure(av, content, limits))


def read_frames(content: bytes, indices: list[int], limits: MediaLimits) -> np.ndarray:
    """uint8 [frames, H, W, 3]; fewer than `indices` when the file ends before. Raises as `decode_video`."""
    frames = _guarded(lambda av: list(_frames(av, content, set(indices), limits)))
    if not frames:
        raise RequestError("the video has no frames")
    return np.stack(frames)


def _guarded(work: Callable[[Any], Any]) -> Any:
    """What `work` makes of PyAV."""
    if importlib.util.find_spec("av") is None:
        raise RequestError("this server cannot decode videos; install PyAV on it (pip install av)")
    import av

    try:
        return work(av)
    except RequestError:
        raise
    except Exception as error:
        # A file from outside: whatever its reader raises is the request's fault.
        logger.info("A video was refused: %r", error)
        raise RequestError("the video is not a file of a known format, or broken") from error


def frames_from_images(images: list[Any], fps: float = _DEFAULT_FPS) -> VideoFrames:
    """A video given as its frames: PIL images or arrays `[H, W, 3]` of one size, uint8."""
    arrays = [np.asarray(image) for image in images]
    if not arrays:
        raise RequestError("the video has no frames")
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 3 or arrays[0].shape[2] != 3:
        raise RequestError("the frames of a video must be RGB and of one size")
    return VideoFrames(np.stack(arrays), list(range(len(arrays))), fps, len(arrays))


def uniform_indices(total: int, count: int) -> list[int]:
    """`count` indices, evenly spread over `total` frames, the first and the last included."""
    return [int(value) for value in np.linspace(0, total - 1, min(count, total))]


def _measure(av: Any, content: bytes, limits: MediaLimits) -> tuple[int, float]:
    """(frames, frames per second), from the packets: a header may say anything."""
    with av.open(io.BytesIO(content), mode="r") as container:
        stream = _video_stream(container)
        limits.check_size(stream.codec_context.width, stream.codec_context.height, "video")
        fps = float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS)
        total = 0
        for packet in container.demux(stream):
            total += bool(packet.size)
            if total > limits.max_frames:
                raise RequestError(
                    f"the video has more than {limits.max_frames} frames; send a shorter one"
                )
    if total == 0:
        raise RequestError("the video has no frames")
    return total, fps


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise RequestError("the file has no video in it")
    return container.streams.video[0]


def checked_indices(indices: list[int], total: int, limits: MediaLimits) -> list[int]:
    """Raises RequestError for none, and for more than are allowed."""
    if not indices:
        raise RequestError(f"the video is too short for this model: it has {total} frames")
    limits.check_frames(len(indices))
    return indices


def _frames(av: Any, content: bytes, wanted: set[int], limits: MediaLimits) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3], in order of their indices."""
    last = max(wanted)
    with av.open(io.BytesIO(content), mode="r") as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        size = None
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                limits.check_size(frame.width, frame.height, "video")
                size = size or _fitting_size(frame.width, frame.height, len(wanted), limits)
                yield frame.reformat(*size, format="rgb24").to_ndarray()
            if index >= last:
                return


def _fitting_size(width: int, height: int, num_frames: int, limits: MediaLimits) -> tuple[int, int]:
    """Width and height at which all frames fit into the budget; unchanged where they do anyway."""
    needed = width * height * 3 * num_frames
    if needed <= limits.max_frame_bytes:
        return width, height
    scale = math.sqrt(limits.max_frame_bytes / needed)
    return max(int(width * scale), 1), max(int(height * scale), 1)
