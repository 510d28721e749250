"""The list of decoder layers of one pipeline stage.

`make_layers` is what model files call; absent layers become `PPMissingLayer`, so that layer indices
and weight names are the same on every stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.utils.common import add_prefix


class PPMissingLayer(torch.nn.Identity):
    """Stands for a layer that lives on another pipeline stage; returns its first argument."""

    def __init__(self, *args: Any, return_tuple: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.return_tuple = return_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        return (first,) if self.return_tuple else first


def make_layers(
    num_hidden_layers: int,
    layer_fn: Callable[..., torch.nn.Module],
    pp_rank: int | None = None,
    pp_size: int | None = None,
    prefix: str = "",
    return_tuple: bool = False,
    offloader_kwargs: dict[str, Any] | None = None,
) -> torch.nn.ModuleList | tuple[torch.nn.ModuleList, int, int]:
    """Build layers with `layer_fn(idx=, prefix=)`.

    Returns `(layers, start, end)` when both pipeline arguments are given, else only the list.
    `return_tuple` makes the placeholders return 1-tuples. `offloader_kwargs` is accepted for model
    files that describe how they could be offloaded; weights stay on the device.
    """
    start, end = 0, num_hidden_layers
    pipelined = False
    if pp_rank is not None and pp_size is not None:
        pipelined = True
        start, end = get_pp_indices(num_hidden_layers, pp_rank, pp_size)
    layers = torch.nn.ModuleList(
        layer_fn(idx=i, prefix=add_prefix(i, prefix))
        if start <= i < end
        else PPMissingLayer(return_tuple=return_tuple)
        for i in range(num_hidden_layers)
    )
    return (layers, start, end) if pipelined else layers


def get_pp_indices(num_hidden_layers: int, pp_rank: int, pp_size: int) -> tuple[int, int]:
    """First layer and one past the last layer of a pipeline stage.

    Layers are split evenly and the last stages take one more each when it does not divide. The
    environment variable SGLANG_PP_LAYER_PARTITION, a comma list with one size per stage, overrides.
    """
    sizes = _read_partition(num_hidden_layers, pp_size)
    if sizes is None:
        base, extra = divmod(num_hidden_layers, pp_size)
        sizes = [base + (rank >= pp_size - extra) for rank in range(pp_size)]
    start = sum(sizes[:pp_rank])
    return start, start + sizes[pp_rank]


def _read_partition(num_hidden_layers: int, pp_size: int) -> list[int] | None:
    # Through os.environ and not `environ`: that module imports this package.
    text = os.environ.get("SGLANG_PP_LAYER_PARTITION", "").strip()
    if not text:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != pp_size or sum(sizes) != num_hidden_layers or min(sizes) < 0:
        raise ValueError(
            f"environment variable SGLANG_PP_LAYER_PARTITION={text!r} is invalid; it must list "
            f"{pp_size} comma separated layer counts that add up to {num_hidden_layers}"
        )
    return sizes
