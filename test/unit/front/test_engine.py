"""`Engine` over a scripted scheduler in a real spawned process: life cycle, loops, failures."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import scripted_scheduler
from scripted_scheduler import CRASH, HOLD

import sglang
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers.request_state import ServiceError
from sglang.srt.server_args import ServerArgs

HERE = str(Path(__file__).parent)
PACKAGE = str(Path(sglang.__file__).parent.parent)


class ScriptedEngine(Engine):
    run_scheduler_process_func = staticmethod(scripted_scheduler.run_scripted)


class FailingEngine(Engine):
    run_scheduler_process_func = staticmethod(scripted_scheduler.run_failing)


class DyingEngine(Engine):
    run_scheduler_process_func = staticmethod(scripted_scheduler.run_silent_death)


@pytest.fixture(scope="module")
def engine(model_folder):
    with ScriptedEngine(model_path=model_folder) as engine:
        yield engine


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


# --- calls


def test_generate_single_batch_and_ids(engine):
    assert engine.generate("w1 w2")["text"] == "w1 w2"
    assert [item["text"] for item in engine.generate(["w1", "w2"], {"temperature": 0})] == [
        "w1",
        "w2",
    ]
    assert engine.generate(None, None, [3, 4])["output_ids"] == [3, 4]


def test_sync_stream_is_an_iterator(engine):
    stream = engine.generate("w1 w2 w3", stream=True)
    assert not hasattr(stream, "__aiter__")
    assert [item["text"] for item in stream][-1] == "w1 w2 w3"


def test_async_calls_in_new_loops_between_sync_calls(engine):
    async def ask():
        items = await engine.async_generate(["w1", "w2"], {"temperature": 0.2, "top_k": 5})
        stream = await engine.async_generate("w3 w4", stream=True)
        return [item["text"] for item in items], [item["text"] async for item in stream][-1]

    for _ in range(2):
        assert asyncio.run(ask()) == (["w1", "w2"], "w3 w4")
        assert engine.generate("w5")["text"] == "w5"
    assert engine.flush_cache().success
    assert engine.start_profile(num_steps=2) == "2 steps" and engine.stop_profile() == "wrote it"


def test_sync_methods_are_refused_inside_a_loop(engine):
    async def ask():
        engine.generate("w1")

    with pytest.raises(RuntimeError, match="async_"):
        asyncio.run(ask())


def test_left_stream_is_aborted(engine):
    stream = engine.generate(input_ids=[HOLD], stream=True)
    next(stream)
    assert engine.tokenizer_manager.num_in_flight == 1
    stream.close()
    assert engine.tokenizer_manager.num_in_flight == 0


def test_refusals_are_value_errors(engine):
    with pytest.raises(ValueError, match="longer than the model's context length"):
        engine.generate(input_ids=[1] * 80)
    with pytest.raises(ValueError, match="--is-embedding"):
        engine.encode("w1")
    with pytest.raises(ValueError, match="lora_path"):
        engine.generate("w1", lora_path="adapter")
    with pytest.raises(ValueError, match="data_parallel_rank"):
        engine.generate("w1", data_parallel_rank=3)


def test_server_info_and_defaults(engine, model_folder):
    info = engine.get_server_info()
    assert info["model_path"] == model_folder and info["log_level"] == "error"
    assert info["max_total_num_tokens"] == engine.scheduler_info["max_total_num_tokens"] == 1000
    assert len(info["internal_states"]) == 1


# --- life and death


def test_engine_warns_of_variables_that_nobody_reads(model_folder, monkeypatch, caplog):
    monkeypatch.setenv("SGLANG_NO_SUCH_VARIABLE", "1")
    monkeypatch.setenv("SGLANG_USE_MODELSCOPE", "1")
    monkeypatch.setenv("SGLANG_LOG_MS", "0")
    with ScriptedEngine(model_path=model_folder), caplog.at_level("WARNING"):
        text = caplog.text
    assert "SGLANG_NO_SUCH_VARIABLE is set, but nothing reads it" in text
    assert "SGLANG_USE_MODELSCOPE is known but has no effect yet" in text
    assert "SGLANG_LOG_MS" not in text


def test_shutdown_twice_and_a_second_engine(model_folder):
    first = ScriptedEngine(server_args=ServerArgs(model_path=model_folder))
    (pid,) = first._front.scheduler_pids
    folder = first._front._ports.socket_dir
    assert first.server_args.log_level == "info"
    first.shutdown()
    first.shutdown()
    assert not is_running(pid) and not os.path.exists(folder)
    with pytest.raises(ServiceError, match="shut down"):
        first.generate("w1")
    with ScriptedEngine(model_path=model_folder) as second:
        assert second.generate("w1")["text"] == "w1"


def test_context_manager_lets_exceptions_pass_and_ends_the_process(model_folder):
    with pytest.raises(KeyError):
        with ScriptedEngine(model_path=model_folder) as engine:
            (pid,) = engine._front.scheduler_pids
            raise KeyError("mine")
    assert not is_running(pid)


def test_engine_made_inside_a_running_loop(model_folder):
    async def main():
        with ScriptedEngine(model_path=model_folder) as engine:
            return (await engine.async_generate("w1"))["text"]

    assert asyncio.run(main()) == "w1"


def test_start_failure_raises_with_the_reason(model_folder):
    with pytest.raises(RuntimeError, match="could not start: ConfigError: the model is too large"):
        FailingEngine(model_path=model_folder)


def test_death_before_ready_raises(model_folder):
    with pytest.raises(RuntimeError, match="ended with exit code 9"):
        DyingEngine(model_path=model_folder)


def test_death_of_the_scheduler_fails_waiting_and_later_calls(model_folder):
    with ScriptedEngine(model_path=model_folder) as engine:
        with pytest.raises(ServiceError, match="exit code 7") as caught:
            engine.generate(input_ids=[[HOLD], [CRASH]])
        assert caught.value.status_code == 500
        with pytest.raises(ServiceError, match="exit code 7"):
            engine.generate("w1")


def test_killed_scheduler_is_noticed_while_idle(model_folder):
    with ScriptedEngine(model_path=model_folder) as engine:
        os.kill(engine._front.scheduler_pids[0], signal.SIGKILL)
        for _ in range(500):
            if not engine.tokenizer_manager.is_alive:
                break
            time.sleep(0.01)
        with pytest.raises(ServiceError, match="SIGKILL"):
            engine.generate("w1")


def run_script(tmp_path, model_folder, body):
    script = tmp_path / "script.py"
    head = f"""
        import sys
        sys.path[:0] = [{HERE!r}, {PACKAGE!r}]
        import scripted_scheduler
        from sglang.srt.entrypoints.engine import Engine

        class ScriptedEngine(Engine):
            run_scheduler_process_func = staticmethod(scripted_scheduler.run_scripted)

        MODEL = {model_folder!r}
    """
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)


def test_script_without_main_guard_gets_a_clear_message(tmp_path, model_folder):
    done = run_script(tmp_path, model_folder, "ScriptedEngine(model_path=MODEL)")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'if __name__ == "__main__"' in done.stderr


def test_script_that_forgets_shutdown_leaves_no_process_and_imports_no_torch(
    tmp_path, model_folder
):
    body = """
        if __name__ == "__main__":
            engine = ScriptedEngine(model_path=MODEL)
            engine.generate("w1")
            print(engine._front.scheduler_pids[0], engine._front._ports.socket_dir)
            print("torch" in sys.modules)
    """
    done = run_script(tmp_path, model_folder, body)
    assert done.returncode == 0, done.stderr
    (pid, folder), (has_torch,) = map(str.split, done.stdout.splitlines())
    assert not is_running(int(pid)) and not os.path.exists(folder)
    assert has_torch == "False"
    assert done.stderr == ""


def test_a_script_from_standard_input_is_refused_before_a_process_starts():
    script = "from sglang.srt.entrypoints.scheduler_processes import SchedulerProcesses as S\nS(None, None)"
    done = subprocess.run(
        [sys.executable, "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )
    assert done.returncode == 1
    assert "read from standard input" in done.stderr and "Save it in a file" in done.stderr
