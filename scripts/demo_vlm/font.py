"""Digits and signs as 5 x 7 bitmaps, so that no font file is needed to print a number."""

from __future__ import annotations

WIDTH, HEIGHT = 5, 7
_ROWS = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00010 00100 01000 11111",
    "3": "11111 00010 00100 00010 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "+": "00000 00100 00100 11111 00100 00100 00000",
    "-": "00000 00000 00000 11111 00000 00000 00000",
}
GLYPHS = {
    sign: tuple(
        (x, y) for y, row in enumerate(rows.split()) for x, bit in enumerate(row) if bit == "1"
    )
    for sign, rows in _ROWS.items()
}


def dots(text: str) -> list[tuple[int, int]]:
    """The filled places (x, y) of a line of text, one empty column between two signs."""
    unknown = sorted(set(text) - set(GLYPHS))
    if unknown:
        raise ValueError(f"no glyph for {unknown}; the font has {''.join(GLYPHS)}")
    return [(i * (WIDTH + 1) + x, y) for i, sign in enumerate(text) for x, y in GLYPHS[sign]]


def line_width(text: str) -> int:
    """Width of a line in font dots."""
    return len(text) * (WIDTH + 1) - 1
