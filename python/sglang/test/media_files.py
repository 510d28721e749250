"""Small pictures, videos and sounds, drawn in memory."""

from __future__ import annotations

import base64
import io
import math
import struct
import wave
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 112  # pixels of a picture
_SAMPLE_RATE = 16000


def draw(shape: str, colour: str, side: int = SIDE) -> Image.Image:
    """A filled "circle", "square" or "triangle" in the middle of a white picture. Raises ValueError for another shape."""
    from PIL import Image, ImageDraw  # late: tests without pictures need no Pillow

    image = Image.new("RGB", (side, side), "white")
    canvas = ImageDraw.Draw(image)
    low, middle, high = side // 4, side // 2, side - side // 4
    if shape == "circle":
        canvas.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        canvas.rectangle((low, low, high, high), fill=colour)
    elif shape == "triangle":
        canvas.polygon([(middle, low), (high, high), (low, high)], fill=colour)
    else:
        raise ValueError(f"shape {shape!r} is none of circle, square, triangle")
    return image


def encode_image(image: Image.Image, kind: str = "PNG") -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def image_url(image: Image.Image, kind: str = "PNG") -> str:
    """A data URL."""
    return data_url(encode_image(image, kind), f"image/{kind.lower()}")


def data_url(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def read_data_url(url: str) -> bytes:
    """What a data URL holds."""
    return base64.b64decode(url.partition(",")[2])


def encode_video(frames: Sequence[Image.Image], fps: int = 4) -> bytes:
    """An MP4 file. Needs PyAV."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def tone(hertz: float, seconds: float = 0.5) -> bytes:
    """A WAV file with one tone, mono, 16 bits, 16,000 samples a second."""
    count = int(seconds * _SAMPLE_RATE)
    waves = (math.sin(2 * math.pi * hertz * i / _SAMPLE_RATE) for i in range(count))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE)
        file.writeframes(b"".join(struct.pack("<h", int(20000 * value)) for value in waves))
    return buffer.getvalue()
