"""What a start tells about itself, and what it begins in threads."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from sglang.srt.managers import prefetch
from sglang.srt.utils import start_clock
from sglang.srt.utils.start_clock import StartClock


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    moments = [100.0]
    monkeypatch.setattr(start_clock.time, "monotonic", lambda: moments[0])
    monkeypatch.setattr(start_clock, "_process_began", None)
    return moments


def test_laps_add_up_by_phase(now):
    clock = StartClock()
    for moment, phase in ((101.0, "imports"), (103.5, "weights"), (104.0, "imports")):
        now[0] = moment
        clock.lap(phase)
    assert clock.seconds == {"imports": 1.5, "weights": 2.5}
    assert str(clock) == "4.0 s (imports 1.5 s, weights 2.5 s)"


def test_the_clock_of_a_process_begins_when_its_parent_started_it(now):
    start_clock.note_process_start(98.0)
    clock, other = StartClock(), StartClock.from_now()
    now[0] = 101.0
    clock.lap("process")
    other.lap("process")
    assert clock.seconds == {"process": 3.0} and other.seconds == {"process": 1.0}


def test_a_part_with_a_clock_of_its_own_loses_no_time(now):
    clock = StartClock()
    now[0] = 102.0
    clock.lap("imports")
    now[0] = 103.0  # between the two clocks
    inner = StartClock.from_now()
    now[0] = 105.0
    inner.lap("device")
    now[0] = 109.0
    inner.lap("weights")
    clock.take_over(inner)
    now[0] = 110.0
    clock.lap("rest")
    assert clock.seconds == {"imports": 2.0, "device": 3.0, "weights": 4.0, "rest": 1.0}


class Driver:
    """Notes what it is asked; fails at the call of that name."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple] = []
        self._fails = fails

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, threading.current_thread().name, args))
            if name == "cuDeviceGet":
                args[0]._obj.value = 40 + args[1]
            return 100 if name == self._fails else 0

        return call


@pytest.mark.parametrize("fails", ["", "cuInit", "cuDeviceGet"])
def test_the_context_is_that_of_the_rank(fails):
    driver = Driver(fails)
    assert prefetch.make_context(driver, 3) is (fails == "")
    names = [name for name, _, _ in driver.calls]
    expected = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert names == (expected[: expected.index(fails) + 1] if fails else expected)
    if not fails:
        assert driver.calls[-1][2][1].value == 43


@pytest.fixture(autouse=True)
def collection():
    """Garbage of the other tests is collected as before."""
    yield
    gc.unfreeze()
    gc.enable()


def test_garbage_waits_for_the_imports_and_what_they_leave_is_never_looked_at():
    threads = prefetch.begin_prefetch("cpu", 0)
    assert not gc.isenabled()
    kept = [["an import's"]]
    prefetch.wait_for_imports(threads)
    assert gc.isenabled()
    made_later = [["a request's"]]
    looked_at = {id(item) for item in gc.get_objects()}
    assert id(kept) not in looked_at and id(made_later) in looked_at


def test_nothing_is_begun_without_a_gpu(monkeypatch):
    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert prefetch.begin_prefetch("auto", 0) == prefetch.begin_prefetch("cuda", 0) == []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the CPU needs no driver"))
    assert prefetch.begin_prefetch("cpu", 0) == []


def test_work_is_done_beside_the_main_thread_and_may_fail(monkeypatch):
    driver, imported, done = Driver(), [], []

    def load(name):
        imported.append((name, threading.current_thread()))
        return SimpleNamespace(
            triton_key=lambda: done.append("key"), CudaUtils=lambda: done.append("utils")
        )

    def fail():
        imported.append(("transformers", threading.current_thread()))
        raise ImportError("broken install")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(prefetch, "importlib", SimpleNamespace(import_module=load))
    monkeypatch.setattr(prefetch, "import_model_names", fail)
    threads = prefetch.begin_prefetch("auto", 1)
    for thread in threads:
        thread.join(10)
    parts = {"triton.runtime.cache", "triton.backends.nvidia.driver"}
    assert {name for name, _ in imported} == {"transformers", *parts}
    assert done == ["key", "utils"]
    assert threading.main_thread() not in {thread for _, thread in imported}
    assert [name for name, _, _ in driver.calls][-1] == "cuDevicePrimaryCtxRetain"


def test_what_is_imported_in_threads_does_not_import_torch():
    """Else the main thread, which imports torch meanwhile, could meet a module that is half made."""
    code = (
        "import sys, json, importlib.util\n"
        "from sglang.srt.managers.prefetch import import_model_names\n"
        "ours = {name for name in sys.modules if name.split('.')[0] == 'sglang'}\n"
        "import_model_names()\n"
        "if importlib.util.find_spec('triton'): import triton.runtime.cache, triton.backends.nvidia.driver\n"
        "names = [name for name in sys.modules if name.split('.')[0] in ('torch', 'sglang')]\n"
        "print(json.dumps(sorted(set(names) - ours)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.splitlines()[-1]) == []


def test_who_uses_an_import_waits_for_it(monkeypatch):
    """transformers replaces itself when its import ends: whoever imports it meanwhile gets the module without its names."""
    begun, may_end = threading.Event(), threading.Event()

    def load(name):
        return SimpleNamespace(triton_key=int, CudaUtils=may_end.wait)

    def import_slowly():
        begun.set()
        assert may_end.wait(10)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setattr(prefetch, "importlib", SimpleNamespace(import_module=load))
    monkeypatch.setattr(prefetch, "import_model_names", import_slowly)
    threads = prefetch.begin_prefetch("cuda", 0)
    assert begun.wait(10)
    threading.Timer(0.05, may_end.set).start()
    prefetch.wait_for_imports(threads)
    assert may_end.is_set()
    assert [
        thread.name for thread in threads if "transformers" in thread.name and thread.is_alive()
    ] == []
    for thread in threads:
        thread.join(10)
