"""LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision as transformers publishes them: `<image>` becomes one id per row of the tower.

Tiles of NeXT and OneVision are laid out as the picture was cut; padding is left out, and each row of patches ends with a newline row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.media.data import VideoFrames
from sglang.srt.multimodal.media.video import uniform_indices
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    Features,
    MultimodalSpecialTokens,
)
from sglang.srt.utils.errors import ConfigError

_VIDEO_FRAMES = 32
# Towers whose first row stands for the whole picture.
_WITH_CLASS_ROW = ("clip_vision_model",)
_TOWERS = (*_WITH_CLASS_ROW, "siglip_vision_model")


class LlavaImageProcessor(BaseMultimodalProcessor):
    """LLaVA 1.5: every picture has as many rows as the tower has patches."""

    models: list[Any] = ["LlavaForConditionalGeneration"]
    modalities: tuple[Modality, ...] = (Modality.IMAGE,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        vision = hf_config.vision_config
        if vision.model_type not in _TOWERS:
            raise ConfigError(
                f"a LLaVA with a vision tower of type {vision.model_type!r} is not supported; allowed: {', '.join(_TOWERS)}"
            )
        self.side = vision.image_size // vision.patch_size  # patches
        is_full = hf_config.vision_feature_select_strategy == "full"
        self.num_class_rows = int(is_full and vision.model_type in _WITH_CLASS_ROW)
        self.mm_tokens = MultimodalSpecialTokens(
            image_token_id=hf_config.image_token_id, video_token_id=self._video_token_id()
        ).build(_processor)

    def _video_token_id(self) -> int | None:
        return None

    async def process_mm_data_async(
        self,
        image_data: Any = None,
        audio_data: Any = None,
        input_text: Any = "",
        request_obj: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        return self.prepare(image_data, audio_data, input_text, request_obj)

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        rows = self.side**2 + self.num_class_rows
        return [[self.hf_config.image_token_id] * rows for _ in features["feature"]]


class LlavaNextImageProcessor(LlavaImageProcessor):
    """LLaVA-NeXT: a small whole picture, then tiles of the shape that fits best."""

    models: list[Any] = ["LlavaNextForConditionalGeneration"]

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        sizes = features["image_sizes"].tolist()
        token_id = self.hf_config.image_token_id
        return [[token_id] * self.num_rows(height, width) for height, width in sizes]

    def num_rows(self, height: int, width: int) -> int:
        """Embedding rows of a picture of that many pixels."""
        rows, columns = self.unpadded_grid(height, width)
        return self.side**2 + self.num_class_rows + rows * columns + rows

    def unpadded_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of the tiled picture, without what was padded."""
        from transformers.image_processing_utils import select_best_resolution

        best = select_best_resolution((height, width), self.hf_config.image_grid_pinpoints)
        image_size = self.hf_config.vision_config.image_size
        rows, columns = (self.side * (pixels // image_size) for pixels in best)
        # The picture fills one direction; the other keeps its proportion, rounded as it is when patches are cut off.
        if width / height > columns / rows:
            rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
        else:
            columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
        return rows, columns


class LlavaOnevisionImageProcessor(LlavaNextImageProcessor):
    """LLaVA-OneVision: tiles for one picture, the whole alone for each of several, frames pooled to a quarter."""

    models: list[Any] = ["LlavaOnevisionForConditionalGeneration"]
    modalities = (Modality.IMAGE, Modality.VIDEO)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.ATTR_NAME_TO_MODALITY["batch_num_images"] = Modality.IMAGE

    def _video_token_id(self) -> int | None:
        return self.hf_config.video_token_id

    def image_features(self, images: list[Any]) -> Features:
        """Pictures of one prompt in one list: several are not cut into tiles."""
        return self._call(self._processor.image_processor, "image", images=[images])

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        if modality is Modality.VIDEO:
            pooled = math.ceil(self.side / 2) ** 2
            token_id = self.hf_config.video_token_id
            return [[token_id] * (len(frames) * pooled + 1) for frames in features["feature"]]
        sizes = features["image_sizes"].tolist()
        if len(sizes) == 1:
            return super().replacements(modality, features)
        whole = self.side**2 + self.num_class_rows + 1
        return [[self.hf_config.image_token_id] * whole for _ in sizes]

    def num_rows(self, height: int, width: int) -> int:
        """Beyond a number of tiles the picture is scaled down until it has about as many patches."""
        rows, columns = self.unpadded_grid(height, width)
        most = int(self.hf_config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * self.side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return self.side**2 + self.num_class_rows + rows * columns + rows

    def sample_frames(self, num_frames: int, fps: float) -> list[int]:
        """`num_frames` of `--mm-process-config`, else 32, evenly spread."""
        wanted = self._options("video").get("num_frames") or _VIDEO_FRAMES
        return uniform_indices(num_frames, wanted)

    def video_features(self, videos: list[VideoFrames]) -> Features:
        """[frames, 3, S, S] of every video: frames are scaled to the tower's square."""
        from PIL import Image  # heavy, and only videos need it here

        side = self.hf_config.vision_config.image_size
        pixels = []
        for video in videos:
            frames = [
                Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
                for frame in video.frames
            ]
            # One list of several pictures: none is cut into tiles.
            output = self._call(
                self._processor.image_processor, "frames", images=[[*frames, frames[-1]]]
            )
            pixels.append(output["pixel_values"][: len(frames), 0])
        return {"pixel_values_videos": pixels if len(pixels) > 1 else torch.stack(pixels)}
