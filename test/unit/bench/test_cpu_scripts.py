"""The arithmetic of the scripts in `benchmark/cpu` and of the size report, on made-up contestants."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "benchmark" / "cpu"), str(ROOT / "scripts")]

import compare_hf  # noqa: E402
import contestants  # noqa: E402
import engine_overhead  # noqa: E402
import memory  # noqa: E402
import records  # noqa: E402
import size_report  # noqa: E402
import workloads  # noqa: E402


class Linear:
    """Half a second per call, 10 ms per step, nothing for the batch."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], list[int]]] = []

    def generate(self, prompts, output_lens):
        self.calls.append((prompts, output_lens))
        return 0.5 + 0.01 * max(output_lens)

    serve = generate


@pytest.mark.parametrize(
    ("row", "expected"),
    [("ttft", 0.51), ("decode1", 100.0), ("decode32", 3200.0), ("tiny1", 10.0), ("tiny32", 10.0)],
)
def test_figures(row, expected):
    contestant, draw = Linear(), workloads.Draw(1000, seed=1)
    figure = workloads.ROWS[row].measure(contestant, draw, workloads.QUICK)
    assert figure == pytest.approx(expected)
    prompts = [tuple(prompt) for prompts, _ in contestant.calls for prompt in prompts]
    assert len(set(prompts)) == len(prompts), "a prompt came twice: the prefix cache would help"


def test_shared_rows_share_exactly_the_prefix():
    contestant, draw = Linear(), workloads.Draw(1000, seed=1)
    workloads.shared_prefix(contestant, draw, workloads.QUICK)
    ((prompts, outputs),) = contestant.calls
    length = workloads.QUICK.prefix_len
    assert len({tuple(prompt[:length]) for prompt in prompts}) == 1
    assert len({tuple(prompt[length:]) for prompt in prompts}) == len(prompts) == len(outputs)


def test_draw_is_the_same_for_every_contestant():
    first, second = (workloads.Draw(1000, seed=4).prompts(3, 5) for _ in range(2))
    assert first == second != workloads.Draw(1000, seed=5).prompts(3, 5)


def test_static_batches_run_to_the_longest_output(monkeypatch):
    batches = []
    monkeypatch.setattr(
        contestants.TransformersContestant,
        "_run_batch",
        lambda self, prompts, output_len: batches.append((len(prompts), output_len)),
    )
    static = contestants.TransformersContestant.__new__(contestants.TransformersContestant)
    prompts = [[1] * (1 + i) for i in range(10)]
    static.serve(prompts, list(range(1, 11)))
    assert batches == [(8, 8), (2, 10), (10, 10)]  # sizes 8 and 32
    batches.clear()
    static.serve([[1, 2]] * 10, [4] * 10)
    assert batches == [(8, 4), (2, 4)]


def test_ratio_says_how_much_better_we_are():
    figures = {
        "transformers": {"ttft": [1.0, 3.0, 2.0], "decode1": [10.0]},
        "sglang": {"ttft": [0.5], "decode1": [25.0], "tiny1": [1.0]},
    }
    header, ttft, decode, tiny = compare_hf.table(figures, ["ttft", "decode1", "tiny1"])
    assert header == ["workload", "unit", "transformers", "sglang", "sglang is better by"]
    assert ttft[2:] == ["2 (1 - 3)", "0.5", "4.00 x"]  # less is better
    assert decode[2:] == ["10", "25", "2.50 x"]  # more is better
    assert tiny[2:] == ["-", "1", "-"]


def test_overhead_is_the_step_without_the_model():
    seconds = {"model": 5.0, "forward": 6.0, "sample": 0.75, "plan": 1.5, "commit": 0.5}
    parts = engine_overhead._parts(10.0, seconds)
    assert (parts["overhead"], parts["build"], parts["sample"]) == (5.0, 1.0, 0.75)
    assert parts["rest"] == 1.25
    assert sum(parts[name] for name in engine_overhead.PARTS) == parts["overhead"]


def test_stopwatch_counts_calls_and_passes_results():
    stopwatch, contestant = engine_overhead.Stopwatch(), Linear()
    stopwatch.watch(contestant, "generate", "part")
    assert contestant.generate([[1]], [50]) == 1.0
    assert stopwatch.seconds["part"] > 0


def test_record_is_written_for_people_and_programs(tmp_path, capsys):
    record = records.Record.begin("some-name", threads=2)
    record.add_table("Title", [["a", "bb"], ["ccc", "d"]])
    record.data = {"figures": {"x": [1.5]}}
    path = record.write(tmp_path)
    text = path.read_text()
    assert "## Title\n\n| a   | bb |\n|-----|----|\n| ccc | d  |" in text
    for fact in ("command", "machine", "versions", "commit", "load average before", "threads"):
        assert f"- {fact}: " in text
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["figures"] == {"x": [1.5]} and stored["facts"]["threads"] == 2
    assert "Title" in capsys.readouterr().out


def test_closure_stops_at_imports_inside_functions():
    members = size_report.closure("sglang.launch_server")
    assert {"sglang", "sglang.version", "sglang.srt.utils.errors"} <= members
    assert "sglang.srt.entrypoints.http_server" not in members


def test_totals_and_lists():
    totals = size_report.collect_totals()
    assert totals["lines python (all)"] >= totals["lines python/sglang/srt/managers"] > 0
    assert totals["number of flags"] > 100 and totals["number of environment variables"] > 10
    names = [name for names in size_report.groups(totals).values() for name in names]
    assert sorted(names) == sorted(totals)
    lengths = [function.lines for function in size_report.longest_functions()]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] >= 1


def test_memory_is_split_into_weights_kv_and_the_rest():
    usage = {"weight": 0.5, "kvcache": 1.0, "token_capacity": 1024}
    pools = memory.Pools.of({"memory_usage": usage})
    sample = memory.Sample(pss=2000.0, rss=2500.0, by_process={})
    row = pools.row(sample, kv_tokens=256)
    assert row == {
        "PSS": 2000.0,
        "weights": 512.0,
        "KV in memory": 256.0,
        "rest": 1232.0,
        "KV reserved": 1024.0,
        "sum of RSS": 2500.0,
    }
    assert memory._verdict(row) == "no" and memory._verdict({"rest": 1024.0}) == "yes"
    assert pools.row(sample, kv_tokens=10**6)["KV in memory"] == 1024.0


def test_memory_of_this_process_is_read():
    text = "55-7ff ---p 00000000 00:00 0  [rollup]\nRss:   2048 kB\nPss:   1024 kB\n"
    assert memory.read_rollup(text) == {"Rss": 2.0, "Pss": 1.0}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_samples_count_children_only():
    code = "block = b'x' * (80 << 20); print('ready', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        with memory.Sampler() as sampler:
            assert child.stdout.readline() == "ready\n"
            now = memory.take_sample()
            while sampler.largest.pss < 80:
                time.sleep(0.01)
        child.communicate("\n")
    assert 80 < now.pss < 200 and now.by_process.keys() >= {"other"}
    assert memory.take_sample().pss < now.pss - 79
