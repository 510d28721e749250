"""Faults of the device and of processes: the requests they hit fail with a reason, others go on, and nothing hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from faulty_models.qwen3_faults import HANG, LATE, LOST, NAN, OUT_OF_MEMORY
from models.tiny import write_checkpoint
from server import running, start

HERE = Path(__file__).parent
ENV = {
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "faulty_models",
    "PYTHONPATH": f"{HERE.parents[1] / 'python'}{os.pathsep}{HERE}",
    "SGLANG_HEALTH_CHECK_TIMEOUT": "2",
}
FLAGS = ["--max-total-tokens", "4096", "--skip-server-warmup", "--log-level", "info"]
TEXT_MODEL = HERE.parents[1] / "python" / "sglang" / "demo_model"
FAULTY = ["--model-path", str(TEXT_MODEL), "--json-model-override-args"]
FAULTY += ['{"architectures": ["FaultyForCausalLM"]}']
GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
# Generous: how long a server that must end may take.
END = 60


def ask(server, first: int, **params):
    body = {"input_ids": [first, 5, 6, 7], "sampling_params": {**GREEDY, **params}}
    return server.post("/generate", body)


def ask_in_thread(server, answers: list, first: int, **params) -> threading.Thread:
    def work() -> None:
        try:
            answers.append(ask(server, first, **params))
        except OSError as error:
            answers.append((type(error).__name__, {}))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def message(answer: dict) -> str:
    return answer.get("message") or answer["error"]["message"]


def events(text: str) -> list[dict]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    log = tmp_path_factory.mktemp("faulty") / "log"
    with running([*FLAGS, *FAULTY, "--enable-nan-detection"], log, ENV) as server:
        yield server


def check_that_it_serves_on(server) -> None:
    """Nothing is held; the audit of an idle scheduler, which would end the server, found nothing wrong."""
    state = json.loads(server.get("/server_info")[1])["internal_states"][0]
    assert state["num_running_reqs"] == state["num_used_tokens"] == 0
    time.sleep(2.5)  # two idle turns bring the audit
    assert server.get("/health_generate")[0] == 200
    assert server.request("/flush_cache", {})[0] == 200


def test_out_of_memory_fails_the_requests_of_the_step_only(faulty):
    want = ask(faulty, 300, max_new_tokens=300)[1]["output_ids"]
    answers: list = []
    bystander = ask_in_thread(faulty, answers, 300, max_new_tokens=300)
    time.sleep(0.1)
    for _ in range(3):
        status, answer = ask(faulty, OUT_OF_MEMORY)
        assert status == 503
        assert "ran out of memory" in message(answer) and "2.00 GiB" in message(answer)
        for flag in ("--mem-fraction-static", "--chunked-prefill-size", "--max-running-requests"):
            assert flag in message(answer)
    bystander.join(END)
    assert answers[0][0] == 200 and answers[0][1]["output_ids"] == want
    check_that_it_serves_on(faulty)


def test_out_of_memory_in_streams(faulty):
    body = {"input_ids": [OUT_OF_MEMORY, 5], "sampling_params": GREEDY, "stream": True}
    status, text = faulty.request("/generate", body)
    reason = events(text)[-1]["meta_info"]["finish_reason"]
    assert status == 200 and reason["type"] == "abort" and reason["status_code"] == 503
    assert "--mem-fraction-static" in reason["message"]
    body = {"model": "x", "prompt": [OUT_OF_MEMORY, 5], "max_tokens": 4, "stream": True}
    status, text = faulty.request("/v1/completions", body)
    assert status == 503 and "--mem-fraction-static" in message(json.loads(text))
    check_that_it_serves_on(faulty)


def test_out_of_memory_in_the_middle_of_a_stream(faulty):
    """What had been generated was sent; then comes the error, as the status cannot change any more."""
    body = {"model": "x", "prompt": [5, LATE], "max_tokens": 40, "stream": True}
    status, text = faulty.request("/v1/completions", {**body, "ignore_eos": True})
    *items, last = events(text)
    assert status == 200 and len(items) > 2 and all(item["choices"] for item in items)
    assert last["error"]["code"] == 503 and "--max-running-requests" in last["error"]["message"]
    body = {"input_ids": [5, LATE], "sampling_params": {**GREEDY, "max_new_tokens": 40}}
    assert faulty.request("/generate", body)[0] == 503
    check_that_it_serves_on(faulty)


def test_nan_ends_its_request_only(faulty):
    want = {first: ask(faulty, first)[1]["output_ids"] for first in (310, 311)}
    answers: dict[int, list] = {310: [], NAN: [], 311: []}
    threads = [ask_in_thread(faulty, found, first) for first, found in answers.items()]
    for thread in threads:
        thread.join(END)
    status, answer = answers[NAN][0]
    assert status == 500 and "NaN logits for output token 1" in message(answer)
    for first, ids in want.items():
        assert answers[first][0][0] == 200 and answers[first][0][1]["output_ids"] == ids
    assert "NaN logits" in faulty.log.read_text()
    check_that_it_serves_on(faulty)


def test_nan_in_one_stream_of_a_batch(faulty):
    prompts = [[310, 5], [NAN, 5], [311, 5]]
    body = {"input_ids": prompts, "sampling_params": GREEDY, "stream": True}
    ends = {}
    for item in events(faulty.request("/generate", body)[1]):
        ends[item["index"]] = item["meta_info"]["finish_reason"]
    assert [ends[i]["type"] for i in range(3)] == ["length", "abort", "length"]


def test_lost_device_ends_the_server(tmp_path):
    with running([*FLAGS, *FAULTY], tmp_path / "log", ENV) as server:
        status, answer = ask(server, LOST)
        assert status == 500 and "illegal memory access" in message(answer)
        assert server.process.wait(END) == 1
    log = (tmp_path / "log").read_text()
    assert "The server ends" in log and "CUDA_LAUNCH_BLOCKING=1" in log


def test_step_that_hangs_ends_the_server(tmp_path):
    args = [*FLAGS, *FAULTY, "--watchdog-timeout", "3"]
    with running(args, tmp_path / "log", ENV) as server:
        status, answer = ask(server, HANG)
        assert status == 500 and "--watchdog-timeout" in message(answer)
        assert server.process.wait(END) == 1
    log = (tmp_path / "log").read_text()
    assert "made no progress for 3 s" in log
    assert "qwen3_faults.py" in log  # the stack of the step


def test_stopped_scheduler_is_unhealthy_and_ends_the_server(tmp_path):
    args = [*FLAGS, "--watchdog-timeout", "6"]
    with running(args, tmp_path / "log", ENV) as server:
        (scheduler,) = schedulers(server)
        os.kill(scheduler, signal.SIGSTOP)
        answers: list = []
        asker = ask_in_thread(server, answers, 300, max_new_tokens=1500)
        assert server.get("/health_generate")[0] == 503
        assert server.process.wait(END) == 1
        asker.join(END)
        assert answers and answers[0][0] != 200
        assert not Path(f"/proc/{scheduler}").exists()
    log = (tmp_path / "log").read_text()
    assert "made no progress for 6 s" in log and "scheduler.py" in log


def test_out_of_memory_at_load(tmp_path):
    log = ended(start([*FLAGS, *FAULTY], tmp_path / "log", {**ENV, "FAULTY_LOAD": "1"}))
    assert "out of memory while loading the weights (tried to allocate 2.00 GiB)" in log
    assert "are free now" in log and "The checkpoint's files hold" in log
    assert "Traceback" not in log


def test_device_cuda_without_one(tmp_path):
    log = ended(start(["--device", "cuda"], tmp_path / "log", {"CUDA_VISIBLE_DEVICES": ""}))
    assert "--device cuda: torch sees no usable GPU: " in log and "--device cpu" in log
    assert "Traceback" not in log


def test_device_auto_without_a_gpu_says_why(tmp_path):
    env = {"CUDA_VISIBLE_DEVICES": ""}
    with running([*FLAGS], tmp_path / "log", env) as server:
        assert "device=cpu (torch sees no usable GPU: " in server.log.read_text()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("kill", "SIGKILL"),
        (
            "out of memory",
            "--mem-fraction-static, --chunked-prefill-size or --max-running-requests",
        ),
    ],
)
def test_rank_that_dies_ends_the_server(tmp_path, fault, words):
    folder = write_checkpoint("qwen3-tied", tmp_path / "model", vocab_size=1024)
    args = ["--model-path", str(folder), "--skip-tokenizer-init", *FLAGS, *FAULTY]
    args += ["--device", "cpu", "--dtype", "float32", "--tp", "2"]
    with running(args, tmp_path / "log", ENV) as server:
        assert ask(server, 300)[0] == 200
        if fault == "kill":
            os.kill(max(schedulers(server)), signal.SIGKILL)
        else:
            with contextlib.suppress(OSError):
                assert ask(server, OUT_OF_MEMORY)[0] == 500
        assert server.process.wait(END) == 1
    assert words in (tmp_path / "log").read_text()


def schedulers(server) -> list[int]:
    return [
        pid
        for pid in server.children()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def ended(server) -> str:
    try:
        assert server.process.wait(END) not in (0, None)
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    return server.log.read_text()
