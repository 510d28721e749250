"""What vision server tests import: the mixins of `sglang.test.vlm_utils`."""

from __future__ import annotations

from sglang.test.vlm_utils import (
    AudioOpenAITestMixin,
    ImageOpenAITestMixin,
    OmniOpenAITestMixin,
    TestOpenAIMLLMServerBase,
    VideoOpenAITestMixin,
)

__all__ = [
    "AudioOpenAITestMixin",
    "ImageOpenAITestMixin",
    "OmniOpenAITestMixin",
    "TestOpenAIMLLMServerBase",
    "VideoOpenAITestMixin",
]
