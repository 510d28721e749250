"""Takes the place of the built-in Qwen2-VL: the answers are the same, and the log says who gives them."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.models import qwen2_vl
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor

logger = logging.getLogger(__name__)


class Qwen2VLForConditionalGeneration(qwen2_vl.Qwen2VLForConditionalGeneration):
    """The built-in class under its own name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logger.info("Qwen2-VL of %s", __name__)


class CustomQwen2VLProcessor(QwenVLImageProcessor):
    """Prepares images for the class above."""

    models = [Qwen2VLForConditionalGeneration]


EntryClass = Qwen2VLForConditionalGeneration
