"""Servers that cannot start or lose their scheduler end with a reason and a code; they never hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from server import running, start

import sglang

DEMO = Path(sglang.__file__).parent / "demo_model"


def end_of(args, tmp_path, **kwargs):
    server = start(args, tmp_path / "log", **kwargs)
    try:
        code = server.process.wait(timeout=60)
    finally:
        if server.process.poll() is None:
            server.process.kill()
    return code, (tmp_path / "log").read_text()


def broken_model(tmp_path: Path, **config) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    return folder


def test_absent_folder(tmp_path):
    code, log = end_of(["--model-path", str(tmp_path / "nothing")], tmp_path)
    assert code != 0 and "nothing" in log and "Traceback" not in log


def test_unknown_architecture(tmp_path):
    folder = broken_model(tmp_path, architectures=["NobodyForCausalLM"], model_type="nobody")
    code, log = end_of(["--model-path", str(folder)], tmp_path)
    assert code != 0 and "NobodyForCausalLM" in log


def test_unknown_rope_type(tmp_path):
    rope = {"rope_type": "spiral", "rope_theta": 10000.0}
    folder = broken_model(tmp_path, rope_parameters=rope, rope_scaling=rope)
    code, log = end_of(["--model-path", str(folder)], tmp_path)
    assert code != 0 and "spiral" in log


def test_truncated_weights(tmp_path):
    folder = broken_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, log = end_of(["--model-path", str(folder)], tmp_path)
    assert code != 0 and "model.safetensors" in log


def _drop(weights):
    del weights["model.layers.0.mlp.up_proj.weight"]


def _add(weights):
    weights["model.layers.0.mlp.extra.weight"] = torch.zeros(3)


def _cut(weights):
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name][:-1].contiguous()


@pytest.mark.parametrize(
    ("change", "word"), [(_drop, "up_proj"), (_add, "mlp.extra"), (_cut, "up_proj")]
)
def test_weights_that_do_not_fit_the_model(tmp_path, change, word):
    folder = broken_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    code, log = end_of(["--model-path", str(folder)], tmp_path)
    assert code != 0 and word in log and "Traceback" not in log


def test_empty_folder_is_no_model(tmp_path):
    (tmp_path / "model").mkdir()
    code, log = end_of(["--model-path", str(tmp_path / "model")], tmp_path)
    assert code != 0 and "has no config.json" in log and "Traceback" not in log


def test_settings_that_the_model_does_not_implement(tmp_path):
    folder = broken_model(tmp_path, hidden_act="relu2")
    code, log = end_of(["--model-path", str(folder)], tmp_path)
    assert code != 0 and "hidden_act='relu2'" in log and "Traceback" not in log


def test_more_memory_than_there_is(tmp_path):
    code, log = end_of(["--max-total-tokens", "100000000000"], tmp_path)
    assert code != 0 and "GiB are free" in log


def test_pool_too_small(tmp_path):
    code, log = end_of(["--max-total-tokens", "8"], tmp_path)
    assert code != 0 and "max_total_tokens" in log


def test_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, log = end_of([], tmp_path, port=taken.getsockname()[1])
    assert code != 0 and str(taken and "port") in log.lower()


def test_refused_flag(tmp_path):
    code, log = end_of(["--quantization", "awq"], tmp_path)
    assert code == 2 and "quantization" in log


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSEGV])
def test_scheduler_that_dies_takes_the_server_down(tmp_path, sig):
    with running(["--max-total-tokens", "4096"], tmp_path / "log") as server:
        answers = []
        body = {
            "text": "x",
            "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True},
        }
        asker = threading.Thread(target=lambda: answers.append(_try(server, body)))
        asker.start()
        time.sleep(0.3)
        children = server.children()
        assert children
        for child in children:
            os.kill(child, sig)
        assert server.process.wait(timeout=30) != 0
        asker.join(timeout=30)
        assert answers and answers[0] != 200
        assert "scheduler" in server.log.read_text().lower()


def _try(server, body):
    try:
        return server.request("/generate", body)[0]
    except OSError as error:
        return type(error).__name__


def test_sigterm_ends_cleanly_and_leaves_nobody(tmp_path):
    with running(["--max-total-tokens", "4096"], tmp_path / "log") as server:
        children = server.children()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(Path(f"/proc/{c}").exists() for c in children):
            time.sleep(0.05)
        assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_server_that_is_killed_takes_its_scheduler_along(tmp_path):
    with running(["--max-total-tokens", "4096"], tmp_path / "log") as server:
        children = server.children()
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(_is_alive(child) for child in children):
            time.sleep(0.05)
        assert not any(_is_alive(child) for child in children)


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_api_key_guards_everything_but_health(tmp_path):
    args = ["--api-key", "secret", "--max-total-tokens", "4096"]
    with running(args, tmp_path / "log") as server:
        body = {"text": "x", "sampling_params": {"max_new_tokens": 1}}
        assert server.request("/generate", body)[0] == 401
        assert server.get("/v1/models")[0] == 401
        key = {"Authorization": "Bearer secret"}
        assert server.request("/generate", body, headers=key)[0] == 200
        assert "secret" not in server.get("/server_info", headers=key)[1]
