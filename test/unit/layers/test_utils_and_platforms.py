"""Shared helpers and the platform object."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from sglang.srt import utils
from sglang.srt.layers.utils import (
    MultiPlatformOp,
    PPMissingLayer,
    get_layer_id,
    pad_or_narrow_weight,
)
from sglang.srt.platforms import CpuPlatform, create_platform
from sglang.srt.utils.custom_op import register_custom_op


def test_utils_do_not_import_torch():
    code = "import sys, sglang.srt.utils; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_add_prefix():
    assert utils.add_prefix("a", "m") == "m.a"
    assert utils.add_prefix(3, "m.layers") == "m.layers.3"
    assert utils.add_prefix("a", "") == "a"


def test_make_layers():
    def build(idx, prefix):
        layer = torch.nn.Linear(1, 1)
        layer.name = (idx, prefix)
        return layer

    layers = utils.make_layers(3, build, prefix="m.layers", offloader_kwargs={})
    assert [layer.name for layer in layers] == [(i, f"m.layers.{i}") for i in range(3)]
    layers, start, end = utils.make_layers(5, build, pp_rank=1, pp_size=2, return_tuple=True)
    assert (start, end) == (2, 5)
    assert [isinstance(layer, PPMissingLayer) for layer in layers] == [True] * 2 + [False] * 3
    x = torch.ones(1)
    assert layers[0](x, 5) == (x,) and PPMissingLayer()(hidden=x) is x


def test_layer_ids_and_padding():
    assert get_layer_id("model.layers.12.mlp.weight") == 12
    assert get_layer_id("lm_head.weight") is None
    weight = torch.arange(6.0).view(2, 3)
    assert pad_or_narrow_weight(weight, 1, 2, 2).tolist() == [[2, 0], [5, 0]]
    assert pad_or_narrow_weight(weight, 1, 4, 2).tolist() == [[0, 0], [0, 0]]


def test_multi_platform_op_dispatches_on_the_device(monkeypatch):
    class Op(MultiPlatformOp):
        def forward_native(self, x):
            return "native", x

        def forward_cuda(self, x):
            return "cuda", x

    assert Op()(1) == ("native", 1)
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    assert Op()(x=2) == ("cuda", 2)


def test_lazy_value_is_computed_once():
    calls = []
    lazy = utils.LazyValue(lambda: calls.append(1) or len(calls))
    assert not calls and lazy.value == lazy.value == 1


def test_bump_allocator():
    allocator = utils.BumpAllocator(4, torch.float32, "cpu")
    first, second = allocator.allocate(3), allocator.allocate(1)
    first.fill_(1)
    assert second.tolist() == [0.0]
    with pytest.raises(ValueError, match="1 elements: 4 of 4"):
        allocator.allocate(1)


def test_weight_attributes_are_set_once():
    weight = torch.nn.Parameter(torch.zeros(1))
    utils.set_weight_attrs(weight, {"output_dim": 0})
    utils.set_weight_attrs(weight, None)
    assert weight.output_dim == 0
    with pytest.raises(AssertionError, match="output_dim"):
        utils.set_weight_attrs(weight, {"output_dim": 1})


def test_bind_or_assign():
    target, source = torch.zeros(2), torch.ones(2)
    assert utils.bind_or_assign(None, source) is source
    assert utils.bind_or_assign(target, source) is target and target.tolist() == [1, 1]


def test_small_functions():
    assert utils.flatten_nested_list([1, [2, [3], []], 4]) == [1, 2, 3, 4]
    assert [utils.next_power_of_2(n) for n in (0, 1, 2, 3, 8, 9)] == [1, 1, 2, 4, 8, 16]
    assert utils.ceil_align(5, 4) == 8 and utils.ceil_div(8, 4) == 2
    values = torch.tensor([[1.0, 3.0, 2.0]])
    for k in (1, 2):
        top, index = utils.fast_topk(values, k, dim=-1)
        assert torch.equal(top, values.topk(k).values) and index[0, 0] == 1


def test_environment(monkeypatch):
    monkeypatch.setenv("A_FLAG", "Yes")
    monkeypatch.setenv("A_NUMBER", "12")
    assert utils.get_bool_env_var("A_FLAG") and not utils.get_bool_env_var("NO_FLAG")
    assert utils.get_int_env_var("A_NUMBER") == 12 and utils.get_int_env_var("NONE", 3) == 3
    monkeypatch.setenv("A_FLAG", "perhaps")
    with pytest.raises(ValueError, match="A_FLAG='perhaps' is invalid; allowed: true"):
        utils.get_bool_env_var("A_FLAG")
    with pytest.raises(ValueError, match="A_FLAG='perhaps'"):
        utils.get_int_env_var("A_FLAG")


def test_warnings_are_printed_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            utils.print_warning_once("a warning of this test")
    assert caplog.messages == ["a warning of this test"]


def test_kill_process_tree_ends_grandchildren():
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        assert utils.list_descendants(parent.pid) == [grandchild]
        assert parent.pid in utils.list_descendants(os.getpid())
        utils.kill_process_tree(parent.pid)
        assert parent.wait(30) == -9
        assert parent.stdout.read() == ""  # the pipe is closed once both are gone
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait()


def test_custom_op_is_the_function():
    @register_custom_op
    def bare(x):
        return x + 1

    @register_custom_op(op_name="other", mutates_args=["x"])
    def called(x):
        return x + 2

    assert bare(1) == 2 and called(1) == 3


def test_cpu_platform():
    platform = create_platform("cpu")
    assert isinstance(platform, CpuPlatform) and platform.is_cpu and not platform.is_cuda
    assert platform.device == torch.device("cpu")
    assert 0 < platform.free_memory() <= platform.total_memory()
    platform.activate()
    with platform.use_stream(platform.create_stream()):
        event = platform.create_event()
        event.record()
    event.synchronize()
    platform.synchronize()
    assert event.query()


def test_platform_choice(monkeypatch):
    with pytest.raises(ValueError, match="'abacus' is not supported; allowed: auto, cpu, cuda"):
        create_platform("abacus")
    monkeypatch.setattr("sglang.srt.platforms.is_cuda", lambda: False)
    assert create_platform().name == "cpu"
    with pytest.raises(ValueError, match="no usable GPU"):
        create_platform("cuda")
