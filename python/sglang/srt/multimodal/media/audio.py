"""Decodes sounds to mono float samples at the rate that a model wants. PyAV reads every format; without it, 16-bit PCM WAV works."""

from __future__ import annotations

import importlib.util
import io
import logging
import wave
from typing import Any

import numpy as np

from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.utils.errors import RequestError

logger = logging.getLogger(__name__)


def decode_audio(content: bytes, sample_rate: int, limits: MediaLimits | None = None) -> np.ndarray:
    """float32 [samples] in [-1, 1], mono, `sample_rate` per second.

    Raises RequestError for what is no sound, has no samples, is too long or broken.
    """
    limits = limits or MediaLimits()
    decode = _decode_any if importlib.util.find_spec("av") is not None else _decode_wav
    try:
        samples = decode(content, sample_rate, limits)
    except RequestError:
        raise
    except Exception as error:
        # a file from outside: whatever its reader raises is the request's fault
        logger.info("A sound was refused: %r", error)
        raise RequestError("the audio is not a file of a known format, or broken") from error
    return checked_samples(samples, sample_rate, limits)


def checked_samples(samples: Any, sample_rate: int, limits: MediaLimits) -> np.ndarray:
    """float32 [samples]. Raises RequestError for none, too many, and values that are no numbers."""
    mono = np.asarray(samples, dtype=np.float32)
    if mono.ndim == 2:  # channels last
        mono = mono.mean(axis=1)
    if mono.ndim != 1 or not len(mono):
        raise RequestError("the audio has no samples")
    _check_length(len(mono), sample_rate, limits)
    if not np.isfinite(mono).all():
        raise RequestError("the audio has samples that are not finite numbers")
    return mono


def _check_length(num_samples: int, sample_rate: int, limits: MediaLimits) -> None:
    if num_samples > limits.max_audio_seconds * sample_rate:
        raise RequestError(
            f"the audio is longer than the {limits.max_audio_seconds:g} seconds that are allowed; send a part of it"
        )


def _decode_any(content: bytes, sample_rate: int, limits: MediaLimits) -> np.ndarray:
    import av

    pieces: list[np.ndarray] = []
    with av.open(io.BytesIO(content), mode="r") as container:
        if not container.streams.audio:
            raise RequestError("the file has no audio in it")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
        num_samples = 0
        for frame in _and_end(container.decode(container.streams.audio[0])):
            for piece in resampler.resample(frame):
                pieces.append(piece.to_ndarray().reshape(-1))
                num_samples += len(pieces[-1])
                _check_length(num_samples, sample_rate, limits)
    return np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _and_end(frames: Any) -> Any:
    """The frames, then None: what makes a resampler give out the rest."""
    yield from frames
    yield None


def _decode_wav(content: bytes, sample_rate: int, limits: MediaLimits) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as file:
        if file.getsampwidth() != 2 or file.getframerate() != sample_rate:
            raise RequestError(
                f"without PyAV this server reads 16-bit WAV at {sample_rate} samples per second only; "
                "send that, or install it (pip install av)"
            )
        _check_length(file.getnframes(), sample_rate, limits)
        raw = file.readframes(file.getnframes())
        channels = np.frombuffer(raw, "<i2").reshape(-1, file.getnchannels())
    return channels.astype(np.float32).mean(axis=1) / 32768.0
