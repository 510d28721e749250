"""The process that proves one kind: it runs the rows that it is given one after another and writes what came of each as a line of JSON."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from proof_checkpoints import write_checkpoint
from proof_judge import Said, judge
from proof_kinds import KINDS, MEDIA, TEXT, VOCAB, Kind
from proof_references import Prompt, References
from proof_rows import HALF_ONLY, Row

from sglang.srt.models.registry import ModelRegistry
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import ConfigError

NUM_TOKENS = 24
PROMPT_LENS = (5, 17, 64, 130, 300, 2)
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
OK, FAILED, DECLINED = "ok", "FAIL", "declined"
_DECLINES = (
    re.compile(r"leaves layers to another backend: (.*)"),
    re.compile(r"Short prefills are not captured: (.*)"),
)
_NOT_CAPTURED = re.compile(r"Decode steps of .* are not captured: (.*)")
_REFUSED = re.compile(r"ConfigError: (attention backend .*)")
_CAPTURED = "Capture cuda graph end"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`words` are the errors, or the reason; `notes` what the engine said that a reader must know."""

    status: str
    words: str
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Worker:
    """Proves rows of one kind. `log` is the file that everything the engines print goes to."""

    def __init__(self, kind: Kind, folder: Path, device: str, log: Path) -> None:
        self._kind = kind
        self._device = device
        self._log = log
        self._folder = str(folder)
        if not (folder / "tokenizer.json").is_file():
            write_checkpoint(kind.raw, folder, kind.task == MEDIA)
        self._references = References(self._folder, device, kind.task == MEDIA)
        self._prompts = self._make_prompts()

    def prove(self, row: Row) -> Outcome:
        """Raises whatever an engine raises."""
        started, start_of_log = time.perf_counter(), self._log.stat().st_size
        try:
            said = self._ask(row)
        except RuntimeError as error:
            refusal = _REFUSED.search(str(error))
            if row.backend in HALF_ONLY and refusal is not None:
                return Outcome(DECLINED, refusal[1])
            raise
        verdict = judge(said, self._references, row.dtype, NUM_TOKENS, self._kind.has_experts)
        status, words = OK if verdict.is_right else FAILED, verdict.words
        log = self._log.read_bytes()[start_of_log:].decode(errors="replace")
        if status == OK and row.wants_graphs and self._device != "cpu" and _CAPTURED not in log:
            reasons = _NOT_CAPTURED.findall(log) or ["the log does not say why"]
            status, words = DECLINED, f"{words}; no graphs: {reasons[0]}"
        notes = sorted({found for pattern in _DECLINES for found in pattern.findall(log)})
        return Outcome(status, words, notes, time.perf_counter() - started)

    def _make_prompts(self) -> list[Prompt]:
        if self._kind.task == MEDIA:
            from sglang.test.media_files import draw

            red, blue = draw("circle", "red"), draw("square", "blue")
            asked = [
                (f"{PLACE} what?", [red]),
                ("no picture at all", []),
                (f"{PLACE} or {PLACE}?", [red, blue]),
                (f"{PLACE} again, and a longer question behind it", [blue]),
            ]
            return [self._references.media_prompt(text, images) for text, images in asked]
        generator = torch.Generator().manual_seed(1)
        return [Prompt(tuple(_random_ids(n, generator))) for n in PROMPT_LENS]

    def _ask(self, row: Row) -> list[Said]:
        """All prompts at once with logprobs of the prompts; then, from the cache, what follows some of their answers."""
        import sglang as sgl

        engine = sgl.Engine(
            model_path=self._folder,
            device=self._device,
            skip_tokenizer_init=self._kind.task == TEXT,
            log_level="info",
            random_seed=0,
            max_total_tokens=16384,
            max_running_requests=16,
            cuda_graph_max_bs=8,
            **self._kind.flags,
            **row.flags,
        )
        try:
            said = _generate(engine, self._prompts, logprob_start_len=0)
            return said + _generate(engine, self._follow_ups(said), logprob_start_len=-1)
        finally:
            engine.shutdown()
            gc.collect()

    def _follow_ups(self, said: list[Said]) -> list[Prompt]:
        """Prompts that begin with what is cached: a conversation that goes on; pictures once more."""
        if self._kind.task == MEDIA:
            return self._prompts
        generator = torch.Generator().manual_seed(2)
        found = [
            Prompt((*item.prompt.ids, *item.output_ids[:10], *_random_ids(7, generator)))
            for item in said[:5]
        ]
        half = said[4].prompt.ids[:190]
        return [*found, Prompt((*half, *_random_ids(33, generator)))]


def _random_ids(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=generator).tolist()


def _generate(engine: Any, prompts: list[Prompt], logprob_start_len: int) -> list[Said]:
    if prompts[0].text:
        asked: dict[str, Any] = {"prompt": [prompt.text for prompt in prompts]}
        asked["image_data"] = [list(prompt.images) or None for prompt in prompts]
    else:
        asked = {"input_ids": [list(prompt.ids) for prompt in prompts]}
    answers = engine.generate(
        **asked,
        sampling_params={"temperature": 0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True},
        return_logprob=True,
        logprob_start_len=logprob_start_len,
    )
    return [_said(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _said(prompt: Prompt, answer: dict[str, Any]) -> Said:
    """Raises RuntimeError for a prompt that the engine counts otherwise than transformers."""
    meta = answer["meta_info"]
    if meta["prompt_tokens"] != len(prompt.ids):
        raise RuntimeError(
            f"the engine counts {meta['prompt_tokens']} tokens of a prompt, transformers {len(prompt.ids)}"
        )
    entries = meta.get("input_token_logprobs") or []
    is_whole = len(entries) == len(prompt.ids)
    return Said(
        prompt,
        answer["output_ids"],
        [entry[0] for entry in meta["output_token_logprobs"]],
        # Where a picture is, the engine has values of its own in the place of tokens.
        {
            position: entry[0]
            for position, entry in enumerate(entries)
            if is_whole and position > 0 and entry[1] == prompt.ids[position]
        },
    )


def why_missing(kind: Kind) -> str:
    """Why the engine does not have a kind at all; "" if it has."""
    if kind.architecture not in ModelRegistry.models:
        return f"no model file for {kind.architecture}"
    try:
        ServerArgs(model_path=kind.name, device="cpu", **kind.flags)
    except ConfigError as error:
        return str(error)
    return ""


def work(name: str, folder: Path, device: str, rows: list[Row], log: Path) -> None:
    """Writes an `Outcome` per row to standard output. What engines print goes to `log`."""
    out = os.fdopen(os.dup(1), "w")
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    kind = next(kind for kind in KINDS if kind.name == name)
    try:
        worker = Worker(kind, folder, device, log)
    except Exception as error:  # without a checkpoint or a reference all rows fail
        _send(out, [Outcome(FAILED, _describe(error))] * len(rows))
        return
    for row in rows:
        print(f"\n=== {kind.name} {row.name}", flush=True)
        try:
            outcome = worker.prove(row)
        except Exception as error:  # a row's end is not that of the others
            outcome = Outcome(FAILED, _describe(error))
        _send(out, [outcome])


def _send(out: TextIO, outcomes: list[Outcome]) -> None:
    out.writelines(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes)
    out.flush()


def _describe(error: Exception) -> str:
    import traceback

    traceback.print_exc(file=sys.stderr)
    sys.stderr.flush()
    return f"{type(error).__name__}: {error}"
