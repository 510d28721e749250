"""The forms on tensor-parallel ranks: processes on this CPU, each with its slice of the model, meeting through gloo.

Every rank plans and samples for itself. Plans are a function of tokens, and tokens of logits that all ranks gather, so that the ranks
stay together; how a served engine keeps them together is proven elsewhere (`test/e2e/test_tensor_parallel.py`).
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import torch

from sglang.srt.distributed import (
    destroy_distributed_environment,
    init_distributed_environment,
    initialize_model_parallel,
)
from sglang.srt.distributed.rendezvous import stay_on_loopback
from sglang.srt.models.registry import ModelRegistry
from sglang.verify.comparison import Difference, compare_trace
from sglang.verify.forms import Ask, Form, Material
from sglang.verify.proof import FormResult, Proof, play_form, result_of
from sglang.verify.subject import Schedule, Session, Subject, SubjectConfig, Trace

TP_SIZES = (2, 4)
# Chunks, a prefix from the cache, prefill beside decode, and batches of decode steps, in few steps: collectives are slow on busy cores.
TP_FORM = Form(
    "chunks, cached prefix and mixed decode",
    (
        Ask("long", num_tokens=8),
        Ask("fork", None, num_tokens=8),
        Ask("short", 2, num_tokens=8),
        Ask("single", num_tokens=8),
    ),
    Schedule(chunk_size=16, mixed_chunk=True),
)
# The same for a model that takes media.
TP_MEDIA_FORM = Form(
    "images beside text, chunks and mixed decode",
    (
        Ask("two images", num_tokens=6),
        Ask("short", num_tokens=6),
        Ask("image", 2, num_tokens=6),
        Ask("image", None, num_tokens=3),
    ),
    Schedule(chunk_size=16, mixed_chunk=True),
)
# Seconds: a rank that waits longer for the others has lost them.
_PATIENCE = 120.0


class RanksFailed(RuntimeError):
    """A rank raised, or ended; the message is the rank's."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What all ranks do: load `folder` as `tp_size` ranks and play the forms."""

    folder: str
    config: SubjectConfig
    tp_size: int
    forms: tuple[Form, ...]
    material: Material
    media: Mapping[str, bytes]  # packed, by the name of the prompt


class Ranks:
    """Processes that wait for jobs; use it as a context manager. They are started with the first job, and again after one failed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def play(self, job: Job) -> list[list[Trace]]:
        """For every form of the job, the traces of its requests as rank 0 saw them. Raises RanksFailed."""
        assert job.tp_size <= self.count, f"{job.tp_size} ranks of {self.count} processes"
        if not self._processes:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            meeting = (Path(folder) / "meeting").as_uri()
            waiting = self._connections[: job.tp_size]
            try:
                for connection in waiting:
                    connection.send((meeting, job))
                answers = _collect(waiting)
            except RanksFailed:
                self.close()
                raise
        for rank, answer in enumerate(answers):
            if _tokens(answer) != _tokens(answers[0]):
                raise RanksFailed(f"rank {rank} of {job.tp_size} produced other tokens than rank 0")
        return answers[0]

    def close(self) -> None:
        """End the processes; safe to call twice."""
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        models = ModelRegistry.assigned_paths()
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, models), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._processes.append(process)
            self._connections.append(ours)


def prove_on_ranks(
    ranks: Ranks, proof: Proof, tp_size: int, forms: Sequence[Form] | None = None
) -> list[FormResult]:
    """The forms (None: those above that the model has) on `tp_size` ranks against the proof's reference. Raises RanksFailed."""
    media = proof.packed_media()
    if forms is None:
        forms = (TP_FORM, TP_MEDIA_FORM) if {"image", "two images"} <= media.keys() else (TP_FORM,)
    bare = tuple(dataclasses.replace(form, expects=()) for form in forms)
    job = Job(proof.folder, proof.config, tp_size, bare, proof.material, media)
    results = []
    for form, traces in zip(forms, ranks.play(job), strict=True):
        found = Difference()
        for place, (ask, trace) in enumerate(zip(form.asks, traces, strict=True)):
            compare_trace(f"{place}-{ask.prompt}", trace, proof.expect(ask, trace), found)
        results.append(result_of(f"{form.name}, {tp_size} ranks", found, f"{tp_size} ranks"))
    return results


def possible_sizes(num_heads: int) -> list[int]:
    """The sizes of `TP_SIZES` that divide the query heads; others are refused when the model is loaded."""
    return [size for size in TP_SIZES if num_heads % size == 0]


def _collect(connections: Sequence[Connection]) -> list[list[list[Trace]]]:
    """One answer per rank, in order. The first rank that fails is the reason of all."""
    answers: dict[int, list[list[Trace]]] = {}
    waiting = {connection: rank for rank, connection in enumerate(connections)}
    while waiting:
        ready = wait_for_any(list(waiting), timeout=_PATIENCE)
        if not ready:
            raise RanksFailed(
                f"no answer for {_PATIENCE:.0f} s from ranks {list(waiting.values())}"
            )
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            try:
                failure, answers[rank] = connection.recv()
            except EOFError:
                raise RanksFailed(f"rank {rank} ended") from None
            if failure:
                raise RanksFailed(f"rank {rank}: {failure}")
    return [answers[rank] for rank in range(len(connections))]


def _tokens(answer: list[list[Trace]]) -> list[list[list[int]]]:
    return [[trace.output_ids for trace in traces] for traces in answer]


# --- in the processes


def _serve(connection: Connection, rank: int, models: dict[str, str]) -> None:
    """Jobs until the other end closes."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    stay_on_loopback()
    ModelRegistry.adopt(models)
    while True:
        try:
            meeting, job = connection.recv()
        except EOFError:
            return
        failure, answer = "", []
        try:
            answer = _play(job, rank, meeting)
        except Exception as error:  # a process boundary: the model file may raise anything
            failure = f"{type(error).__name__}: {error}"
        connection.send((failure, answer))


def _play(job: Job, rank: int, meeting: str) -> list[list[Trace]]:
    init_distributed_environment(job.tp_size, rank, meeting, rank, "gloo", _PATIENCE)
    try:
        initialize_model_parallel(job.tp_size)
        subjects: dict[int, Subject] = {}
        answer = []
        for form in job.forms:
            page_size = form.page_size
            if page_size not in subjects:
                config = dataclasses.replace(job.config, page_size=page_size)
                subjects[page_size] = Subject(job.folder, config)
            session = subjects[page_size].session(form.schedule)
            _play_form(form, session, job)
            answer.append([_sendable(trace, rank) for trace in session.traces.values()])
        return answer
    finally:
        destroy_distributed_environment()


def _play_form(form: Form, session: Session, job: Job) -> None:
    material = job.material

    def submit(rid: str, ask: Ask, prompt: list[int]) -> None:
        media = job.media.get(ask.prompt)
        session.submit(rid, prompt, material.num_tokens_of(ask), ask.logprobs, media)

    play_form(form, session, material, submit)


def _sendable(trace: Trace, rank: int) -> Trace:
    """Without logits from ranks other than 0."""
    return trace if rank == 0 else dataclasses.replace(trace, pieces=[])
