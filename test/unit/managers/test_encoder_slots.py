"""Encoder tokens of media beside the tokens of requests: random events on a scripted worker, and what does not fit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scripted import ScriptedWorker, World, expected_output, random_prompt

from sglang.srt.managers.io_struct import AbortReq, FlushCacheReply, FlushCacheReq
from sglang.srt.managers.io_struct import TokenizedGenerateReq as Request
from sglang.srt.managers.step_plan import RowMedia
from sglang.srt.multimodal.intake import RequestMedia
from sglang.srt.sampling.sampling_params import SamplingParams


class Intake:
    """Media are a number of encoder tokens."""

    def take(self, packed: bytes, input_ids: list[int]) -> RequestMedia:
        ids = np.asarray(input_ids, np.int64).tobytes()
        sent = RowMedia(inputs=packed, padded_ids=ids)
        return RequestMedia(sent, input_ids, len(input_ids), [], int(packed))


class EncoderWorker(ScriptedWorker):
    """Marks encoder slots with the first plan of a request and looks at them with every other one."""

    def __init__(self, rows: int, width: int, num_slots: int) -> None:
        super().__init__(rows, width, num_slots)
        self.marked: dict[int, tuple[list[int], tuple]] = {}
        self.num_marked = 0

    def forward(self, plan):
        for row, media in plan.media.items():
            self.marked.pop(row, None)
            if media is None:
                continue
            slots = np.frombuffer(media.encoder_slots, np.int32).tolist()
            assert len(slots) == len(set(slots)) == int(media.inputs) and 0 not in slots
            self.num_marked += len(slots)
            self.marked[row] = slots, ("encoder", row, self.num_marked)
            for slot in slots:
                self.cells[slot] = self.marked[row][1]
        super().forward(plan)

    def _run(self, work) -> int:
        slots, mark = self.marked.get(work.row, ([], None))
        assert all(self.cells[slot] is mark for slot in slots), f"row {work.row} lost its encoder"
        return super()._run(work)


def make_world(**shape) -> World:
    world = World(**shape)
    page_size = shape.get("page_size", 1)
    num_slots = shape.get("num_slots", 256) + page_size
    world.worker = EncoderWorker(shape.get("rows", 8), shape.get("width", 128), num_slots)
    world.scheduler.worker, world.scheduler.media = world.worker, Intake()
    return world


def submit(world: World, rid: str, prompt: list[int], max_new: int, count: int) -> None:
    params = SamplingParams(max_new_tokens=max_new, ignore_eos=True)
    params.normalize(None)
    media = str(count).encode() if count else None
    world.postbox.inbox.append(
        Request(rid=rid, input_ids=prompt, sampling_params=params, mm_inputs=media)
    )


def room_of(world: World, prompt: list[int], count: int) -> int:
    return world.cache.capacity - world.cache.whole_pages(count) - len(prompt)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(depth=1, chunk_size=None),
        dict(page_size=16, depth=1, num_slots=320),
        dict(mixed_chunk=True, depth=1, page_size=4),
        dict(num_slots=160, depth=1, rows=16),
        dict(num_slots=176, page_size=16, rows=8, mixed_chunk=True),
        dict(prefix_cache=False),
    ],
    ids=str,
)
def test_random_events(shape, seed):
    """Slots are neither lost nor shared nor overwritten; text and media share prefixes; `World.turn` audits the pool every time."""
    rng = random.Random(seed * 7919 + len(str(shape)))
    world = make_world(**shape)
    families = [[rng.randrange(97) for _ in range(40)] for _ in range(3)]
    asked: dict[str, tuple[list[int], int, int]] = {}
    aborted: set[str] = set()
    for event in range(250):
        kind = rng.random()
        if kind < 0.25:
            rid, prompt = f"r{event}", random_prompt(rng, families, 60)
            asked[rid] = prompt, rng.choice([1, 2, 8, 25]), rng.choice([0, 0, 1, 7, 16, 40, 110])
            submit(world, rid, *asked[rid])
        elif kind < 0.3 and asked:
            rid = rng.choice(list(asked))
            world.postbox.inbox.append(AbortReq(rid=rid, exact=True))
            aborted.add(rid)
        world.turn()
    world.run_until_idle()
    assert world.worker.num_marked > 0
    outputs = world.outputs()
    assert set(outputs) == set(asked)
    for rid, (prompt, max_new, count) in asked.items():
        ids, reason = outputs[rid]
        room = room_of(world, prompt, count)
        want = expected_output(prompt, min(max_new, max(room, 0)), False)
        if reason["type"] == "abort":
            assert rid in aborted or (room < 1 and reason["status_code"] == 400)
            assert ids == want[: len(ids)]
        else:
            assert ids == want, rid
    world.postbox.inbox.append(FlushCacheReq(call_id="end"))
    world.turn()
    assert [m for m in world.postbox.sent if isinstance(m, FlushCacheReply)][-1].success
    assert world.cache.num_available() == world.cache.capacity


def test_retraction_gives_back_and_takes_again():
    world = make_world(num_slots=128, rows=8, depth=1)
    for index in range(6):
        submit(world, f"r{index}", [index, 5, 6, 7], 30, 12)
    world.planner.ratio.value = 0.0  # admit everyone: the pool must run dry
    world.run_until_idle()
    assert world.planner.num_retracted > 0
    assert world.worker.num_marked == 12 * (6 + world.planner.num_retracted)
    for index in range(6):
        want = expected_output([index, 5, 6, 7], 30, False)
        assert world.outputs()[f"r{index}"][0] == want


def test_what_fits_nowhere_is_refused_and_what_fits_alone_runs():
    world = make_world(num_slots=112, page_size=16, width=128)
    submit(world, "context", [1, 2], 4, 129)
    submit(world, "pool", [1, 2], 4, 95)
    submit(world, "alone", [1, 2], 30, 65)  # five pages of six
    submit(world, "text", [1, 2, 4], 4, 0)
    world.run_until_idle()
    outputs = world.outputs()
    for rid, words in (("context", "129 encoder tokens; at most 128"), ("pool", "of 95 do not")):
        assert outputs[rid][1]["status_code"] == 400
        assert words in outputs[rid][1]["message"]
    assert len(outputs["alone"][0]) == room_of(world, [1, 2], 65) == 14
    assert outputs["text"][0] == expected_output([1, 2, 4], 4, False)
