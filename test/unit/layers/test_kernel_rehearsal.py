"""Kernels of rehearsed steps: what is noted, what is compiled, and that launches find it. The last on Triton's compiler, where it is there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sglang.srt.model_executor import cuda_graph_runner
from sglang.srt.model_executor.idle_compiling import IdleCompiling
from sglang.srt.model_executor.kernel_rehearsal import KernelRehearsal

CPU = torch.device("cpu")
CASES = Path(__file__).with_name("rehearsal_cases.py")


class Compiled:
    """A compiled kernel. Asking for `run` loads it."""

    def __init__(self, kernel: Kernel, specialization: str) -> None:
        if specialization == "refused":
            raise RuntimeError("no such operation")
        self._kernel, self._specialization = kernel, specialization

    @property
    def run(self):
        if self._specialization == "too large":
            raise RuntimeError("out of shared memory")
        self._kernel.loaded.append((self._specialization, threading.current_thread().name))


class Kernel:
    """Triton's part: asks the hook before it compiles, and launches what is compiled unless it is to warm up."""

    def __init__(self, triton, module: str = "sglang.srt.kernels", name: str = "add") -> None:
        self._triton, self.module, self._name = triton, module, name
        self.compiled: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.launched: list[str] = []

    def launch(self, specialization: str) -> None:
        self._triton.JITFunction.run(self, specialization, grid=(1,), warmup=False)

    def run(self, specialization: str, *, grid: tuple[int, ...], warmup: bool) -> None:
        hook = self._triton.knobs.runtime.jit_cache_hook
        if specialization not in self.compiled:
            info = SimpleNamespace(module=self.module, name=self._name, jit_function=self)
            data = {"specialization_data": specialization}
            asked = {"key": "k", "repr": "r", "is_manual_warmup": False, "already_compiled": False}
            if hook is not None and hook(fn=info, compile=data, **asked):
                return
            self.compiled.append(specialization)
        if not warmup:
            self.launched.append(specialization)

    def preload(self, specialization: str) -> None:
        assert self._triton.knobs.runtime.jit_cache_hook is None, "nothing would be compiled"
        assert self._triton.pools, "one thread would do it all"
        self.compiled.append(specialization)
        self._triton.pools[-1].submit(lambda: Compiled(self, specialization))


@pytest.fixture
def triton(monkeypatch):
    module = ModuleType("triton")
    module.knobs = SimpleNamespace(runtime=SimpleNamespace(jit_cache_hook=None))
    module.JITFunction = type("JITFunction", (), {"run": Kernel.run})
    module.pools = []

    class AsyncCompileMode:
        def __init__(self, pool, *, ignore_errors):
            assert ignore_errors
            self._pool, self._futures = pool, []

        def submit(self, compile):
            self._futures.append(self._pool.submit(compile))

        def __enter__(self):
            module.pools.append(self)

        def __exit__(self, *error):
            module.pools.remove(self)
            for future in self._futures:
                with contextlib.suppress(RuntimeError):
                    future.result()

    module.AsyncCompileMode = AsyncCompileMode
    monkeypatch.setitem(sys.modules, "triton", module)
    return module


def test_each_specialisation_is_compiled_once_and_none_is_launched(triton):
    kernel, rehearsal = Kernel(triton), KernelRehearsal()
    kernel.launch("there before")
    with rehearsal.pretend():
        for specialization in ("a", "b", "a", "there before"):
            kernel.launch(specialization)
    assert len(rehearsal) == 2
    assert kernel.launched == ["there before"]
    assert rehearsal.compile(CPU) >= 0.0
    assert sorted(name for name, _ in kernel.loaded) == ["a", "b"]
    assert all(thread.startswith("compile") for _, thread in kernel.loaded)
    assert kernel.compiled == ["there before", "a", "b"] and len(rehearsal) == 0
    kernel.launch("b")
    assert kernel.launched[-1] == "b" and len(kernel.compiled) == 3


def test_kernels_of_other_packages_run_as_ever(triton):
    kernel, rehearsal = Kernel(triton, module="plugin.kernels"), KernelRehearsal()
    with rehearsal.pretend():
        kernel.launch("a")
    assert kernel.launched == kernel.compiled == ["a"] and len(rehearsal) == 0
    rehearsal.compile(CPU)
    assert kernel.compiled == ["a"]


def test_what_cannot_be_compiled_or_loaded_is_left_to_its_launch(triton):
    kernel, rehearsal = Kernel(triton), KernelRehearsal()
    with rehearsal.pretend():
        for specialization in ("refused", "too large", "a"):
            kernel.launch(specialization)
    rehearsal.compile(CPU)
    assert [name for name, _ in kernel.loaded] == ["a"]


