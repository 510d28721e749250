"""The process that decodes media files: `python -m sglang.srt.multimodal.media.decode_worker`.

Files come from clients and go through native code, so they are decoded where needing too much memory, running too long or crashing
costs one process and no request but the one to blame. Messages on stdin and stdout are frames of `utils/worker_pipe`:
`DecodeJob` in, `DecodeReply` out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np

from sglang.srt.multimodal.media.audio import decode_audio
from sglang.srt.multimodal.media.image import decode_image
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.multimodal.media.video import measure_video, read_frames
from sglang.srt.utils.errors import RequestError
from sglang.srt.utils.worker_pipe import (
    frames,
    limit_memory,
    open_pipes,
    time_limit,
    write_frame,
)

# Address space that decoding may take on top of what the loaded libraries hold.
_MEMORY_LIMIT_BYTES = 4 << 30


class DecodeJob(msgspec.Struct):
    """`kind`: image, measure (a video), frames or audio."""

    kind: str
    content: bytes
    limits: dict[str, Any]  # fields of MediaLimits
    timeout: float  # seconds; the process ends itself with SIGALRM when they are over
    discard_alpha_channel: bool = True
    indices: list[int] = []
    sample_rate: int = 0


class DecodeReply(msgspec.Struct):
    """An array as raw data, or the sentence why there is none."""

    data: bytes = b""
    shape: list[int] = []
    num_frames: int = 0
    fps: float = 0.0
    error: str | None = None
    status_code: int = 400


def main() -> None:
    """Serve jobs until stdin closes."""
    source, sink = open_pipes()
    limit_memory(_MEMORY_LIMIT_BYTES)
    decoder = msgspec.msgpack.Decoder(DecodeJob)
    for job in frames(source):
        write_frame(sink, decode(decoder.decode(job)))


def decode(job: DecodeJob) -> DecodeReply:
    """What a job asks for; a refusal is a reply."""
    try:
        with time_limit(job.timeout):
            return _decode(job, MediaLimits(**job.limits))
    except RequestError as error:
        return DecodeReply(error=error.message, status_code=error.status_code)
    except MemoryError:
        return DecodeReply(error="the medium needs more memory than one may take", status_code=413)


def _decode(job: DecodeJob, limits: MediaLimits) -> DecodeReply:
    if job.kind == "image":
        return _reply(np.asarray(decode_image(job.content, limits, job.discard_alpha_channel)))
    if job.kind == "measure":
        total, fps = measure_video(job.content, limits)
        return DecodeReply(num_frames=total, fps=fps)
    if job.kind == "frames":
        return _reply(read_frames(job.content, job.indices, limits))
    return _reply(decode_audio(job.content, job.sample_rate, limits))


def _reply(array: np.ndarray) -> DecodeReply:
    return DecodeReply(np.ascontiguousarray(array).tobytes(), list(array.shape))


def as_limits(limits: MediaLimits) -> dict[str, Any]:
    """The form in which limits travel."""
    return dataclasses.asdict(limits)


if __name__ == "__main__":
    main()
