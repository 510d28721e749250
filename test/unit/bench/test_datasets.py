"""Datasets: lengths, repeatability, forms of prompts, and errors that say what to do."""

from __future__ import annotations

import json

import pytest

from sglang.bench.datasets import DatasetArgs, sample_requests
from sglang.srt.utils.errors import ConfigError

SHAREGPT = [
    {"conversations": [{"from": "human", "value": "w1 " * n}, {"from": "gpt", "value": "w2 " * m}]}
    for n, m in ((10, 6), (20, 30), (2, 9), (9, 2))
] + [{"conversations": [{"from": "human", "value": "w1"}]}]


@pytest.fixture
def sharegpt_file(tmp_path):
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(SHAREGPT))
    return str(path)


def lines(tmp_path, *values) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in values) + "\n\n")
    return str(path)


def args(name: str, **values) -> DatasetArgs:
    return DatasetArgs(
        **{"dataset_name": name, "num_prompts": 20, "random_input_len": 40, **values}
    )


def test_random_ids_have_the_asked_lengths(tokenizer):
    requests = sample_requests(args("random-ids", random_range_ratio=0.5), tokenizer)
    assert len(requests) == 20
    assert {type(request.prompt) for request in requests} == {str}
    assert all(20 <= request.prompt_len <= 40 for request in requests)
    assert all(512 <= request.output_len <= 1024 for request in requests)
    assert all(len(tokenizer.encode(r.prompt)) == r.prompt_len for r in requests)
    assert len({request.prompt_len for request in requests}) > 3
    assert len({request.prompt for request in requests}) == 20


def test_full_range_ratio_fixes_the_length(tokenizer):
    requests = sample_requests(args("random-ids", random_range_ratio=1.0), tokenizer)
    assert {(r.prompt_len, r.output_len) for r in requests} == {(40, 1024)}


def test_token_ids_on_request_without_special_ones(tokenizer):
    requests = sample_requests(
        args("random-ids", tokenize_prompt=True, random_input_len=500), tokenizer
    )
    ids = [i for request in requests for i in request.prompt]
    assert min(ids) >= 1 and max(ids) < len(tokenizer) and len(set(ids)) == len(tokenizer) - 1


def test_seed_decides(tokenizer):
    first, again, other = (
        sample_requests(args("random-ids", seed=seed), tokenizer) for seed in (3, 3, 4)
    )
    assert first == again and first != other


def test_random_without_file_uses_random_tokens(tokenizer, capsys):
    assert len(sample_requests(args("random"), tokenizer)) == 20
    assert "random-ids" in capsys.readouterr().out


def test_random_fills_lengths_with_the_files_texts(tokenizer, sharegpt_file):
    requests = sample_requests(
        args("random", dataset_path=sharegpt_file, random_range_ratio=1.0), tokenizer
    )
    assert {request.prompt_len for request in requests} == {40}
    assert set(" ".join(request.prompt for request in requests).split()) == {"w1"}


def test_sharegpt_takes_the_first_turns_and_drops_short_ones(tokenizer, sharegpt_file):
    requests = sample_requests(args("sharegpt", dataset_path=sharegpt_file), tokenizer)
    assert sorted((r.prompt_len, r.output_len) for r in requests) == [(10, 6), (20, 30)]


def test_sharegpt_limits(tokenizer, sharegpt_file):
    short = args("sharegpt", dataset_path=sharegpt_file, sharegpt_context_len=20)
    assert [r.prompt_len for r in sample_requests(short, tokenizer)] == [10]
    fixed = args("sharegpt", dataset_path=sharegpt_file, sharegpt_output_len=7)
    assert {r.output_len for r in sample_requests(fixed, tokenizer)} == {7}


