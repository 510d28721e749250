"""Decoding in other processes gives the same media, and a file that breaks its decoder breaks nothing else."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
import pytest

pytest.importorskip("PIL")

import media_files

from sglang.srt.environ import envs
from sglang.srt.multimodal.media.decode_pool import DecodePool
from sglang.srt.multimodal.media.image import decode_image
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.utils.errors import RequestError

LIMITS = MediaLimits()
PNG = media_files.encoded(media_files.picture())


@pytest.fixture(scope="module")
def pool():
    with envs.SGLANG_CPU_WORKERS.override(1):
        pool = DecodePool(timeout=60.0)
    yield pool
    pool.close()


def test_images_are_the_same(pool):
    image = pool.decode_image(PNG, LIMITS)
    assert image.mode == "RGB" and np.array_equal(image, decode_image(PNG))
    alpha = media_files.encoded(media_files.picture().convert("RGBA"))
    assert pool.decode_image(alpha, LIMITS, discard_alpha_channel=False).mode == "RGBA"


def test_sounds_and_videos_are_the_same(pool):
    pytest.importorskip("av")
    wave = np.sin(np.arange(1600) / 20) / 2
    assert np.allclose(pool.decode_audio(media_files.wav(wave), 16000, LIMITS), wave, atol=1e-3)
    video = pool.decode_video(media_files.mp4(), lambda total, fps: [0, total - 1], LIMITS)
    assert video.frames.shape == (2, 48, 64, 3) and video.indices == [0, 11]


def test_refusals_keep_their_sentence(pool):
    with pytest.raises(RequestError, match="known format"):
        pool.decode_image(b"no image", LIMITS)
    with pytest.raises(RequestError, match="9000 x 9000 pixels"):
        pool.decode_image(media_files.png_header(9000, 9000), LIMITS)


def test_a_decoder_that_dies_is_replaced(pool):
    pool.decode_image(PNG, LIMITS)
    (worker,) = pool._workers
    os.kill(worker._process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.decode_image, PNG, LIMITS)
        while not _num_unread(worker._process.stdin) and not waiting.done():
            time.sleep(0.01)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(RequestError, match="breaks its decoder"):
            waiting.result()
    assert pool.decode_image(PNG, LIMITS).size == (32, 24)


def _num_unread(pipe: IO[bytes]) -> int:
    """Bytes in the pipe that its reader has not taken."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
