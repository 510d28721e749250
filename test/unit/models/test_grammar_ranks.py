"""The whole engine under grammars of a real library: two ranks answer like one, and an overlapped loop like a plain one."""

from __future__ import annotations

import functools
import itertools
import json
import re
import string
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from models.tiny import write_checkpoint

from sglang.srt.arg_groups.rank_place import RankPlace
from sglang.srt.constrained.xgrammar_backend import XGrammarCompiled
from sglang.srt.managers.io_struct import BatchTokenOutput, TokenizedGenerateReq
from sglang.srt.managers.output_processor import OutputProcessor
from sglang.srt.managers.planner import Planner, PlannerConfig
from sglang.srt.managers.scheduler import Scheduler, SchedulerConfig
from sglang.srt.managers.scheduler_builder import load_runner
from sglang.srt.managers.scheduler_stats import MemoryUsage, SchedulerStats
from sglang.srt.managers.stop_checker import StopChecker
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.srt.model_executor.parallel_worker import (
    FollowerWorker,
    LeaderWorker,
    open_follower_channel,
    open_leader_channel,
)
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

ROWS, SLOTS, EOS = 6, 129, 2
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]( [a-z]{3,9})?"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 120, "minimum": 0}},
        "required": ["age"],
        "additionalProperties": False,
    }
)
GREEDY = dict(temperature=0.0, max_new_tokens=24)
DRAWN = dict(temperature=1.0, top_p=0.9, sampling_seed=5, max_new_tokens=24)
ASKED = {
    "date": (list(range(10, 22)), {**GREEDY, "regex": DATE}),
    "drawn date": ([7, 8, 9], {**DRAWN, "regex": DATE, "frequency_penalty": 0.3}),
    "json": (list(range(40, 75)), {**GREEDY, "json_schema": SCHEMA}),
    "drawn json": ([5], {**DRAWN, "json_schema": SCHEMA, "min_new_tokens": 3}),
    "short": (list(range(10, 20)), {**DRAWN, "regex": "[a-z]+", "max_new_tokens": 5}),
    "free": ([1, 4, 6], {**GREEDY, "ignore_eos": True}),
    "drawn": (list(range(90, 120)), {**DRAWN, "ignore_eos": True}),
}


def vocabulary() -> list[str]:
    """512 tokens: three special ones, characters, numbers of two digits, pairs of letters."""
    characters = [c for c in string.printable if c.isprintable()]
    pairs = map("".join, itertools.product(string.ascii_lowercase, repeat=2))
    numbers = [f"{number:02d}" for number in range(100)]
    known = ["<pad>", "<s>", "</s>", *characters, *numbers]
    return known + list(itertools.islice(pairs, 512 - len(known)))


class Grammars:
    """Compiles at once."""

    def __init__(self) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo(vocabulary(), vocab_size=512, stop_token_ids=[EOS])
        compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._compile = {
            "regex": compiler.compile_regex,
            "json": functools.partial(compiler.compile_json_schema, any_whitespace=False),
        }

    def submit(self, kind: str, text: str) -> Grammars.Ready:
        return self.Ready(XGrammarCompiled(self._compile[kind](text)))

    def poll(self) -> list[Grammars.Ready]:
        return []

    class Ready:
        done = True

        def __init__(self, compiled: XGrammarCompiled) -> None:
            self.matcher = compiled.new_matcher


class Postbox:
    def __init__(self) -> None:
        self.answers: dict[str, tuple[list[int], str]] = {}

    def receive(self, timeout: float) -> list[TokenizedGenerateReq]:
        return []

    def send(self, message: BatchTokenOutput) -> None:
        for output in message.outputs:
            ids, _ = self.answers.get(output.rid, ([], ""))
            end = output.finish_reason.type if output.finish_reason else ""
            self.answers[output.rid] = (ids + output.new_ids, end)


def serve(worker, depth: int) -> dict[str, tuple[list[int], str]]:
    """All of `ASKED`, in chunks and mixed steps, some of them retracted: rid -> (ids, how it ended)."""
    cache = KVCacheManager(num_slots=SLOTS, page_size=1, max_requests=ROWS)
    planner = Planner(
        PlannerConfig(ROWS, chunk_size=16, max_prefill_tokens=64, mixed_chunk=True), cache
    )
    stops, postbox = StopChecker(None, frozenset({EOS}), 512), Postbox()
    scheduler = Scheduler(
        SchedulerConfig(
            context_len=128,
            eos_ids=frozenset({EOS}),
            vocab_size=512,
            depth=depth,
            retract_interval=7,
        ),
        planner,
        OutputProcessor(planner, stops, stream_interval=1),
        worker,
        postbox,
        Grammars(),
        SchedulerStats(MemoryUsage(0, 0), ROWS),
    )
    for rid, (prompt, options) in ASKED.items():
        params = SamplingParams(**options)
        params.normalize(None)
        scheduler._take(TokenizedGenerateReq(rid=rid, input_ids=prompt, sampling_params=params))
        scheduler.step()
    while scheduler.step() or scheduler.has_work:
        pass
    scheduler.check()
    assert planner.num_retracted > 0
    return postbox.answers


def run_rank(rank: int, size: int, folder: Path, results) -> None:
    torch.set_num_threads(1)
    place = RankPlace(size, rank, size, rank, f"file://{folder}/meet{size}", timeout=60)
    args = ServerArgs(
        model_path=str(folder),
        device="cpu",
        dtype="float32",
        tp_size=size,
        max_total_tokens=SLOTS - 1,
        max_running_requests=ROWS,
        skip_tokenizer_init=True,
    )
    runner = load_runner(args, place)[-1]
    if rank:
        follower, channel = FollowerWorker(runner), open_follower_channel(place)
        while (frame := channel.receive()) is not None:
            follower.carry_out(frame)
        follower.close()
        return
    worker = TpWorker(runner, seed=0)
    if size > 1:
        worker = LeaderWorker(worker, open_leader_channel(place))
    for depth in (0, 1):
        results[size, depth] = serve(worker, depth)
    worker.close()


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[tuple[int, int], dict[str, tuple[list[int], str]]]:
    """(ranks, depth) -> rid -> (ids, how it ended)."""
    folder = write_checkpoint("qwen3-tied", tmp_path_factory.mktemp("model"))
    context = mp.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        for size in (1, 2):
            jobs = [(rank, size, folder, results) for rank in range(size)]
            ranks = [context.Process(target=run_rank, args=job) for job in jobs]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(60)
            assert [process.exitcode for process in ranks] == [0] * size
        return dict(results)


@pytest.mark.parametrize("way", [(1, 1), (2, 0), (2, 1)])
def test_answers_do_not_depend_on_ranks_and_depth(answers, way):
    assert answers[way] == answers[1, 0]


def test_answers_follow_their_grammars(answers):
    found = answers[2, 1]
    texts = {
        rid: "".join(vocabulary()[i] for i in ids if i != EOS) for rid, (ids, _) in found.items()
    }
    for rid in ("date", "drawn date"):
        assert found[rid][1] == "stop" and re.fullmatch(DATE, texts[rid])
    for rid in ("json", "drawn json"):
        assert found[rid][1] == "stop" and 0 <= json.loads(texts[rid])["age"] <= 120
    assert re.fullmatch("[a-z]+", texts["short"])
    assert [len(found[rid][0]) for rid in ("free", "drawn")] == [24, 24]
