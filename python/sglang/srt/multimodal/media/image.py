"""Decodes an image: upright, first frame, 8 bits per channel."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.utils.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# No format whose reader runs other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION = 0x0112  # of EXIF
# What makes an image upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF"


def decode_image(
    content: bytes, limits: MediaLimits | None = None, discard_alpha_channel: bool = True
) -> Image:
    """An RGB image (RGBA is kept when `discard_alpha_channel` is False).

    Raises RequestError for what is no image of a known format, too large, cut off or broken.
    """
    from PIL import Image  # heavy, and a text model never needs it

    limits = limits or MediaLimits()
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(
            f"the image has more than the {limits.max_pixels} pixels that are allowed; scale it down"
        ) from error
    except Exception as error:
        # a file from outside: whatever its reader raises is the request's fault
        logger.info("An image was refused: %r", error)
        raise RequestError(f"the image is not a file of a known format ({_NAMES})") from error
    limits.check_size(image.width, image.height, "image")
    try:
        image.load()
        return as_rgb(image, discard_alpha_channel)
    except Exception as error:  # as above
        logger.info("An image was refused while it was decoded: %r", error)
        raise RequestError(f"the image ({image.format}) is cut off or broken") from error


def as_rgb(image: Image, discard_alpha_channel: bool = True) -> Image:
    """Upright and in 8-bit colours; 16-bit grey is scaled, where a plain conversion would cut it off."""
    from PIL import Image

    # By its number: Pillow's own function also writes the other tags back, and one of them may be broken.
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if turn is not None:
        image = image.transpose(Image.Transpose[turn])
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "RGBA" and not discard_alpha_channel:
        return image
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image) -> Any:
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
