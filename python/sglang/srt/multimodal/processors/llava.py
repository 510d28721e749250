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
from sglang.srt.multimodal.tiles import TileLayout
from sglang.srt.utils.errors import ConfigError, RequestError

_VIDEO_FRAMES = 32
# Towers whose first row stands for the whole picture.
_WITH_CLASS_ROW = ("clip_vision_model",)
_TOWERS = (*_WITH_CLASS_ROW, "siglip_vision_model")


class LlavaImageProcessor(BaseMultimodalProcessor):
    """LLaVA 1.5: every picture has as many rows as the tower has patches."""

    models: list[Any] = ["LlavaForConditionalGeneration"]
    modalities: tuple[Modality, ...] = (Modality.IMAGE,)
    cuts_tiles = False

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
        has_class_row = vision.model_type in _WITH_CLASS_ROW
        is_dropped = hf_config.vision_feature_select_strategy == "default"
        # Of one square. As published: whatever is the first row is dropped, also where it is a patch.
        self.num_whole = self.side**2 + has_class_row - is_dropped
        self.image_token_id, self.video_token_id = self._token_ids()
        self.mm_tokens = MultimodalSpecialTokens(
            image_token_id=self.image_token_id, video_token_id=self.video_token_id
        ).build(_processor)

    def _token_ids(self) -> tuple[int, int | None]:
        """Of pictures and videos."""
        return self.hf_config.image_token_id, None

    async def process_mm_data_async(
        self,
        image_data: Any = None,
        audio_data: Any = None,
        input_text: Any = "",
        request_obj: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        return self.prepare(image_data, audio_data, input_text, request_obj)

    def check_images(self, images: list[Any]) -> None:
        super().check_images(images)
        if self.cuts_tiles or not vars(self._processor.image_processor).get("do_pad"):
            return
        for image in images:  # which become squares before they are scaled
            self.check_way(image, max(image.size), max(image.size))

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        ids = [self.image_token_id] * self.num_whole
        return [ids for _ in features["feature"]]


class LlavaNextImageProcessor(LlavaImageProcessor):
    """LLaVA-NeXT: a small whole picture, then tiles of the shape that fits best."""

    models: list[Any] = ["LlavaNextForConditionalGeneration"]
    cuts_tiles = True

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.layout = TileLayout.of(hf_config)

    def image_features(self, images: list[Any]) -> Features:
        """[tiles, 3, S, S] of every picture, without the tiles that pad it to the longest: equal pictures stay equal beside others."""
        output = self.call_image_processor(images)
        sizes = output["image_sizes"].tolist()
        pictures = [
            picture[: self._num_tiles(picture, size)]
            for picture, size in zip(output["pixel_values"], sizes, strict=True)
        ]
        return {**output, "pixel_values": pictures}

    def call_image_processor(self, images: list[Any]) -> Features:
        return dict(super().image_features(images))

    def _num_tiles(self, picture: torch.Tensor, size: list[int]) -> int:
        rows, columns = self.layout.tiles(*size)
        return min(len(picture), 1 + rows * columns)

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        pictures, sizes = features["feature"], features["image_sizes"]
        is_pairs = sizes.dim() == 2 and sizes.shape[1] == 2 and len(sizes) == len(pictures)
        if not is_pairs or not bool((sizes > 0).all()):
            raise RequestError("image_sizes must hold a height and a width above zero per picture")
        return [
            [self.image_token_id] * self._num_rows(picture, (int(height), int(width)))
            for picture, (height, width) in zip(pictures, sizes.tolist(), strict=True)
        ]

    def _num_rows(self, picture: torch.Tensor, size: tuple[int, int]) -> int:
        """One tile alone is the whole, and ends with a newline."""
        if len(picture) == 1:
            return self.num_whole + 1
        return self.layout.num_rows(*size, self.num_whole)


class LlavaOnevisionImageProcessor(LlavaNextImageProcessor):
    """LLaVA-OneVision: tiles for one picture, the whole alone for each of several, frames pooled to a quarter."""

    models: list[Any] = ["LlavaOnevisionForConditionalGeneration"]
    modalities: tuple[Modality, ...] = (Modality.IMAGE, Modality.VIDEO)

    def _token_ids(self) -> tuple[int, int | None]:
        return self.hf_config.image_token_id, self.hf_config.video_token_id

    def call_image_processor(self, images: list[Any]) -> Features:
        """Pictures of one prompt in one list: several are not cut into tiles."""
        return dict(self._call(self._processor.image_processor, "image", images=[images]))

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        if modality is not Modality.VIDEO:
            return super().replacements(modality, features)
        pooled = math.ceil(self.side / 2) ** 2
        token_id = self.video_token_id
        assert token_id is not None, "videos come only where there is a token for them"
        return [[token_id] * (len(frames) * pooled + 1) for frames in features["feature"]]

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
        return {"pixel_values_videos": pixels}
