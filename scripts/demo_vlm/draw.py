"""Draw a scene or a printed number as an image; size, tint and exact places come from `rng`."""

from __future__ import annotations

import math
import random

from font import HEIGHT, dots, line_width
from PIL import Image, ImageDraw
from scene import MIDDLE, Figure, Picture, Print, Scene

Colour = tuple[int, int, int]
_RGB: dict[str, Colour] = {
    "red": (220, 30, 35),
    "green": (35, 150, 55),
    "blue": (35, 75, 220),
    "yellow": (245, 220, 40),
    "orange": (250, 135, 20),
    "purple": (130, 45, 165),
    "pink": (250, 150, 195),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "grey": (150, 150, 150),
}
_TINT = 10  # largest change of a channel
_SIDES = (112,) * 10 + (84, 128, 160, 224, 224, 320)
_RATIOS = (1.0,) * 16 + (4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)  # width to height


def render(picture: Picture, rng: random.Random) -> Image.Image:
    """An RGB image of 84 to 320 pixels in height; the same picture and state of `rng`, the same image."""
    height, ratio = rng.choice(_SIDES), rng.choice(_RATIOS)
    size = (round(height * ratio), height)
    image = Image.new("RGB", size, _tinted(rng, picture.background))
    canvas = ImageDraw.Draw(image)
    if isinstance(picture, Print):
        _draw_print(canvas, picture, size, rng)
    else:
        _draw_scene(canvas, picture, size, rng)
    return image


def _tinted(rng: random.Random, name: str) -> Colour:
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-_TINT, _TINT))) for channel in _RGB[name]
    )
    return red, green, blue


def _draw_scene(
    canvas: ImageDraw.ImageDraw, scene: Scene, size: tuple[int, int], rng: random.Random
) -> None:
    alone = len(scene.figures) == 1 and scene.figures[0].place == MIDDLE
    alike = rng.uniform(0.3, 0.44)
    same_size = rng.random() < 0.5
    for figure in scene.figures:
        radius = alike if same_size else rng.uniform(0.28, 0.46)  # in thirds of the picture
        if alone and rng.random() < 0.6:
            radius = rng.uniform(0.5, 1.3)
        _draw_figure(canvas, figure, size, radius, rng)


def _draw_figure(
    canvas: ImageDraw.ImageDraw,
    figure: Figure,
    size: tuple[int, int],
    radius: float,
    rng: random.Random,
) -> None:
    row, column = divmod(figure.place, 3)
    third_x, third_y = size[0] / 3, size[1] / 3
    slack = max(0.0, 0.48 - radius)
    x = (column + 0.5 + rng.uniform(-slack, slack)) * third_x
    y = (row + 0.5 + rng.uniform(-slack, slack)) * third_y
    r = radius * min(third_x, third_y)
    colour = _tinted(rng, figure.colour)
    if figure.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    else:
        canvas.polygon(
            [(x + r * px, y + r * py) for px, py in _OUTLINES[figure.shape]], fill=colour
        )


def _star() -> list[tuple[float, float]]:
    corners = []
    for i in range(10):
        angle, reach = math.pi * (i / 5 - 0.5), 1.0 if i % 2 == 0 else 0.42
        corners.append((reach * math.cos(angle), reach * math.sin(angle)))
    return corners


_W = 0.33  # half the width of a cross's bars
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -1.0), (0.95, 0.85), (-0.95, 0.85)],
    "diamond": [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)],
    "star": _star(),
    "cross": [(-_W, -1), (_W, -1), (_W, -_W), (1, -_W), (1, _W), (_W, _W)]
    + [(_W, 1), (-_W, 1), (-_W, _W), (-1, _W), (-1, -_W), (-_W, -_W)],
}


def _draw_print(
    canvas: ImageDraw.ImageDraw, print_: Print, size: tuple[int, int], rng: random.Random
) -> None:
    """One line of dots, as large as fits or somewhat smaller, anywhere in the picture."""
    columns = line_width(print_.text)
    largest = min(size[0] * 0.92 / columns, size[0] / 24, size[1] * 0.8 / HEIGHT)
    dot = max(1.0, largest * rng.uniform(0.8, 1.0))
    dot = dot if rng.random() < 0.5 else float(int(dot))
    free_x, free_y = size[0] - dot * columns, size[1] - dot * HEIGHT
    left = free_x * rng.uniform(0.15, 0.85)
    top = free_y * rng.uniform(0.1, 0.9)
    colour = _tinted(rng, print_.colour)
    for x, y in dots(print_.text):
        box = (left + x * dot, top + y * dot, left + (x + 1) * dot - 1, top + (y + 1) * dot - 1)
        canvas.rectangle(tuple(round(edge) for edge in box), fill=colour)
