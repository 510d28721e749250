"""Several tensor-parallel ranks give the answers of one, on one machine and on two; a rank that is lost or hangs ends the server."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from models.tiny import write_checkpoint
from server import Server, start, wait_ready

import sglang
from sglang.srt.arg_groups.ports import find_free_port

# Four query heads and two KV heads: with four ranks every KV head lives on two of them.
PROMPTS = [[5, 6, 7, 8, 9, 10], [100, 200, 300] * 9, [3]]
GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
DRAWN = {**GREEDY, "temperature": 1.0, "sampling_seed": 11, "frequency_penalty": 0.5}
FLAGS = ["--device", "cpu", "--dtype", "float32", "--max-total-tokens", "1024"]
FLAGS += ["--skip-tokenizer-init", "--skip-server-warmup"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Biases, query and key norms, and a head that shares its weights with the embedding."""
    return write_checkpoint("qwen3-tied", tmp_path_factory.mktemp("model"))


def answers(checkpoint: Path, tp_size: int) -> list[dict]:
    engine = sglang.Engine(
        model_path=str(checkpoint),
        tp_size=tp_size,
        device="cpu",
        dtype="float32",
        max_total_tokens=1024,
        chunked_prefill_size=16,
        skip_tokenizer_init=True,
    )
    with engine:
        found = engine.generate(
            input_ids=PROMPTS, sampling_params=GREEDY, return_logprob=True, logprob_start_len=0
        )
        found += engine.generate(input_ids=PROMPTS, sampling_params=DRAWN, return_logprob=True)
        return found


@pytest.fixture(scope="module")
def answers_of_one(checkpoint) -> list[dict]:
    return answers(checkpoint, 1)


def logprobs(answer: dict, key: str) -> list[float]:
    return [value for value, *_ in answer["meta_info"][key] if value is not None]


@pytest.mark.parametrize("tp_size", [2, 4])
def test_ranks_answer_like_one(checkpoint, answers_of_one, tp_size):
    for one, several in zip(answers_of_one, answers(checkpoint, tp_size), strict=True):
        assert len(one["output_ids"]) == 8
        assert several["output_ids"] == one["output_ids"]
        for key in ("input_token_logprobs", "output_token_logprobs"):
            assert logprobs(several, key) == pytest.approx(logprobs(one, key), abs=1e-4)


@contextlib.contextmanager
def started(*commands: tuple[list[str], Path]):
    """Servers in the order of `commands`; all of them are gone afterwards."""
    servers: list[Server] = []
    try:
        for args, log in commands:
            servers.append(start(args, log))
        for server in servers:
            wait_ready(server)
        yield servers
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


def rank_pids(server: Server) -> list[int]:
    """The processes of a server that run ranks, by their command line."""
    return [
        pid
        for pid in server.children()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_two_machines(checkpoint, answers_of_one, tmp_path):
    """Two servers on loopback stand for the machines."""
    args = ["--model-path", str(checkpoint), *FLAGS, "--tp", "2", "--nnodes", "2"]
    args += ["--dist-init-addr", f"127.0.0.1:{find_free_port()}", "--dist-timeout", "120"]
    first = ([*args, "--node-rank", "0"], tmp_path / "first")
    second = ([*args, "--node-rank", "1"], tmp_path / "second")
    with started(second, first) as (other, leader):
        assert len(rank_pids(leader)) == len(rank_pids(other)) == 1
        body = {"input_ids": PROMPTS, "sampling_params": GREEDY}
        status, found = leader.post("/generate", body)
        assert status == 200
        assert [a["output_ids"] for a in found] == [a["output_ids"] for a in answers_of_one[:3]]
        assert other.get("/health")[0] == 200
        assert other.request("/generate", body)[0] >= 400  # only the first machine has an API
        os.kill(rank_pids(other)[0], signal.SIGKILL)
        assert leader.process.wait(timeout=30) == 1
        assert other.process.wait(timeout=30) == 1
    assert "Rank 1 is gone" in first[1].read_text()
    assert "SIGKILL" in second[1].read_text()


def test_machines_end_together(checkpoint, tmp_path):
    args = ["--model-path", str(checkpoint), *FLAGS, "--tp", "2", "--nnodes", "2"]
    args += ["--dist-init-addr", f"127.0.0.1:{find_free_port()}"]
    first = ([*args, "--node-rank", "0"], tmp_path / "first")
    second = ([*args, "--node-rank", "1"], tmp_path / "second")
    with started(first, second) as (leader, other):
        leader.process.send_signal(signal.SIGTERM)
        assert leader.process.wait(timeout=30) == 0
        assert other.process.wait(timeout=30) == 0


def test_rank_that_hangs_ends_the_server(checkpoint, tmp_path):
    args = ["--model-path", str(checkpoint), *FLAGS, "--tp", "2", "--watchdog-timeout", "4"]
    with started((args, tmp_path / "log")) as (server,):
        ranks = rank_pids(server)
        assert len(ranks) == 2
        os.kill(max(ranks), signal.SIGSTOP)  # started last
        body = {"input_ids": PROMPTS[0], "sampling_params": GREEDY}
        with contextlib.suppress(OSError):
            # A stopped rank is continued to print its stacks, and may finish its step before it ends.
            assert server.request("/generate", body)[0] in (200, 500)
        assert server.process.wait(timeout=30) == 1
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    log = (tmp_path / "log").read_text()
    assert "made no progress" in log
    assert "follower_process.py" in log and "scheduler_process.py" in log  # stacks of both
