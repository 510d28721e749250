"""One item of `image_data`, `video_data` or `audio_data`, loaded: whatever form it has."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.srt.multimodal.media.audio import checked_samples, decode_audio
from sglang.srt.multimodal.media.budget import RequestBudget, budget_of_request
from sglang.srt.multimodal.media.data import ImageData, VideoFrames
from sglang.srt.multimodal.media.image import as_rgb, decode_image
from sglang.srt.multimodal.media.sources import SourcePolicy, read_source
from sglang.srt.multimodal.media.video import FrameSampler, decode_video, frames_from_images
from sglang.srt.utils.errors import RequestError

if TYPE_CHECKING:
    from sglang.srt.multimodal.media.decode_pool import DecodePool


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How media of one request are decoded."""

    policy: SourcePolicy = dataclasses.field(default_factory=SourcePolicy)
    discard_alpha_channel: bool = True
    sampler: FrameSampler | None = None  # None: the model takes no video
    audio_sample_rate: int = 16000
    pool: DecodePool | None = None  # processes that decode files; None: this one does
    budget: RequestBudget = dataclasses.field(default_factory=budget_of_request)


def load_image(item: Any, options: LoadOptions) -> Any:
    """A PIL image, from a PIL image, an array `[H, W, 3]` or a source. Raises RequestError."""
    options.budget.take()
    image = _image(item, options)
    options.budget.take(image.width * image.height * len(image.getbands()))
    return image


def _image(item: Any, options: LoadOptions) -> Any:
    from PIL import Image

    if isinstance(item, ImageData):
        item = item.url
    if isinstance(item, np.ndarray):
        item = _from_array(item)
    if isinstance(item, Image.Image):
        options.policy.limits.check_size(item.width, item.height, "image")
        return as_rgb(item, options.discard_alpha_channel)
    content = read_source(item, "image", options.policy)
    if options.pool is not None:
        return options.pool.decode_image(
            content, options.policy.limits, options.discard_alpha_channel
        )
    return decode_image(content, options.policy.limits, options.discard_alpha_channel)


def load_video(item: Any, options: LoadOptions) -> VideoFrames:
    """Sampled frames, from frames (a list of images, an array `[T, H, W, 3]`, `VideoFrames`) or a source. Raises RequestError."""
    if options.sampler is None:
        raise RequestError("the model being served takes no videos")
    if isinstance(item, VideoFrames):
        return item
    if isinstance(item, (list, tuple)):  # each frame counts as an image does
        options.policy.limits.check_frames(len(item))
        return frames_from_images([load_image(frame, options) for frame in item])
    options.budget.take()
    video = _video(item, options, options.sampler)
    options.budget.take(video.frames.nbytes)
    return video


def _video(item: Any, options: LoadOptions, sampler: FrameSampler) -> VideoFrames:
    if isinstance(item, np.ndarray):
        return frames_from_images(list(item))
    content = read_source(item, "video", options.policy)
    if options.pool is not None:
        return options.pool.decode_video(content, sampler, options.policy.limits)
    return decode_video(content, sampler, options.policy.limits)


def load_audio(item: Any, options: LoadOptions) -> np.ndarray:
    """float32 `[samples]`, from samples at the model's rate or a source. Raises RequestError."""
    options.budget.take()
    samples = _audio(item, options)
    options.budget.take(samples.nbytes)
    return samples


def _audio(item: Any, options: LoadOptions) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return checked_samples(item, options.audio_sample_rate, options.policy.limits)
    content = read_source(item, "audio", options.policy)
    if options.pool is not None:
        return options.pool.decode_audio(content, options.audio_sample_rate, options.policy.limits)
    return decode_audio(content, options.audio_sample_rate, options.policy.limits)


def _from_array(pixels: np.ndarray) -> Any:
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise RequestError(
            f"an image given as an array must be uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(pixels)
