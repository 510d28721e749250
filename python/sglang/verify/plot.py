"""A plot of the error by layer as SVG text: one bar of points on a logarithmic axis, and the bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_FLOOR = 1e-9
_COLOURS = {"line": "#1f5fa8", "bad": "#c0392b", "grid": "#dddddd", "text": "#333333"}


def error_plot(title: str, rows: Sequence[tuple[str, float]], bound: float) -> str:
    """An SVG document. `rows`: label and relative error, in order; values above `bound` are red. Infinite ones are drawn at the top."""
    finite = [value for _, value in rows if math.isfinite(value)]
    low = math.floor(math.log10(max(min([*finite, bound]), _FLOOR)))
    high = math.ceil(math.log10(max([*finite, bound, _FLOOR * 10]))) + 1
    parts = [_text(_WIDTH / 2, 22, title, size=14)]
    parts += [
        _grid_line(exponent, _y(10.0**exponent, low, high)) for exponent in range(low, high + 1)
    ]
    parts.append(_bound_line(_y(bound, low, high), bound))
    points = [(_x(i, len(rows)), _y(value, low, high)) for i, (_, value) in enumerate(rows)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS["line"]}"/>')
    every = max(1, len(rows) // 24)
    for index, ((label, value), (x, y)) in enumerate(zip(rows, points, strict=True)):
        colour = _COLOURS["line"] if value <= bound else _COLOURS["bad"]
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
            f"<title>{escape(label)}: {value:.3g}</title></circle>"
        )
        if index % every == 0 or index == len(rows) - 1:
            parts.append(_text(x, _HEIGHT - _BOTTOM + 18, label))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 10, "output of layer"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _x(index: int, count: int) -> float:
    room = _WIDTH - _LEFT - _RIGHT
    return _LEFT + room * (index + 0.5) / max(count, 1)


def _y(value: float, low: int, high: int) -> float:
    clipped = min(max(value, 10.0**low), 10.0**high)
    share = (math.log10(clipped) - low) / (high - low)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid_line(exponent: int, y: float) -> str:
    line = _line(y, _COLOURS["grid"])
    return line + _text(_LEFT - 8, y + 4, f"1e{exponent}", anchor="end")


def _bound_line(y: float, bound: float) -> str:
    line = _line(y, _COLOURS["bad"], ' stroke-dasharray="6 4"')
    return line + _text(_WIDTH - _RIGHT, y - 5, f"bound {bound:.0e}", anchor="end")


def _line(y: float, colour: str, extra: str = "") -> str:
    return f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="{colour}"{extra}/>'


def _text(x: float, y: float, content: str, size: int = 11, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{_COLOURS["text"]}">{escape(content)}</text>'
    )
