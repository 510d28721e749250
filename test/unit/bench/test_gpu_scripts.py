"""What the scripts in `benchmark/gpu` read out of traces, on traces made up for it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmark" / "gpu"))

import device_trace  # noqa: E402
import made_up_tokenizer  # noqa: E402

KERNELS = 10


class Recorder:
    """Writes events as the profiler does: by launch, with the correlation of the launch."""

    def __init__(self, graphs: bool = True) -> None:
        self.events = [{"ph": "M", "name": "process_name", "args": {"name": "python"}}]
        self.graphs = graphs
        self.now = 1000.0
        self.correlation = 0

    def add(self, cat: str, name: str, duration: float, idle: float = 0.0) -> None:
        """Work on the device that begins `idle` after the last ended, each with a launch of its own."""
        self.correlation += 1
        self._put(cat, name, duration, idle)

    def graph(self, idle: float = 0.0, between: float = 0.5) -> None:
        """Ten kernels of 10 us."""
        self.correlation += 1
        self.events.append(
            {
                "ph": "X",
                "cat": "cuda_runtime",
                "name": "cudaGraphLaunch",
                "ts": self.now,
                "dur": 5.0,
            }
        )
        for index in range(KERNELS):
            if not self.graphs:
                self.correlation += 1
            self._put("kernel", f"layer{index % 2}", 10.0, between if index else idle)

    def step(self, gap: float, pause: float = 1.0) -> None:
        """A copy up and the filling of the inputs, a graph, sampling and the copy of the ids."""
        self.add("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 2.0, idle=gap)
        self.add("kernel", "fill", 3.0, idle=pause)
        self.graph(idle=pause)
        self.add("kernel", "choose", 20.0, idle=pause)
        self.add("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 1.0, idle=pause)
        self.add("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 1.0)

    def write(self, path: Path) -> Path:
        text = json.dumps({"schemaVersion": 1, "traceEvents": list(reversed(self.events))})
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return path

    def _put(self, cat: str, name: str, duration: float, idle: float) -> None:
        self.now += idle
        args = {"correlation": self.correlation, "stream": 7}
        event = {"ph": "X", "cat": cat, "name": name, "ts": self.now, "dur": duration, "args": args}
        self.events.append(event)
        self.now += duration


def analysed(recorder: Recorder, path: Path, skip: int = 1) -> device_trace.Steps:
    return device_trace.analyse(device_trace.read_works(recorder.write(path)), skip)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_gaps_between_graphs(tmp_path, name):
    recorder = Recorder()
    for gap in (500.0, 10.0, 20.0, 30.0, 90.0, 700.0):
        recorder.step(gap)
    steps = analysed(recorder, tmp_path / name)
    # The first graph is skipped and the last dropped, so their gaps do not count.
    assert steps.column("gap") == pytest.approx([20.0, 30.0, 90.0])
    # Beside the gap: before the sampling, the copy down, the filling and the graph.
    assert steps.column("idle") == pytest.approx([24.0, 34.0, 94.0])
    busy = KERNELS * 10.0 + 20.0 + 2.0 + 5.0
    inner = (KERNELS - 1) * 0.5
    assert steps.column("period") == pytest.approx([busy + inner + idle for idle in (24, 34, 94)])
    assert steps.inner_idle == pytest.approx([inner] * 4)
    assert steps.busy_share == pytest.approx(3 * busy / sum(steps.column("period")))
    assert steps.num_works == pytest.approx(KERNELS + 5)
    assert steps.between()[0] == ("choose", pytest.approx(20.0), 1.0)
    row = device_trace.summary(steps)
    assert (row["gap_p50"], row["gap_p90"], row["gap_max"]) == pytest.approx((30.0, 90.0, 90.0))
    assert row["busy_us"] == pytest.approx(busy)


def test_work_beside_the_graph_on_another_stream_is_not_idle_time(tmp_path):
    recorder = Recorder()
    for _ in range(5):
        recorder.step(40.0)
        # Reaches 15 us into the gap of 40 that follows.
        recorder.events.append(
            {**recorder.events[-1], "ts": recorder.now - 5.0, "dur": 20.0, "name": "other"}
        )
    steps = analysed(recorder, tmp_path / "trace.json")
    assert steps.column("idle") == pytest.approx([40.0 - 15.0 + 3.0] * 2)
    assert steps.column("gap") == pytest.approx([25.0] * 2)


def test_steps_without_graphs_end_with_the_copy_to_the_host(tmp_path):
    recorder = Recorder(graphs=False)
    for gap in (500.0, 10.0, 20.0, 30.0, 90.0, 700.0):
        recorder.step(gap)
    steps = analysed(recorder, tmp_path / "trace.json")
    assert steps.column("gap") == pytest.approx([20.0, 30.0, 90.0])
    assert steps.column("idle") == steps.column("gap")


def test_too_short_traces_are_refused(tmp_path):
    recorder = Recorder()
    for _ in range(3):
        recorder.step(1.0)
    with pytest.raises(ValueError, match="1 whole steps among 45 pieces"):
        analysed(recorder, tmp_path / "trace.json")
    assert device_trace.read_works(Recorder().write(tmp_path / "empty.json")) == []


def test_quantiles_are_values_that_occurred():
    values = [float(n) for n in range(1, 11)]
    assert device_trace.quantile(values, 0.9) == 9.0
    assert device_trace.quantile(values, 0.91) == 10.0
    assert device_trace.quantile([4.0], 0.5) == 4.0


def test_made_up_tokenizer_spells_every_id(tmp_path):
    from tokenizers import Tokenizer

    made_up_tokenizer.write_tokenizer(tmp_path, 5000, 4990)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 5000
    texts = {tokenizer.decode([index], skip_special_tokens=False) for index in range(256, 5000)}
    assert len(texts) == 5000 - 256 and " aaaa" in texts
    assert tokenizer.decode([4990], skip_special_tokens=False) == "<|end|>"
    assert tokenizer.decode(tokenizer.encode("a\u00e9").ids) == "a\u00e9"
    with pytest.raises(ValueError, match="vocab_size=256"):
        made_up_tokenizer.write_tokenizer(tmp_path, 256, 1)