def test_shared_prefix_groups(tokenizer):
    values = {"gsp_num_groups": 3, "gsp_prompts_per_group": 4, "gsp_system_prompt_len": 30}
    values |= {"gsp_question_len": 5, "gsp_output_len": 6, "gsp_ordered": True}
    requests = sample_requests(
        args("generated-shared-prefix", tokenize_prompt=True, **values), tokenizer
    )
    assert {(r.prompt_len, r.output_len) for r in requests} == {(35, 6)}
    prefixes = [tuple(request.prompt[:30]) for request in requests]
    assert len(set(prefixes)) == 3 and prefixes == sorted(prefixes, key=prefixes.index)
    assert len({tuple(request.prompt) for request in requests}) == 12
    mixed = args("generated-shared-prefix", **{**values, "gsp_ordered": False})
    heads = [request.prompt.split("\n\n")[0] for request in sample_requests(mixed, tokenizer)]
    assert len(set(heads)) == 3 and heads != sorted(heads, key=heads.index)


def test_fast_prepare_states_nominal_lengths(tokenizer):
    values = {"gsp_num_groups": 1, "gsp_prompts_per_group": 2, "gsp_fast_prepare": True}
    requests = sample_requests(args("generated-shared-prefix", **values), tokenizer)
    assert {request.prompt_len for request in requests} == {2048 + 128}


def test_custom_lines(tokenizer, tmp_path):
    conversation = {
        "conversations": [
            {"role": "user", "content": "w3 w4"},
            {"role": "assistant", "content": "w5"},
        ]
    }
    path = lines(tmp_path, {"prompt": "w1 w2 w3", "output_len": 9}, {"prompt": "w1"}, conversation)
    requests = sample_requests(args("custom", dataset_path=path), tokenizer)
    assert [(r.prompt_len, r.output_len) for r in requests] == [(3, 9), (1, 256), (2, 1)]
    assert len(sample_requests(args("custom", dataset_path=path, num_prompts=2), tokenizer)) == 2


def test_openai_lines_stay_messages_or_become_text(tokenizer, tmp_path):
    messages = [{"role": "user", "content": "w1 w2"}]
    path = lines(tmp_path, {"messages": messages, "max_tokens": 11})
    (request,) = sample_requests(args("openai", dataset_path=path), tokenizer)
    assert request.prompt == messages and (request.prompt_len, request.output_len) == (2, 11)
    templated = args("openai", dataset_path=path, apply_chat_template=True)
    (request,) = sample_requests(templated, tokenizer)
    assert request.prompt.split() == ["w5", "w1", "w2", "w6"] and request.prompt_len == 4


def test_suffix_and_template(tokenizer, tmp_path):
    path = lines(tmp_path, {"prompt": "w1"})
    changed = args("custom", dataset_path=path, prompt_suffix=" w9", apply_chat_template=True)
    (request,) = sample_requests(changed, tokenizer)
    assert request.prompt.split() == ["w5", "w1", "w9", "w6"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset_name": "sharegpt"}, "--dataset-path FILE.json.*random-ids"),
        ({"dataset_name": "custom"}, "needs --dataset-path"),
        (
            {"dataset_name": "custom", "dataset_path": "/none/x.jsonl"},
            "cannot read '/none/x.jsonl'",
        ),
        ({"dataset_name": "nope"}, "'nope' is none of"),
        ({"dataset_name": "random-ids", "num_prompts": 0}, "num_prompts=0"),
        ({"dataset_name": "random-ids", "random_range_ratio": 2.0}, "random_range_ratio=2.0"),
    ],
)
def test_refusals(tokenizer, values, message):
    with pytest.raises(ConfigError, match=message):
        sample_requests(DatasetArgs(**values), tokenizer)


@pytest.mark.parametrize(
    ("dataset", "line"), [("custom", {"conversations": []}), ("openai", {"prompt": "x"})]
)
def test_bad_line_is_named(tokenizer, tmp_path, dataset, line):
    path = lines(tmp_path, {"prompt": "w1", "messages": [{"role": "user", "content": "w1"}]}, line)
    with pytest.raises(ConfigError, match="data.jsonl:2: expected"):
        sample_requests(args(dataset, dataset_path=path), tokenizer)
