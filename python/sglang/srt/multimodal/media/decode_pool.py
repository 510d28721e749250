"""The parent's handle on processes that decode media: started when needed, limited, replaced when one died."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from sglang.srt.environ import envs
from sglang.srt.multimodal.media.data import VideoFrames
from sglang.srt.multimodal.media.decode_worker import DecodeJob, DecodeReply, as_limits
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.multimodal.media.video import FrameSampler, checked_indices
from sglang.srt.utils.errors import RequestError
from sglang.srt.utils.worker_pipe import close_pipes, read_frame, start_worker, write_frame

logger = logging.getLogger(__name__)

# The worker ends itself in time; one that does not is killed after this much more, its start included.
_GRACE_SECONDS = 60.0
_MAX_DEFAULT_WORKERS = 4


class DecodePool:
    """Decodes files in processes of its own. Calls block and may come from any thread.

    Args:
        timeout: seconds that one file may take.
    """

    def __init__(self, timeout: float) -> None:
        count = envs.SGLANG_CPU_WORKERS.get() or min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS)
        self._timeout = timeout
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [_Worker() for _ in range(count)]
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def decode_image(
        self, content: bytes, limits: MediaLimits, discard_alpha_channel: bool = True
    ) -> Any:
        """As `image.decode_image`."""
        from PIL import Image

        reply = self._run("image", content, limits, discard_alpha_channel=discard_alpha_channel)
        return Image.fromarray(np.frombuffer(reply.data, np.uint8).reshape(reply.shape))

    def decode_video(
        self, content: bytes, sampler: FrameSampler, limits: MediaLimits
    ) -> VideoFrames:
        """As `video.decode_video`; the sampler runs here."""
        measured = self._run("measure", content, limits)
        total, fps = measured.num_frames, measured.fps
        indices = checked_indices(sampler(total, fps), total, limits)
        reply = self._run("frames", content, limits, indices=indices)
        frames = np.frombuffer(reply.data, np.uint8).reshape(reply.shape)
        return VideoFrames(frames, indices[: len(frames)], fps, total)

    def decode_audio(self, content: bytes, sample_rate: int, limits: MediaLimits) -> np.ndarray:
        """As `audio.decode_audio`."""
        reply = self._run("audio", content, limits, sample_rate=sample_rate)
        return np.frombuffer(reply.data, np.float32)

    def close(self) -> None:
        """End the processes; what they were doing fails."""
        for worker in self._workers:
            worker.kill()

    def _run(self, kind: str, content: bytes, limits: MediaLimits, **options: Any) -> DecodeReply:
        job = DecodeJob(kind, content, as_limits(limits), self._timeout, **options)
        worker = self._idle.get()
        try:
            reply = worker.exchange(job)
        finally:
            self._idle.put(worker)
        if reply.error is not None:
            raise RequestError(reply.error, reply.status_code)
        return reply


class _Worker:
    """One process. `exchange` belongs to one thread at a time; `kill` may be called from any."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def exchange(self, job: DecodeJob) -> DecodeReply:
        """Raises RequestError when the process dies over the job, which is then the job's fault."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        with _killed_after(process, job.timeout + _GRACE_SECONDS):
            try:
                write_frame(process.stdin, job)
                return msgspec.msgpack.decode(read_frame(process.stdout.read), type=DecodeReply)
            except (OSError, EOFError) as error:
                self._reap(process)
                logger.warning("A media file ended its decoder with code %s", process.returncode)
                raise RequestError(
                    "the medium could not be decoded: it takes too long or breaks its decoder"
                ) from error

    def kill(self) -> None:
        self._is_closed = True
        if self._process is not None:
            self._process.kill()
            self._reap(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise RequestError("the server is shutting down", 503)
        if self._process is None or self._process.poll() is not None:
            self._process = start_worker("sglang.srt.multimodal.media.decode_worker")
        return self._process

    @staticmethod
    def _reap(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        close_pipes(process)


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
