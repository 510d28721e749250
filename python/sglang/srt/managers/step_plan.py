"""The plan of one engine step: who runs, how many tokens, in which KV slots.

A `StepPlan` is a plain value made by the scheduler and carried out by the worker. It can be logged, replayed and sent to other ranks;
it holds no tensor and no reference to a request. Slots travel as little-endian int32 bytes (`numpy.ndarray.tobytes`).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class StepError(Exception):
    """A step that could not be carried out, while later ones can; the text is for the clients of its requests."""


StepMode = Literal["extend", "decode", "mixed"]


class SamplingSpec(msgspec.Struct, kw_only=True):
    """What the sampler needs to know of a request, fixed for its life."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1 = off
    min_p: float = 0.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    min_new_tokens: int = 0
    stop_ids: list[int] = []  # masked until min_new_tokens have been produced

    @property
    def is_greedy(self) -> bool:
        return self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


class RowSetup(msgspec.Struct, kw_only=True):
    """Binds a row to a request. Sent with the first plan that uses the row, and again after a retraction."""

    row: int
    sampling: SamplingSpec
    prompt_ids: list[int]
    output_ids: list[int]  # tokens produced before a retraction


class RowWork(msgspec.Struct, kw_only=True, array_like=True):
    """One request's share of a step: positions `start .. start + num_tokens - 1`. Encoded without field names, an eighth of the size."""

    row: int
    start: int
    num_tokens: int
    token_ids: list[int] | None  # None: decode; the id is in the row's future-token buffer
    prefix_slots: (
        bytes | None
    )  # int32 slots of positions < start, when the row's table is (re)written
    new_slots: bytes  # int32 slots of the new positions
    sample: bool  # a next token is wanted
    num_outputs: int = 0  # tokens produced so far: position in the seed's stream, min_new_tokens
    return_logprob: bool = False
    input_logprob_start: int = 0  # index within this chunk; num_tokens = none wanted
    next_prompt_token: int = -1  # the prompt token after this chunk, -1 when there is none
    top_logprobs: int = 0
    token_ids_logprob: list[int] | None = None


class RowMedia(msgspec.Struct, kw_only=True):
    """The media of the request in a row. Sent to every rank with the first plan that uses the row, and after a retraction."""

    inputs: bytes  # packed by `multimodal.transport`
    padded_ids: (
        bytes  # int64 [prompt length]: the prompt with pad values in the place of media tokens
    )
    # Of a model that attends to media across: int32 slots of the encoder tokens, and (position, first, end): from that position on, until
    # the next entry, a token sees the encoder tokens first .. end - 1.
    encoder_slots: bytes = b""
    encoder_views: list[tuple[int, int, int]] = []


class StepPlan(msgspec.Struct, kw_only=True):
    """One launch of the model. Decode rows come after extend rows in a mixed step.

    Masks of grammars are no part of it: the last ones become known while its forward pass runs.
    """

    step_id: int
    mode: StepMode
    works: list[RowWork]
    setups: list[RowSetup] = []
    media: dict[int, RowMedia | None] = {}  # of every row in `setups`; None: text only

    @property
    def num_tokens(self) -> int:
        return sum(work.num_tokens for work in self.works)


class RowLogprobs(msgspec.Struct, kw_only=True):
    """Logprobs of one row of a step, natural log. Lists run over positions.

    `input_*`: one entry per prompt position asked for in this chunk, each the logprob of the *next* prompt token.
    `output`: logprob of the sampled token; `output_top`, `output_ids`: (values, ids) at the sampled position.
    """

    input: list[float] = []
    input_top: list[tuple[list[float], list[int]]] = []
    input_ids: list[list[float]] = []
    output: float | None = None
    output_token: int = -1
    output_top: tuple[list[float], list[int]] | None = None
    output_ids: list[float] | None = None


class StepResult(msgspec.Struct, kw_only=True):
    """What came back: one entry per work of the plan, in order."""

    step_id: int
    next_ids: list[int]  # -1 where nothing was sampled
    logprobs: dict[int, RowLogprobs] = {}  # by index of the work
    bad_rows: list[int] = []  # indices of works whose logits were not finite
    nan_rows: list[int] = []  # those of them with a NaN, when that is looked for
