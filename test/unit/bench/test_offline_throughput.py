"""The offline benchmark on a stand-in for the engine."""

from __future__ import annotations

import json

import pytest

import sglang.srt.entrypoints.engine as engine_module
from sglang import bench_offline_throughput as offline
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import ConfigError


class StandIn:
    """Answers with as many tokens as are asked for."""

    calls: list[dict] = []

    def __init__(self, *, server_args) -> None:
        self.calls.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.calls.append({"closed": True})

    def generate(self, **arguments):
        self.calls.append(arguments)
        prompts = arguments["prompt"] or arguments["input_ids"]
        return [
            {
                "meta_info": {
                    "prompt_tokens": len(prompt if isinstance(prompt, list) else prompt.split()),
                    "completion_tokens": params["max_new_tokens"],
                    "finish_reason": {"type": "length"},
                }
            }
            for prompt, params in zip(prompts, arguments["sampling_params"], strict=True)
        ]

    def start_profile(self):
        self.calls.append({"profile": "start"})

    def stop_profile(self):
        self.calls.append({"profile": "stop"})
        return "Recorded"

    def get_server_info(self):
        return {"internal_states": [{"last_gen_throughput": 42.0}]}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(engine_module, "Engine", StandIn)


def bench_args(**values) -> offline.BenchArgs:
    defaults = {"dataset_name": "random-ids", "num_prompts": 4, "random_input_len": 6}
    defaults |= {"random_output_len": 5, "random_range_ratio": 1.0}
    return offline.BenchArgs(**{**defaults, **values})


def test_result_block_and_file(tokenizer_folder, tmp_path, capsys):
    path = tmp_path / "result.jsonl"
    server_args = ServerArgs(model_path=tokenizer_folder)
    result = offline.throughput_test(server_args, bench_args(result_filename=str(path)))
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (24, 20)
    assert result["successful_requests"] == 4 and result["last_gen_throughput"] == 42.0
    assert result["total_throughput"] == pytest.approx(44 / result["total_latency"])
    assert json.loads(path.read_text()) == result
    out = capsys.readouterr().out
    assert "Backend:                                 engine" in out
    assert "Last generation throughput (tok/s):      42.00" in out
    warm_up, measured, closed = StandIn.calls
    assert warm_up["prompt"] != measured["prompt"] and closed == {"closed": True}
    assert measured["sampling_params"][0] == {
        "temperature": 0.0,
        "max_new_tokens": 5,
        "ignore_eos": True,
    }


def test_options_reach_the_engine(tokenizer_folder):
    args = bench_args(
        tokenize_prompt=True,
        skip_warmup=True,
        disable_ignore_eos=True,
        extra_request_body='{"temperature": 0.5}',
        return_logprob=True,
        logprob_start_len=0,
    )
    offline.throughput_test(ServerArgs(model_path=tokenizer_folder), args)
    call = StandIn.calls[0]
    assert call["prompt"] is None and {len(ids) for ids in call["input_ids"]} == {6}
    assert call["return_logprob"] is True and call["logprob_start_len"] == 0
    assert call["sampling_params"][0]["temperature"] == 0.5
    assert call["sampling_params"][0]["ignore_eos"] is False


def test_later_subjects(tokenizer_folder):
    with pytest.raises(ConfigError, match="is not available yet"):
        offline.throughput_test(
            ServerArgs(model_path=tokenizer_folder), bench_args(backend="runtime")
        )


def test_profile_surrounds_the_measured_run(tokenizer_folder, capsys):
    offline.throughput_test(ServerArgs(model_path=tokenizer_folder), bench_args(profile=True))
    kinds = [next(iter(call)) if len(call) == 1 else "generate" for call in StandIn.calls]
    assert kinds == ["generate", "profile", "generate", "profile", "closed"]
    assert "Recorded" in capsys.readouterr().out


def test_command_line(tokenizer_folder, capsys):
    flags = "--dataset-name random-ids --num-prompts 3 --random-input-len 4 --random-output-len 2"
    assert offline.main(["--model-path", tokenizer_folder, *flags.split()]) == 0
    assert "Successful requests:                     3" in capsys.readouterr().out
    assert offline.main(["--model-path", tokenizer_folder]) == 2
    assert "--dataset-path FILE.json" in capsys.readouterr().err
