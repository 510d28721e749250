"""Which parameters a model's `load_weights` filled, also where it tells nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sglang.srt.models.common.weights import WeightProblem, find_unfilled

_SMALL_FLOATS = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class FillWatch:
    """Notices parameters that were written by code which does not report it.

    Our own weight loaders mark what they fill. A plug-in's may copy into `param.data` themselves, so a mark is written into every parameter
    before loading and looked for afterwards: NaN into the first element of floating-point numbers, a row of odd numbers into integers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._originals: dict[str, torch.Tensor] = {}
        for name, param in model.named_parameters():
            if _can_mark(param):
                place = _place(param)
                self._originals[name] = place.clone()
                place.copy_(_mark(place))

    def find_unfilled(self, skipped: Mapping[str, Sequence[str]]) -> list[WeightProblem]:
        """Problems of parameters that nobody filled; their mark is taken out again."""
        silently_filled: set[str] = set()
        for name, param in self._model.named_parameters():
            if name not in self._originals or not _can_mark(param):
                continue
            place = _place(param)
            if _is_marked(place):
                place.copy_(self._originals[name])
            else:
                silently_filled.add(name)
        return find_unfilled(self._model, silently_filled, skipped)


def _can_mark(param: nn.Parameter) -> bool:
    dtype = param.dtype
    is_float = dtype.is_floating_point and (param.element_size() > 1 or dtype in _SMALL_FLOATS)
    return param.numel() > 0 and (is_float or dtype in _INTEGERS)


def _place(param: nn.Parameter) -> torch.Tensor:
    """A view of where the mark is: the first element of floats, the first row of integers."""
    num_fixed = param.dim() if param.dtype.is_floating_point else max(0, param.dim() - 1)
    return param.data[(0,) * num_fixed]


def _mark(place: torch.Tensor) -> torch.Tensor:
    if place.dtype.is_floating_point:
        return torch.full_like(place, torch.nan, dtype=torch.float32)
    numbers = torch.arange(place.numel(), device=place.device) * 37 + 85  # within 0..127
    return (numbers % 128).view(place.shape)


def _is_marked(place: torch.Tensor) -> bool:
    if place.dtype.is_floating_point:
        return bool(place.float().isnan())
    return bool((place == _mark(place)).all())
