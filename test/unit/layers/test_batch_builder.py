"""The index tensors of a step against what they must be, written out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglang.srt.managers.step_plan import RowWork, StepPlan
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.srt.model_executor.forward_batch_info import ForwardMode

WIDTH = 10


def packed(*slots: int) -> bytes:
    return np.array(slots, np.int32).tobytes()


def extend(row: int, start: int, ids: list[int], slots: list[int], prefix=None, **more) -> RowWork:
    return RowWork(
        row=row,
        start=start,
        num_tokens=len(ids),
        token_ids=ids,
        prefix_slots=None if prefix is None else packed(*prefix),
        new_slots=packed(*slots),
        sample=True,
        **more,
    )


def decode(row: int, start: int, slot: int, prefix=None, **more) -> RowWork:
    return RowWork(
        row=row,
        start=start,
        num_tokens=1,
        token_ids=None,
        prefix_slots=None if prefix is None else packed(*prefix),
        new_slots=packed(slot),
        sample=True,
        **more,
    )


@pytest.fixture
def builder() -> BatchBuilder:
    pool = ReqToTokenPool(size=4, max_context_len=WIDTH, device="cpu")
    built = BatchBuilder(pool, SimpleNamespace(), SimpleNamespace(), torch.device("cpu"))
    built.next_token_ids[:] = torch.tensor([100, 101, 102, 103])
    return built


def build(builder: BatchBuilder, mode: str, *works: RowWork):
    return builder.build(StepPlan(step_id=1, mode=mode, works=list(works)))


def table(batch) -> list[list[int]]:
    return batch.req_to_token_pool.req_to_token.tolist()


def test_extend(builder):
    batch = build(
        builder,
        "extend",
        extend(2, 0, [7, 8, 9], [21, 22, 23]),
        extend(0, 2, [5, 6], [33, 34], prefix=[11, 12]),
    )
    assert batch.forward_mode == ForwardMode.EXTEND and batch.batch_size == 2
    assert batch.input_ids.tolist() == [7, 8, 9, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 2, 3]
    assert batch.out_cache_loc.tolist() == [21, 22, 23, 33, 34]
    assert batch.req_pool_indices.tolist() == [2, 0]
    assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [3, 4]
    assert batch.seq_lens_sum == 7 and batch.extend_num_tokens == 5
    assert batch.extend_seq_lens.tolist() == batch.extend_seq_lens_cpu == [3, 2]
    assert batch.extend_prefix_lens.tolist() == batch.extend_prefix_lens_cpu == [0, 2]
    assert batch.extend_start_loc.tolist() == [0, 3]
    rows = table(batch)
    assert rows[2] == [21, 22, 23, *[0] * 7] and rows[0] == [11, 12, 33, 34, *[0] * 6]
    assert not any(rows[1] + rows[3])
    assert not batch.return_logprob and batch.mrope_positions is None


def test_decode_reads_the_last_sampled_ids(builder):
    batch = build(builder, "decode", decode(3, 5, 45), decode(1, 2, 46, prefix=[31, 32]))
    assert batch.forward_mode == ForwardMode.DECODE
    assert batch.input_ids.tolist() == [103, 101]
    assert batch.positions.tolist() == [5, 2]
    assert batch.seq_lens.tolist() == [6, 3]
    rows = table(batch)
    assert rows[3][5] == 45 and rows[1][:3] == [31, 32, 46]
    assert batch.extend_seq_lens is None and batch.extend_num_tokens is None


@pytest.mark.parametrize("mode", ["extend", "mixed"])
def test_without_decode_works_no_sampled_id_is_read(builder, mode):
    batch = build(builder, mode, extend(2, 0, [7, 8], [21, 22]), extend(0, 0, [5], [33]))
    assert batch.input_ids.tolist() == [7, 8, 5]


def test_mixed_step_reads_sampled_ids_for_its_decode_works_only(builder):
    batch = build(
        builder, "mixed", extend(2, 1, [7, 8], [21, 22]), decode(3, 4, 45), decode(0, 6, 46)
    )
    assert batch.forward_mode == ForwardMode.MIXED
    assert batch.input_ids.tolist() == [7, 8, 103, 100]
    assert batch.positions.tolist() == [1, 2, 4, 6]
    assert batch.extend_seq_lens_cpu == [2, 1, 1]
    assert batch.extend_prefix_lens_cpu == [1, 4, 6]
    rows = table(batch)
    assert rows[2][1:3] == [21, 22] and rows[3][4] == 45 and rows[0][6] == 46


def test_what_logprobs_need(builder):
    """The first wants all but the first position's, the second none, the third those of a prompt's end."""
    options = {"return_logprob": True, "top_logprobs": 2, "token_ids_logprob": [4]}
    batch = build(
        builder,
        "mixed",
        extend(0, 0, [5, 6, 7], [1, 2, 3], input_logprob_start=1, next_prompt_token=8, **options),
        extend(1, 0, [9, 9], [4, 5]),
        extend(2, 0, [1, 2], [6, 7], return_logprob=True, input_logprob_start=0),
        decode(3, 4, 8, return_logprob=True, input_logprob_start=1),
    )
    assert batch.return_logprob
    assert batch.extend_logprob_start_lens_cpu == [1, 2, 0, 1]
    # The row of the last prompt token predicts an output: its target is a stand-in.
    assert batch.extend_input_logprob_token_ids_gpu.tolist() == [7, 8, 2, 0]
    assert batch.top_logprobs_nums == [2, 0, 0, 0]
    assert batch.token_ids_logprobs == [[4], None, None, None]
