"""Host values on the device: from pinned memory without a wait, and as they are where the host is the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sglang.srt.utils.upload import pinned, upload, upload_into

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
