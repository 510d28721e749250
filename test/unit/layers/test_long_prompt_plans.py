"""Which plans of long prompts are made beforehand, when, and what becomes of a failure."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sglang.srt.layers.attention import long_prompt_plans
from sglang.srt.layers.attention.long_prompt import LENGTH_MULTIPLE, MIN_TOKENS
from sglang.srt.layers.attention.long_prompt_plans import (
    LongPromptPlans,
    PromptShape,
    common_lengths,
    shapes_of,
)
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.parallel_worker import FollowerWorker, LeaderWorker

SHAPE = PromptShape(num_heads=4, num_kv_heads=2, head_dim=8, scaling=0.5)


class Attention:
    """Notes the lengths it is called with, and by whom; fails at `bad`."""

    def __init__(self, bad: int | None = None, error: type[Exception] = RuntimeError) -> None:
        self.calls: list[int] = []
        self.in_main: list[bool] = []
        self._bad, self._error = bad, error

    def __call__(self, q, k, v, scaling):
        assert q.shape[1:] == (4, 8) and k.shape[1:] == v.shape[1:] == (2, 8) and scaling == 0.5
        assert q.stride() == k.stride() == v.stride() == (64, 8, 1), "columns of one projection"
        self.calls.append(len(q))
        self.in_main.append(threading.current_thread() is threading.main_thread())
        if len(q) == self._bad:
            raise self._error("no engine for this\nand a stack")


def plans_up_to(longest: int, attend: Attention, shapes=(SHAPE,)) -> LongPromptPlans:
    return LongPromptPlans(shapes, longest, torch.float16, torch.device("cpu"), attend)


def run_to_the_end(plans: LongPromptPlans) -> int:
    num_calls = 1
    while plans.make_next():
        num_calls += 1
    return num_calls


def test_the_longest_and_powers_of_two_come_first():
    lengths = common_lengths(8192)
    assert lengths[:3] == [8192, 4096, 2048] and lengths[3:5] == [8191, 4095]
    assert sorted(lengths[3:]) == [3071, 4095, 5119, 6143, 7167, 8191]
    assert common_lengths(6000)[:3] == [6000, 4096, 2048]
    assert common_lengths(MIN_TOKENS) == [MIN_TOKENS]
    assert common_lengths(MIN_TOKENS - 1) == common_lengths(0) == []


@pytest.mark.parametrize("longest", [2048, 2500, 6000, 8192, 12288, 16384])
def test_every_padded_length_has_a_plan(longest):
    planned = {-(-n // LENGTH_MULTIPLE) for n in common_lengths(longest)}
    assert planned == {-(-n // LENGTH_MULTIPLE) for n in range(MIN_TOKENS, longest + 1)}


def test_very_long_prompts_are_not_planned_for():
    assert common_lengths(131072) == common_lengths(16384)
    assert max(common_lengths(131072)) == 16384 and len(common_lengths(131072)) < 30


def test_one_plan_at_a_time_in_the_thread_that_asks():
    attend = Attention()
    plans = plans_up_to(4096, attend)
    assert plans.make_next() and attend.calls == [4096]
    assert run_to_the_end(plans) == 3 and attend.calls == [4096, 2048, 4095, 3071]
    assert all(attend.in_main)
    assert not plans.make_next() and len(attend.calls) == 4


@pytest.mark.parametrize("error", [RuntimeError, ImportError, OSError])
@pytest.mark.parametrize("bad", [4096, 4095])
def test_a_failure_ends_planning_and_nothing_else(bad, error, caplog):
    attend = Attention(bad, error)
    with caplog.at_level(logging.WARNING):
        run_to_the_end(plans_up_to(4096, attend))
    assert attend.calls[-1] == bad and 3071 not in attend.calls
    assert "not planned beforehand: no engine for this" in caplog.text
    assert "stack" not in caplog.text


def test_plain_layers_of_one_shape_count_once(monkeypatch):
    monkeypatch.setattr(long_prompt_plans, "suits_long_prompt", lambda q: q.shape[2] <= 128)

    def layer(heads=4, dim=8, **options):
        return RadixAttention(heads, dim, 0.5, 2, layer_id=0, **options)

    odd = [layer(sliding_window_size=64), layer(logit_cap=30.0), layer(v_head_dim=4)]
    odd += [layer(is_cross_attention=True), layer(dim=256)]
    model = nn.ModuleList([layer(), layer(), layer(heads=8), *odd])
    found = shapes_of(model, torch.float16, torch.device("cpu"))
    assert found == [SHAPE, SHAPE._replace(num_heads=8)]


@pytest.mark.parametrize(
    "backend, planned",
    [("triton", True), ("triton+fa3", True), ("fa3", False), ("flashinfer+triton", False)],
)
def test_a_runner_plans_where_its_prefills_run_by_triton(monkeypatch, backend, planned):
    monkeypatch.setattr(long_prompt_plans, "suits_long_prompt", lambda q: True)
    runner = ModelRunner.__new__(ModelRunner)
    runner.model = RadixAttention(4, 8, 0.5, 2, layer_id=0)
    runner.dtype, runner.device = torch.float16, torch.device("cpu")
    runner.max_total_num_tokens = 3000
    runner.config = SimpleNamespace(attention_backend=backend, longest_prefill=8192)
    runner._long_prompts = runner._plan_long_prompts()
    if not planned:
        assert runner._long_prompts is None and not runner.prepare()
        return
    assert [n for _, n in runner._long_prompts._todo][0] == 3000, "no more than the cache holds"
    runner._long_prompts._attend = lambda *parts: None
    assert runner.prepare()


def test_other_ranks_prepare_when_rank_0_does():
    """A plan without works runs no model."""
    log: list[str] = []
    frames: list[bytes] = []
    follower = FollowerWorker(
        SimpleNamespace(builder=None, prepare=lambda: log.append("follower prepares"))
    )
    worker = SimpleNamespace(prepare=lambda: log.append("leader prepares") or True)
    leader = LeaderWorker(worker, SimpleNamespace(send=frames.append))
    assert leader.prepare()
    for frame in frames:
        follower.carry_out(frame)
    assert log == ["leader prepares", "follower prepares"]
