"""What is taken for running out of memory, what for a lost device, and what is said about it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.arg_groups import resolve as resolve_module
from sglang.srt.arg_groups.resolve import collect_facts, resolve
from sglang.srt.managers.step_plan import StepError, StepPlan
from sglang.srt.model_executor import memory_guard
from sglang.srt.model_executor.memory_guard import FOR_CAPTURE, MemoryGuard
from sglang.srt.model_executor.parallel_worker import LeaderWorker
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.platforms import create_platform, cuda
from sglang.srt.platforms.device_errors import (
    describe_failure,
    is_device_lost,
    is_out_of_memory,
    tried_to_allocate,
)
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils import cuda_probe
from sglang.srt.utils.errors import ConfigError

GIB = 2**30


def hidden_by(outer: Exception, inner: Exception) -> Exception:
    """`outer`, raised while `inner` was handled."""
    try:
        try:
            raise inner
        except Exception:
            raise outer  # noqa: B904  (the context is the point)
    except Exception as error:
        return error


def cpu_allocation_failure() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    return caught.value


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has")
LOST = RuntimeError("CUDA error: device-side assert triggered\nCompile with")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OUT, "tried to allocate 20.50 MiB"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel"), "an allocation failed"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "an allocation failed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "an allocation"),
        (MemoryError(), "an allocation failed"),
        (hidden_by(RuntimeError("operation failed during capture"), OUT), "20.50 MiB"),
        (cpu_allocation_failure(), "tried to allocate 33554432.00 GiB"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_out_of_memory(error, words):
    assert is_out_of_memory(error) and not is_device_lost(error)
    assert words in tried_to_allocate(error)


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        hidden_by(LOST, OUT),  # cleaning up after the one met the other
    ],
)
def test_lost_device(error):
    assert is_device_lost(error) and not is_out_of_memory(error)
    assert "CUDA_LAUNCH_BLOCKING=1" in describe_failure(error)
    assert "\n" not in describe_failure(error)


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("shape mismatch"), KeyError("x")]
)
def test_other_errors_are_neither(error):
    assert not is_out_of_memory(error) and not is_device_lost(error)


class FakePlatform:
    """A GPU of 80 GiB, 10 of them free at first."""

    is_cuda, is_cpu, index, name = True, False, 3, "cuda"

    def __init__(self) -> None:
        self.free = 10 * GIB
        self.released = 0

    def total_memory(self) -> int:
        return 80 * GIB

    def free_memory(self) -> int:
        return self.free

    def release_memory(self) -> None:
        self.released += 1


def test_phase_says_who_holds_what_and_which_flags_help():
    platform = FakePlatform()
    guard = MemoryGuard(platform)
    with pytest.raises(ConfigError) as caught, guard.phase("capturing graphs", FOR_CAPTURE):
        platform.free = GIB
        raise OUT
    text = str(caught.value)
    assert text.startswith("out of memory while capturing graphs (tried to allocate 20.50 MiB).")
    assert "GPU 3 has 80.00 GiB, of which 1.00 GiB are free now" in text
    assert "70.00 GiB were in use before the server allocated anything" in text
    assert "--disable-cuda-graph" in text and "--mem-fraction-static" in text


def test_phase_passes_other_errors_on():
    with pytest.raises(KeyError), MemoryGuard(FakePlatform()).phase("x", "y"):
        raise KeyError("x")


def test_full_gpu_at_load_names_the_size_of_the_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    model = SimpleNamespace(model_path=str(tmp_path), revision=None)
    load = SimpleNamespace(load_format="auto", download_dir=None)
    guard = MemoryGuard(FakePlatform())
    with pytest.raises(ConfigError) as caught:
        with guard.phase("loading", lambda: guard.weights_advice(model, load, 2)):
            raise OUT
    text = str(caught.value)
    assert "files hold 0.00 GiB, spread over 2 ranks" in text
    assert "--base-gpu-id" in text and "--tp" in text
    assert "files hold 0.00 GiB. Free the GPU" in guard.weights_advice(model, load, 1)
    load.load_format = "dummy"
    assert "files" not in guard.weights_advice(model, load, 1)


def test_pool_that_other_programs_left_no_room_for():
    error = MemoryGuard(FakePlatform()).pool_too_small(-500, 64, 2048, 7 * GIB, 0.9)
    text = str(error)
    assert "would hold 0 tokens" in text and "64 tokens of 2.0 KiB beside 7.00 GiB of wei" in text
    assert "70.00 GiB were in use" in text and "10.00 GiB are free now" in text
    assert "--mem-fraction-static 0.9 keeps 8.00 GiB back" in text and "--base-gpu-id" in text


def test_cpu_is_not_told_about_gpus():
    guard = memory_guard.MemoryGuard(create_platform("cpu"))
    text = str(guard.pool_too_small(0, 64, 2048, GIB, 0.5))
    assert "The host has" in text and "GPU" not in text
    assert "raise --mem-fraction-static (now 0.5)" in text
    load = SimpleNamespace(load_format="dummy")
    advice = guard.weights_advice(SimpleNamespace(), load, 1)
    assert advice == "Free memory, or take a smaller or quantised checkpoint."


# --- devices


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease"),
    ],
)
def test_device_cuda_is_refused_with_the_words_of_torch(monkeypatch, error):
    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    words = str(error).partition("\n")[0].rstrip(".")
    assert cuda_probe.why_no_cuda() == words
    with pytest.raises(ConfigError, match="--device cuda: torch sees no usable GPU") as caught:
        collect_facts(ServerArgs(device="cuda"))
    assert words in str(caught.value)
    args = ServerArgs(device="auto")
    decisions = resolve(args, collect_facts(args)).decisions
    assert f"device=cpu (torch sees no usable GPU: {words})" in decisions


def test_gpu_that_cannot_be_used_at_all(monkeypatch):
    def mem_get_info(index: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors")

    monkeypatch.setattr(cuda.torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(cuda.torch.cuda, "mem_get_info", mem_get_info)
    with pytest.raises(ConfigError, match="GPU 2 cannot be used: .*out of memory.*--base-gpu-id"):
        cuda.CudaPlatform(2).activate()


def test_reason_of_the_device_defaults_to_auto():
    facts = resolve_module.Facts("cpu", None, 2, 1)
    assert "device=cpu (auto)" in resolve(ServerArgs(device="auto"), facts).decisions


# --- steps


def worker_that_raises(error: Exception) -> tuple[TpWorker, FakePlatform]:
    worker, platform = TpWorker.__new__(TpWorker), FakePlatform()

    def build(plan: StepPlan) -> None:
        raise error

    worker._runner = SimpleNamespace(platform=platform)
    worker._builder = SimpleNamespace(build=build)
    return worker, platform


PLAN = StepPlan(step_id=1, mode="decode", works=[])


def test_worker_out_of_memory_releases_it_and_fails_the_step():
    worker, platform = worker_that_raises(OUT)
    with pytest.raises(StepError, match="20.50 MiB.*--max-running-requests") as caught:
        worker.launch(PLAN)
    assert platform.released == 1
    # The traceback of the cause holds the tensors of the step.
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("error", [LOST, ValueError("a bug")])
def test_other_errors_of_a_step_are_not_survived(error):
    worker, platform = worker_that_raises(error)
    with pytest.raises(type(error)):
        worker.launch(PLAN)
    assert platform.released == 0


def test_rank_of_several_does_not_survive_out_of_memory():
    worker, _ = worker_that_raises(OUT)
    channel = SimpleNamespace(send=lambda frame: None)
    with pytest.raises(RuntimeError, match="Rank 0 of several cannot go on.*20.50 MiB"):
        LeaderWorker(worker, channel).launch(PLAN)
