"""The serving benchmark from the command line to the record, against a scripted server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sglang import bench_serving
from sglang.bench import options

KEYS = set(
    "tag backend dataset_name request_rate max_concurrency sharegpt_output_len random_input_len random_output_len "
    "random_range_ratio server_info duration completed total_input_tokens total_input_text_tokens "
    "total_input_vision_tokens total_output_tokens total_output_tokens_retokenized request_throughput input_throughput "
    "output_throughput total_throughput mean_e2e_latency_ms median_e2e_latency_ms std_e2e_latency_ms p90_e2e_latency_ms "
    "p99_e2e_latency_ms mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms mean_tpot_ms median_tpot_ms std_tpot_ms "
    "p99_tpot_ms mean_itl_ms median_itl_ms std_itl_ms p95_itl_ms p99_itl_ms concurrency accept_length "
    "max_output_tokens_per_s max_concurrent_requests".split()
)
SIX = "--dataset-name random-ids --num-prompts 6 --random-input-len 8 --random-output-len 5 --random-range-ratio 1"


@pytest.fixture
def bench(server, tmp_path, monkeypatch):
    """Runs the tool and returns (exit code, records written)."""
    monkeypatch.chdir(tmp_path)

    def run(flags: str = "", *words: str, url: str | None = None):
        argv = f"--base-url {url or server.url} {SIX} --output-file out.jsonl {flags}".split()
        code = bench_serving.main([*argv, *words])
        path = tmp_path / "out.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return code, [json.loads(line) for line in lines]

    return run


def test_native_record_and_block(bench, server, capsys):
    code, (record,) = bench("--tag nightly --max-concurrency 3")
    assert code == 0
    assert record.keys() == KEYS
    assert (record["completed"], record["total_input_tokens"]) == (6, 48)
    assert record["total_output_tokens"] == record["total_output_tokens_retokenized"] == 30
    assert (record["tag"], record["request_rate"], record["accept_length"]) == (
        "nightly",
        "inf",
        2.5,
    )
    assert 1 <= record["max_concurrent_requests"] <= 3 and server.peak_running <= 3
    assert record["mean_itl_ms"] > 0 and record["mean_tpot_ms"] > 0
    out = capsys.readouterr().out
    assert "Successful requests:                     6" in out
    assert "Accept length:                           2.50" in out


def test_warm_up_precedes_and_connections_are_kept(bench, server):
    bench("--warmup-requests 2 --max-concurrency 1")
    assert len(server.bodies) == 2 + 6
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]
    assert server.num_connections <= 2


def test_native_body(bench, server):
    bench("--disable-ignore-eos --return-logprob --tokenize-prompt --header X-Key=a=b X-Two=2",
          "--extra-request-body", '{"extra_key": "k"}')  # fmt: skip
    path, body = server.asked[-1]
    prompt = body.pop("input_ids")
    assert path == "/generate" and len(prompt) == 8 and all(isinstance(i, int) for i in prompt)
    assert body == {
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 5, "ignore_eos": False},
        "stream": True,
        "return_logprob": True,
        "logprob_start_len": -1,
        "extra_key": "k",
    }
    assert (server.headers[-1]["x-key"], server.headers[-1]["x-two"]) == ("a=b", "2")


@pytest.mark.parametrize(
    ("variables", "flags", "sent"),
    [
        ({}, "", None),
        ({"OPENAI_API_KEY": "one"}, "", "Bearer one"),
        ({"OPENAI_API_KEY": "one", "API_KEY": "two"}, "", "Bearer two"),
        ({"API_KEY": "two"}, "--header authorization=three", "three"),
    ],
)
def test_key_of_the_environment(bench, server, monkeypatch, variables, flags, sent):
    for name in ("API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bench(flags)
    assert server.headers[-1].get("authorization") == sent


@pytest.mark.parametrize("backend", ["sglang-oai", "vllm", "sglang-oai-chat", "vllm-chat"])
def test_openai_backends(bench, server, backend, tokenizer_folder):
    flags = f"--backend {backend} --tokenizer {tokenizer_folder} --served-model-name named"
    code, (record,) = bench(flags)
    path, body = server.asked[-1]
    assert code == 0 and (record["completed"], record["total_output_tokens"]) == (6, 30)
    assert record["total_output_tokens_retokenized"] == 30
    assert body["model"] == "named" and body["ignore_eos"] is True
    if backend.endswith("chat"):
        assert path == "/v1/chat/completions" and body["max_completion_tokens"] == 5
        assert body["messages"][0]["role"] == "user"
    else:
        assert path == "/v1/completions" and isinstance(body["prompt"], str)
    assert (record["server_info"] is None) == backend.startswith("vllm")


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai"])
def test_without_stream(bench, server, backend):
    code, (record,) = bench(f"--backend {backend} --disable-stream --output-details")
    assert code == 0 and record["total_output_tokens"] == 30
    assert not any(body["stream"] for body in server.bodies)
    assert record["itls"] == [[]] * 6 and record["mean_ttft_ms"] > 0


def test_details_and_append(bench):
    bench()
    _, records = bench("--output-details")
    assert [len(record) for record in records] == [len(KEYS), len(KEYS) + 6]
    assert records[1]["output_lens"] == [5] * 6 and records[1]["errors"] == [""] * 6
    assert records[1]["generated_texts"][0].split() == ["w7"] * 5


def test_default_file_name(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench_serving.main(["--base-url", server.url, *SIX.split()]) == 0
    (path,) = tmp_path.glob("*.jsonl")
    backend, day, *rest = path.stem.split("_")
    assert backend == "sglang" and len(day) == 4 and rest == ["6", "8", "5"]


def test_flush_waits_until_the_server_is_idle(bench, server):
    server.flush_refusals = 2
    code, _ = bench("--flush-cache")
    assert code == 0 and server.num_flushed == 1


def test_failed_requests_are_counted_and_reported(bench, server):
    server.fail = lambda number: number % 2 == 1
    with pytest.warns(UserWarning, match="3 of 6 requests failed.*out of luck"):
        code, (record,) = bench("--warmup-requests 1")
    assert code == 0 and record["completed"] == 3 and record["total_output_tokens"] == 15


def test_failed_warm_up_ends_the_run(bench, server, capsys):
    server.fail = lambda number: True
    code, records = bench()
    assert code == 2 and not records
    assert "warm-up request failed" in capsys.readouterr().err


def test_print_requests(bench, capsys):
    bench("--print-requests")
    assert capsys.readouterr().out.count("input 8, output 5, ttft ") == 7


def test_no_server(bench, capsys):
    code, _ = bench(url="http://127.0.0.1:1")
    assert code == 2 and "no server answers at http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--lora-name a",
        "--profile",
        "--use-trace-timestamps",
        "--gsp-num-turns 2",
        "--backend trt",
        "--dataset-name mooncake",
    ],
)
def test_later_subjects_are_named(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        options.parse_args(flags.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "is not available yet" in error and flags.split()[0] in error


@pytest.mark.parametrize(
    "flags", ["--request-rate 0", "--max-concurrency 0", "--num-prompts 0", "--backend no"]
)
def test_wrong_values_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        options.parse_args(flags.split())
    assert flags.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--extra-request-body", "{"], ["--extra-request-body", "[]"],
                                   ["--header", "novalue"]])  # fmt: skip
def test_wrong_bodies_and_headers(bench, capsys, words):
    code, _ = bench("", *words)
    assert code == 2 and words[0] in capsys.readouterr().err


def test_chat_messages_need_a_chat_backend(bench, tmp_path, capsys):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "w1 w2"}]}\n')
    flags = f"--dataset-name openai --dataset-path {path}"
    assert bench(flags)[0] == 2
    assert "--apply-chat-template" in capsys.readouterr().err
    assert bench(f"{flags} --backend sglang-oai-chat")[0] == 0


@pytest.mark.parametrize(
    ("backend", "port"), [("sglang-oai", 30000), ("vllm-chat", 8000), ("lmdeploy", 23333)]
)
def test_default_address(backend, port):
    args = options.parse_args(["--backend", backend])
    assert options.base_url(args) == f"http://127.0.0.1:{port}"


def test_import_is_light():
    code = "import sys, sglang.bench_serving; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
