"""Which tensors of a checkpoint a model's own `load_weights` uses, and which it passes over in silence."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sglang.srt.models.common.weights import ALWAYS_SKIPPED

# Looking at a tensor's form is no use of its values.
_LOOKS = frozenset({"__get__", "size", "dim", "numel", "ndimension", "is_contiguous", "stride"})


class ReadWatch(TorchFunctionMode):
    """Inside `with watch:`, notes which tensors of `watch.stream(weights)` are an argument of any operation.

    Only operations of the thread that entered are seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unused: dict[str, None] = {}
        self._num_used = 0
        # id of a tensor that still lives -> its name
        self._alive: dict[int, tuple[str, weakref.ref[torch.Tensor]]] = {}
        self._is_reading = False

    def stream(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The same pairs, noted."""
        source = iter(weights)
        while True:
            self._is_reading = True  # what the reader of the files does is no use
            try:
                pair = next(source, None)
            finally:
                self._is_reading = False
            if pair is None:
                return
            self._note(*pair)
            yield pair

    def unused(self) -> list[str]:
        """Names of the tensors that nobody used; none when nothing was seen at all, as with a loader of several threads."""
        return list(self._unused) if self._num_used else []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # A property may be a tensor, as `data` and `T` are; then what happens to that is not seen.
        is_look = getattr(func, "__name__", "") in _LOOKS and not isinstance(result, torch.Tensor)
        if not self._is_reading and not is_look:
            self._mark(args)
            self._mark((kwargs or {}).values())
        return result

    def _note(self, name: str, tensor: torch.Tensor) -> None:
        key = id(tensor)
        self._unused[name] = None
        # An id is given again once its tensor is gone.
        self._alive[key] = (name, weakref.ref(tensor, lambda ref: self._forget(key, ref)))

    def _forget(self, key: int, ref: weakref.ref[torch.Tensor]) -> None:
        if key in self._alive and self._alive[key][1] is ref:
            del self._alive[key]

    def _mark(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self._mark(value)
            elif id(value) in self._alive:
                name, _ = self._alive[id(value)]
                if name in self._unused:
                    del self._unused[name]
                    self._num_used += 1


def passed_over(model: nn.Module, unused: list[str]) -> list[str]:
    """Patterns (`*` for a number) with counts of the unused tensors that a reader should hear of, for a message.

    Values computed from the config, and the stored copy of a head that is the embedding, are left out.
    """
    skip = re.compile("|".join(ALWAYS_SKIPPED))
    parameters = dict(model.named_parameters())
    counts: dict[str, int] = {}
    for name in unused:
        is_tied_copy = name.endswith("lm_head.weight") and name not in parameters
        if skip.search(name) or is_tied_copy:
            continue
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
