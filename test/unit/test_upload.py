"""Host values on the device: from pinned memory without a wait, and as they are where the host is the device."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from sglang.srt.utils import upload as upload_module
from sglang.srt.utils.upload import pinned, upload, upload_in_pieces, upload_into

CPU, META = torch.device("cpu"), torch.device("meta")
VALUES = {
    "list": [3, 1, 2],
    "array of another type": np.array([3, 1, 2], np.int64),
    "array": np.array([3, 1, 2], np.int32),
    "tensor of another type": torch.tensor([3, 1, 2]),
    "tensor": torch.tensor([3, 1, 2], dtype=torch.int32),
}
each_kind = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


class Copies(torch.overrides.TorchFunctionMode):
    """What is copied to a device, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[torch.Tensor] = []
        self.options: list[dict] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.to, torch.Tensor.copy_):
            self.sources.append(args[0] if func is torch.Tensor.to else args[1])
            self.options.append(kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.fixture
def pins(monkeypatch):
    """The tensors in pinned memory, of which a machine without a GPU has none."""
    made: list[torch.Tensor] = []

    def pin(tensor):
        made.append(tensor.clone())
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return made


@each_kind
def test_copies_to_a_device_are_queued(pins, values):
    target = torch.zeros(3, dtype=torch.int32, device=META)
    with Copies() as copies:
        sent = upload(values, torch.int32, META)
        upload_into(target, values)
    assert sent.device == META and sent.shape == (3,) and sent.dtype == torch.int32
    assert copies.options == [{"non_blocking": True}] * 2
    assert [id(source) for source in copies.sources] == [id(pin) for pin in pins]
    assert all(pin.dtype == torch.int32 and pin.tolist() == [3, 1, 2] for pin in pins)


@each_kind
def test_the_host_pins_nothing(pins, values):
    target = torch.zeros(3, dtype=torch.int32)
    upload_into(target, values)
    for tensor in (target, upload(values, torch.int32, CPU), pinned(values, torch.int32, CPU)):
        assert tensor.dtype == torch.int32 and tensor.tolist() == [3, 1, 2]
    assert not pins


def test_the_host_copies_nothing_without_need():
    array, tensor = VALUES["array"], VALUES["tensor"]
    assert upload(tensor, torch.int32, CPU) is tensor
    assert upload(array, torch.int32, CPU).data_ptr() == array.ctypes.data


def test_a_host_tensor_for_a_device_is_pinned(pins):
    tensor = pinned(VALUES["array"], torch.int32, META)
    assert [id(tensor)] == [id(pin) for pin in pins] and tensor.device == CPU


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(upload_module, "PIECE_BYTES", 16)
    monkeypatch.setattr(upload_module, "MAX_BYTES_UNDERWAY", 40)


@pytest.mark.parametrize("shape", [(3, 1), (2, 5), (5, 2), (0, 4)])
def test_large_tensors_go_up_in_pieces(pins, small_pieces, shape):
    tensor = torch.arange(float(np.prod(shape))).reshape(shape[::-1]).mT  # not contiguous
    with Copies() as copies:
        sent = upload_in_pieces(tensor, META)
    assert sent.device == META and sent.shape == shape and sent.dtype == torch.float32
    assert all(pin.nbytes <= 16 for pin in pins)
    assert [*map(float, torch.cat([torch.empty(0), *pins]))] == tensor.flatten().tolist()
    assert copies.options == [{"non_blocking": True}] * len(pins)
    assert [id(source) for source in copies.sources] == [id(pin) for pin in pins]


def test_a_large_tensor_that_is_there_stays(pins, small_pieces):
    tensor = torch.arange(100.0)
    assert upload_in_pieces(tensor, CPU) is tensor
    there = torch.zeros(100, device=META)
    assert upload_in_pieces(there, META) is there and not pins


class Copied:
    """A CUDA event behind a copy. `waited` grows when the host waits for it."""

    def __init__(self, is_done: bool, waited: list) -> None:
        self._is_done, self._waited = is_done, waited

    def query(self) -> bool:
        return self._is_done

    def synchronize(self) -> None:
        self._waited.append(self)


@pytest.mark.parametrize(
    ("done", "num_bytes", "waits"),
    [([], 16, 0), ([False, False], 8, 0), ([False, False], 16, 1), ([True, False], 16, 0)],
)
def test_memory_underway_is_bounded(small_pieces, monkeypatch, done, num_bytes, waits):
    waited: list[Copied] = []
    events = [Copied(is_done, waited) for is_done in done]
    monkeypatch.setattr(upload_module, "_underway", deque((event, 16) for event in events))
    upload_module._wait_for_room(num_bytes)
    assert waited == events[:waits]
    assert sum(size for _, size in upload_module._underway) + num_bytes <= 40