def test_threads_load_on_the_device_of_the_rank(triton, monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    kernel, rehearsal = Kernel(triton), KernelRehearsal()
    with rehearsal.pretend():
        kernel.launch("a")
    rehearsal.compile(torch.device("cuda", 3))
    assert used == [torch.device("cuda", 3)]


def test_triton_is_as_it_was_after_an_error(triton):
    triton.knobs.runtime.jit_cache_hook = before = lambda **_: False
    run = triton.JITFunction.run
    with pytest.raises(RuntimeError, match="cannot be captured"), KernelRehearsal().pretend():
        assert triton.knobs.runtime.jit_cache_hook is not before
        raise RuntimeError("cannot be captured")
    assert triton.knobs.runtime.jit_cache_hook is before and triton.JITFunction.run is run


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_launches_find_what_triton_compiled():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, str(CASES)], env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.split() == ("noted 2 loaded 2 missing 0 launched 0 launched 1".split())


@pytest.mark.parametrize("error", [AssertionError("no prefills"), KeyError("lens"), None])
def test_a_prefill_that_a_model_cannot_do_is_left_to_its_capture(monkeypatch, error):
    """Captures of prefills may fail without harm, so their rehearsal must not end the start."""
    ran: list[str] = []

    class Rehearsal(list):
        pretend = staticmethod(contextlib.nullcontext)

        def compile(self, device):
            ran.append("compile")
            return 0.0

    def forward(batch: str) -> None:
        ran.append(batch)
        if batch == "prefill" and error is not None:
            raise error

    monkeypatch.setattr(cuda_graph_runner, "KernelRehearsal", Rehearsal)
    runner = cuda_graph_runner.CudaGraphRunner.__new__(cuda_graph_runner.CudaGraphRunner)
    vars(runner).update(
        _sizes=[1, 2],
        _launch_more=None,
        _lay_out=lambda size, backend: "decode",
        _static_batch=lambda size, backend: "decode",
        _fill=lambda batch, size: None,
        _forward=forward,
        _platform=SimpleNamespace(device=CPU),
    )
    prefill = SimpleNamespace(backend=None, lay_out=lambda count: "prefill")
    runner._compile_ahead(prefill)
    assert ran == ["prefill"] * (1 if error else 2) + ["decode"] * 2 + ["compile"]


def test_of_the_captured_sizes_the_largest_up_to_each_power_of_two_are_rehearsed():
    assert cuda_graph_runner._sizes_that_differ([1, 2, 4, 8, 12, 16, 24, 40, 48, 144]) == [
        1, 2, 4, 8, 16, 24, 48, 144,
    ]  # fmt: skip


def test_each_form_of_a_launch_is_asked_for_once(triton):
    """Triton, which has nothing compiled to remember, would look into the launches of every layer."""
    kernel, rehearsal, asked = Kernel(triton), KernelRehearsal(), []
    run = triton.JITFunction.run
    triton.JITFunction.run = lambda *args, **kwargs: (
        asked.append(args[1:]) or run(*args[:2], **kwargs)
    )
    odd = torch.zeros(32, dtype=torch.uint8)[1:]
    values = (odd.new_zeros(8), odd, 1, 1.0, True, 2)
    with rehearsal.pretend():
        for value in (*values, *values, odd.new_zeros(99)):
            triton.JITFunction.run(kernel, "a", value, grid=(len(asked),), warmup=False)
    assert len(asked) == len(values)
    with rehearsal.pretend():
        triton.JITFunction.run(kernel, "a", 1, grid=(1,), warmup=False)
    assert len(asked) == len(values) + 1


def test_some_may_be_compiled_at_a_time_in_the_order_of_their_launches(triton):
    kernel, rehearsal = Kernel(triton), KernelRehearsal()
    with rehearsal.pretend():
        for specialization in "abc":
            kernel.launch(specialization)
    rehearsal.compile(CPU, 2)
    assert kernel.compiled == ["a", "b"] and len(rehearsal) == 1
    rehearsal.compile(CPU, 2)
    assert kernel.compiled == ["a", "b", "c"] and len(rehearsal) == 0


def test_idle_moments_compile_what_is_left(triton, caplog):
    kernel = Kernel(triton)
    idle = IdleCompiling(lambda: [kernel.launch(name) for name in "abcdef"], CPU)
    assert [idle.compile_next() for _ in range(3)] == [True, True, False]
    assert kernel.compiled == list("abcdef") and kernel.launched == []

    def refuse() -> None:
        kernel.launch("g")
        raise RuntimeError("no room")

    assert not IdleCompiling(refuse, CPU).compile_next()
    assert "not compiled beforehand: no room" in caplog.text
