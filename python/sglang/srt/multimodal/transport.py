"""The media of a request on their way to the scheduler: a processor's result as bytes, and back. No pickle: plain values, tensors, items.

Layout: 8 bytes (little-endian length of the header), the header as MessagePack, then the raw data of all tensors and arrays, each at a
multiple of 64 bytes from the start of the data. In the header every container is a list that begins with its tag.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec
import numpy as np
import torch

from sglang.srt.multimodal.content import seal
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputFormat

_ALIGN = 64
_LENGTH_BYTES = 8
_MAX_DEPTH = 32
_TORCH_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
_NUMPY_KINDS = "biuf"
_ENUMS: dict[str, type[Enum]] = {"modality": Modality, "format": MultimodalInputFormat}
_FEATURE_FIELDS = ("feature", "precomputed_embeddings")
_ITEM_FIELDS = frozenset(field.name for field in dataclasses.fields(MultimodalDataItem))


def pack(mm_inputs: dict[str, Any]) -> bytes:
    """A processor's result as bytes, its items with their digests and hashes. Reads and copies every feature: for a pool.

    It may hold numbers, strings, bytes, None, lists, tuples, mappings, torch tensors (any device), numpy arrays, `Modality` and
    `MultimodalDataItem`. Raises ValueError for anything else.
    """
    writer = _Writer()
    header = msgspec.msgpack.encode(writer.plain(dict(mm_inputs), 0))
    return b"".join([len(header).to_bytes(_LENGTH_BYTES, "little"), header, *writer.pieces])


def unpack(data: bytes, with_features: bool = True) -> dict[str, Any]:
    """What `pack` was given, with tensors on the CPU that own their memory.

    Without features these are meta tensors: shapes alone. Raises ValueError for malformed bytes.
    """
    view = memoryview(data)
    end = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if not _LENGTH_BYTES <= end <= len(view):
        raise ValueError(f"packed media are cut off: {len(view)} bytes, a header to byte {end}")
    try:
        header = msgspec.msgpack.decode(view[_LENGTH_BYTES:end])
        found = _Reader(view[end:], with_features).value(header)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"packed media are malformed: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"packed media hold a {type(found).__name__}; they must hold a dict")
    return found


class _Writer:
    """Turns values into what MessagePack knows, and collects the raw data."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self._size = 0

    def plain(self, value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"media are nested deeper than {_MAX_DEPTH} levels")
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Enum):
            return self._enum(value)
        if isinstance(value, MultimodalDataItem):
            seal(value)  # always anew: nobody else may say what media are equal
            # Not asdict: it would copy the tensors.
            fields = {name: vars(value)[name] for name in _ITEM_FIELDS}
            return ["item", self.plain(fields, depth + 1)]
        if isinstance(value, Mapping):
            pairs = [[key, self.plain(item, depth + 1)] for key, item in value.items()]
            return ["dict", *pairs]
        if isinstance(value, (list, tuple)):
            tag = "list" if isinstance(value, list) else "tuple"
            return [tag, *(self.plain(item, depth + 1) for item in value)]
        raise ValueError(
            f"media cannot hold a {type(value).__name__}; use numbers, strings, lists, dicts, tensors and arrays"
        )

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        name = str(value.dtype).removeprefix("torch.")
        if name not in _TORCH_DTYPES:
            raise ValueError(f"a tensor of dtype {name} cannot travel; use {sorted(_TORCH_DTYPES)}")
        flat = value.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
        return ["tensor", name, list(value.shape), self._add(raw)]

    def _array(self, value: np.ndarray) -> list[Any]:
        if value.dtype.kind not in _NUMPY_KINDS:
            raise ValueError(f"an array of dtype {value.dtype} cannot travel; use numbers")
        native = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        raw = native.reshape(-1).view(np.uint8) if native.size else np.empty(0, np.uint8)
        return ["array", native.dtype.name, list(value.shape), self._add(raw)]

    def _enum(self, value: Enum) -> list[Any]:
        for name, kind in _ENUMS.items():
            if isinstance(value, kind):
                return [name, value.name]
        raise ValueError(f"media cannot hold {value!r}")

    def _add(self, raw: np.ndarray) -> int:
        """Where the data begin."""
        padding = -self._size % _ALIGN
        self.pieces += [bytes(padding), raw.data]
        start = self._size + padding
        self._size = start + raw.size
        return start


class _Reader:
    """The inverse, which trusts no length."""

    def __init__(self, data: memoryview, with_features: bool) -> None:
        self._data = data
        self._with_features = with_features
        self._is_light = False

    def value(self, plain: Any) -> Any:
        if not isinstance(plain, list):
            return plain
        tag, *rest = plain
        if tag == "list":
            return [self.value(item) for item in rest]
        if tag == "tuple":
            return tuple(self.value(item) for item in rest)
        if tag == "dict":
            return {key: self.value(item) for key, item in rest}
        if tag == "tensor":
            return self._tensor(*rest)
        if tag == "array":
            return self._array(*rest)
        if tag == "item":
            return self._item(rest[0])
        return _ENUMS[tag][rest[0]]

    def _item(self, plain: list[Any]) -> MultimodalDataItem:
        fields = {}
        for key, value in plain[1:]:
            self._is_light = not self._with_features and key in _FEATURE_FIELDS
            fields[key] = self.value(value)
        self._is_light = False
        return MultimodalDataItem(**fields)

    def _tensor(self, name: str, shape: list[int], start: int) -> torch.Tensor:
        dtype = _TORCH_DTYPES[name]
        raw = self._raw(shape, dtype.itemsize, start)
        if self._is_light:
            return torch.empty(shape, dtype=dtype, device="meta")
        # numpy asks for huge pages: a large image is mostly the time of getting memory
        return torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(dtype).reshape(shape)

    def _array(self, name: str, shape: list[int], start: int) -> np.ndarray:
        dtype = np.dtype(name)
        if dtype.kind not in _NUMPY_KINDS:
            raise ValueError(f"an array of dtype {name} cannot travel")
        found = np.frombuffer(self._raw(shape, dtype.itemsize, start), dtype).reshape(shape)
        return found if self._is_light else found.copy()

    def _raw(self, shape: list[int], item_size: int, start: int) -> memoryview:
        if any(size < 0 for size in shape) or start < 0:
            raise ValueError(f"packed media are malformed: shape {shape} at {start}")
        size = math.prod(shape) * item_size
        if start + size > len(self._data):
            raise ValueError(f"packed media are cut off: shape {shape} needs {size} bytes")
        return self._data[start : start + size]
