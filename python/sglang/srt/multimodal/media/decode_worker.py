"""The process that decodes media files: `python -m sglang.srt.multimodal.media.decode_worker`.

Files come from clients and go through native code, so they are decoded where needing too much memory, running too long or crashing
costs one process and no request but the one to blame. Frames on stdin and stdout are an 8-byte little-endian length and a
msgpack message: `DecodeJob` in, `DecodeReply` out.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

import msgspec
import numpy as np

from sglang.srt.multimodal.media.audio import decode_audio
from sglang.srt.multimodal.media.image import decode_image
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.multimodal.media.video import measure_video, read_frames
from sglang.srt.utils.errors import RequestError

FRAME_HEADER = struct.Struct("<Q")
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
    source = sys.stdin.buffer
    # Libraries may print; only frames may reach the parent.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory()
    decoder = msgspec.msgpack.Decoder(DecodeJob)
    while (frame := _read_frame(source)) is not None:
        _write_frame(sink, decode(decoder.decode(frame)))


def decode(job: DecodeJob) -> DecodeReply:
    """What a job asks for; a refusal is a reply."""
    # The kernel ends the process, whatever native code is doing at that time.
    signal.setitimer(signal.ITIMER_REAL, job.timeout)
    try:
        return _decode(job, MediaLimits(**job.limits))
    except RequestError as error:
        return DecodeReply(error=error.message, status_code=error.status_code)
    except MemoryError:
        return DecodeReply(error="the medium needs more memory than one may take", status_code=413)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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


def _limit_memory() -> None:
    """Linux only: elsewhere the declared sizes and the time limit have to do."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + _MEMORY_LIMIT_BYTES
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _read_frame(source: BinaryIO) -> bytes | None:
    header = source.read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    return source.read(FRAME_HEADER.unpack(header)[0])


def _write_frame(sink: BinaryIO, message: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(message)
    sink.write(FRAME_HEADER.pack(len(data)) + data)
    sink.flush()


if __name__ == "__main__":
    main()
