"""InternVL: pictures are cut into tiles, each tile has as many rows; as transformers publishes it, and as its authors do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    Features,
    MultimodalSpecialTokens,
)
from sglang.srt.utils.errors import ConfigError

_START, _END, _ROW = "<img>", "</img>", "<IMG_CONTEXT>"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class InternVLImageProcessor(BaseMultimodalProcessor):
    """`<IMG_CONTEXT>` becomes `<img>`, the rows of all tiles, `</img>`."""

    models: list[Any] = ["InternVLForConditionalGeneration"]
    modalities = (Modality.IMAGE,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.IM_START_TOKEN_ID, self.IM_END_TOKEN_ID = self._ids_of_tokens(_START, _END)
        self.row_id, self.rows_per_tile = self.read_rows(hf_config)
        self.mm_tokens = MultimodalSpecialTokens(image_token_id=self.row_id).build(_processor)

    def read_rows(self, hf_config: Any) -> tuple[int, int]:
        """The id that stands at each row, and the rows of a tile."""
        return hf_config.image_token_id, hf_config.image_seq_length

    async def process_mm_data_async(
        self,
        image_data: Any = None,
        audio_data: Any = None,
        input_text: Any = "",
        request_obj: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        result = self.prepare(image_data, audio_data, input_text, request_obj)
        return {
            **result,
            "im_start_id": self.IM_START_TOKEN_ID,
            "im_end_id": self.IM_END_TOKEN_ID,
        }

    def image_features(self, images: list[Any]) -> Features:
        features = dict(super().image_features(images))
        features["num_patches"] = torch.as_tensor(features["num_patches"])
        return features

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        rows = [self.row_id] * self.rows_per_tile
        return [
            [self.IM_START_TOKEN_ID, *(rows * tiles), self.IM_END_TOKEN_ID]
            for tiles in features["num_patches"].tolist()
        ]

    def _options(self, kind: str) -> dict[str, Any]:
        return {"crop_to_patches": True, **super()._options(kind)}

    def _ids_of_tokens(self, *tokens: str) -> list[int]:
        """Raises ConfigError for a token that the tokenizer does not have."""
        tokenizer = self._processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids(list(tokens))
        if None in ids or tokenizer.unk_token_id in ids:
            raise ConfigError(
                f"the tokenizer of this InternVL lacks one of the tokens {', '.join(tokens)}"
            )
        return ids


class InternVLChatImageProcessor(InternVLImageProcessor):
    """For the authors' repositories, whose image processor cuts no tiles (their code does)."""

    models: list[Any] = ["InternVLChatModel"]

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        _processor.image_processor = _make_tiler(hf_config)

    def read_rows(self, hf_config: Any) -> tuple[int, int]:
        side = _tile_size(hf_config) // hf_config.vision_config["patch_size"]
        (row_id,) = self._ids_of_tokens(_ROW)
        return row_id, round(side * hf_config.downsample_ratio) ** 2

    def _options(self, kind: str) -> dict[str, Any]:
        cuts = bool(self.hf_config.dynamic_image_size)
        return {**super()._options(kind), **({} if cuts else {"crop_to_patches": False})}


def _make_tiler(hf_config: Any) -> Any:
    """What cuts as the authors do, with the small picture of the whole behind the tiles."""
    from transformers import GotOcr2ImageProcessorPil  # late: heavy

    if hf_config.dynamic_image_size and not hf_config.use_thumbnail:
        raise ConfigError("an InternVL with tiles and use_thumbnail=false is not supported")
    side = _tile_size(hf_config)
    return GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        min_patches=hf_config.min_dynamic_patch,
        max_patches=hf_config.max_dynamic_patch,
        image_mean=_MEAN,
        image_std=_STD,
    )


def _tile_size(hf_config: Any) -> int:
    known = hf_config.to_dict()
    return known.get("force_image_size") or known["vision_config"]["image_size"]
