"""LLaVA-NeXT; transformers class `LlavaNextForConditionalGeneration` (llava-vl.github.io/blog/2024-01-30-llava-next).

    rows = tower(small view of the whole) + for every line of patches of all tiles: tower(patches), newline

Differs from LLaVA 1.5:
- a picture also goes through the tower in tiles, of the arrangement that fits its shape best (`image_grid_pinpoints`);
- patches that only pad the picture are left out, and a learned row ends each line.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.llava import (
    LlavaForConditionalGeneration,
    LlavaTower,
    check_pixels,
    check_places,
)
from sglang.srt.multimodal.anyres import unpad_image
from sglang.srt.multimodal.inputs import MultimodalDataItem
from sglang.srt.multimodal.tiles import TileLayout
from sglang.srt.utils.errors import ConfigError

Size = tuple[int, int]  # height and width of the picture, in pixels


class LlavaNextTower(LlavaTower):
    """Pictures in tiles to rows of the language model's width D."""

    def __init__(self, config: Any, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__(config, quant_config, prefix)
        self.layout = TileLayout.of(config)
        if self.num_rows != self.layout.side**2:
            raise ConfigError(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} leaves {self.num_rows} rows of a tile with "
                f"{self.layout.side**2} patches; tiles need one row per patch"
            )
        self.image_newline = nn.Parameter(torch.empty(read_facts(config).hidden_size))

    def num_rows_of(self, picture: torch.Tensor, size: Size) -> int:
        """Embedding rows of a picture `[tiles, C, S, S]`. One tile alone is the whole, and ends with a newline."""
        if len(picture) == 1:
            return self.num_rows + 1
        return self.layout.num_rows(*size, self.num_rows)

    def num_tiles(self, picture: torch.Tensor, size: Size) -> int:
        """Tiles that are no padding, the small view among them."""
        rows, columns = self.layout.tiles(*size)
        return 1 if len(picture) == 1 else 1 + rows * columns

    def rows_of(self, pictures: list[torch.Tensor], sizes: list[Size]) -> torch.Tensor:
        """[tiles, C, S, S] of every picture -> [N, D]."""
        counts = [self.num_tiles(*pair) for pair in zip(pictures, sizes, strict=True)]
        used = [picture[:count] for picture, count in zip(pictures, counts, strict=True)]
        parts = self(torch.cat(used)).split(counts)
        return torch.cat([self._lines(x, size) for x, size in zip(parts, sizes, strict=True)])

    def _lines(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        """Rows [tiles, num_rows, D] of one picture in the order of reading, [N, D]."""
        whole, newline = x[0], self.image_newline.to(x.dtype)
        if len(x) == 1:
            return torch.cat([whole, newline[None]])
        rows, columns = self.layout.tiles(*size)
        side = self.layout.side
        grid = x[1:].reshape(rows, columns, side, side, -1)
        canvas = grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
        canvas = unpad_image(canvas, (size[1], size[0]))
        shown = self.layout.shown(*size)
        if shown != tuple(canvas.shape[1:]):
            canvas = F.interpolate(canvas[None], size=shown, mode="bilinear")[0]
        lines = canvas.permute(1, 2, 0)  # [rows, columns, D]
        ends = newline.expand(len(lines), 1, -1)
        return torch.cat([whole, torch.cat([lines, ends], dim=1).flatten(0, 1)])


class LlavaNextForConditionalGeneration(LlavaForConditionalGeneration):
    tower_cls: type[LlavaTower] = LlavaNextTower

    def check(self, item: MultimodalDataItem) -> None:
        check_pixels(item, self.visual.vision_tower, num_dims=5)
        sizes = picture_sizes(item)
        if len(sizes) != len(item.feature):
            raise ValueError(f"image_sizes={sizes} are given for {len(item.feature)} pictures")
        for picture, size in zip(item.feature, sizes, strict=True):
            if min(size) < 1 or len(picture) < self.visual.num_tiles(picture, size):
                raise ValueError(
                    f"a picture of size {size} has {len(picture)} tiles, too few for its layout"
                )
        pairs = zip(item.feature, sizes, strict=True)
        check_places(item, [self.visual.num_rows_of(*pair) for pair in pairs])

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        pictures = [self._tower_input(picture) for item in items for picture in item.feature]
        sizes = [size for item in items for size in picture_sizes(item)]
        return self.visual.rows_of(pictures, sizes)

    def _tower_input(self, pixels: Any) -> torch.Tensor:
        weight = self.visual.vision_tower.weight
        return torch.as_tensor(pixels).to(weight.device, weight.dtype)


def picture_sizes(item: MultimodalDataItem) -> list[Size]:
    """(height, width) of every picture of an item. Raises ValueError for an item without them."""
    if "image_sizes" not in item.model_specific_data:
        raise ValueError("image data of this model need image_sizes")
    pairs = torch.as_tensor(item.model_specific_data["image_sizes"]).reshape(-1, 2).tolist()
    return [(int(height), int(width)) for height, width in pairs]


EntryClass = LlavaNextForConditionalGeneration
