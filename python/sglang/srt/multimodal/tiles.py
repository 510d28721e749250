"""How LLaVA-NeXT and LLaVA-OneVision lay out a picture: one small view of the whole, then tiles, a newline behind each line of patches."""

from __future__ import annotations

import dataclasses
from typing import Any

from sglang.srt.multimodal.anyres import (
    get_anyres_image_grid_shape,
    limited_shape,
    unpad_image_shape,
)


@dataclasses.dataclass(frozen=True)
class TileLayout:
    """Sizes are (height, width).

    Args:
        tile: pixels along a side of a tile, and of the small view.
        side: patches along it.
        canvases: allowed sizes in pixels of all tiles together.
        most: pictures of more than that many tiles are scaled down after the tower; None: they are not.
    """

    tile: int
    side: int
    canvases: tuple[tuple[int, int], ...]
    most: int | None = None

    @staticmethod
    def of(config: Any) -> TileLayout:
        """As a config says: `image_grid_pinpoints`, and `vision_aspect_ratio="anyres_max_9"` for at most 9 tiles."""
        vision = config.vision_config
        raw = config.to_dict()
        name = str(raw.get("vision_aspect_ratio") or "")
        most = name.removeprefix("anyres_max_")
        return TileLayout(
            tile=vision.image_size,
            side=vision.image_size // vision.patch_size,
            canvases=tuple((int(h), int(w)) for h, w in raw.get("image_grid_pinpoints") or ()),
            most=int(most) if most.isdigit() else None,
        )

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of a picture of that many pixels."""
        return get_anyres_image_grid_shape((height, width), self.canvases, self.tile)

    def unpadded(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches, without what only pads the picture."""
        rows, columns = self.tiles(height, width)
        return unpad_image_shape(rows * self.side, columns * self.side, (width, height))

    def shown(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the embeddings that are made of these."""
        rows, columns = self.unpadded(height, width)
        if self.most is None:
            return rows, columns
        return limited_shape(rows, columns, self.most * self.side**2)

    def num_rows(self, height: int, width: int, num_whole: int) -> int:
        """Embedding rows of a picture whose small view has `num_whole`."""
        rows, columns = self.shown(height, width)
        return num_whole + rows * (columns + 1)
