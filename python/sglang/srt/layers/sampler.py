"""From logits to next tokens.

    l = bias(penalties(logits)); l = mask(l)            stop ids below min_new_tokens, then the grammar
    p = softmax(l / temperature)                        logprobs are of this distribution
    next ~ min_p(top_p(top_k(p)))                       each measured on p, not renormalised in between

Drawing is an exponential race: argmax_t p_t / q_t with q_t ~ Exp(1) picks t with probability p_t / sum(p). Noise q of a request
with a seed is a pure function of (seed, number of its outputs, token id), see `seeded_noise`; the rest comes from one generator.
B: sampled rows, V: vocabulary, K: candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.managers.step_plan import RowLogprobs
from sglang.srt.platforms import Platform
from sglang.srt.sampling.penalties import PenaltyBatch
from sglang.srt.sampling.sampling_batch import (
    GrammarMask,
    LogprobRequest,
    SamplingBatch,
    SamplingColumns,
)

if TYPE_CHECKING:
    from sglang.srt.layers.triton_ops.choose_kept import KeptDraw

# Up to this top_k a partial selection is cheaper than sorting the vocabulary.
_MAX_PARTIAL_TOP_K = 1024
# Rows of smaller vocabularies are filtered by sorting them.
_MIN_KERNEL_VOCAB = 1024


class Sampler(nn.Module):
    """Chooses the next token of every sampled row. Has no parameters; owns the generator of unseeded rows.

    Args:
        seed: start of the generator (`--random-seed`); equal on all ranks, so that they draw the same tokens.
        return_original_logprob: logprobs before the temperature is applied.
        check_nan: look for NaN before masks can hide one.
    """

    def __init__(
        self, seed: int = 0, *, return_original_logprob: bool = False, check_nan: bool = False
    ) -> None:
        super().__init__()
        self._seed = seed
        self._return_original_logprob = return_original_logprob
        self._check_nan = check_nan
        self._generators: dict[torch.device, torch.Generator] = {}
        self._num_draws = 0

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, batch: SamplingBatch) -> SampleOutput:
        """Sample one token per line.

        Args:
            logits: [B, V] float32; overwritten.
            batch: from `SamplingTable.batch`, lines in the same order.

        Rows whose logits hold a NaN or leave nothing to choose are flagged in `bad`; their id is valid but meaningless.
        Nothing here waits for the device.
        """
        nan = logits.isnan().any(dim=-1) if self._check_nan else None
        output = self._sample(logits, batch)
        output.nan = nan
        return output

    def _sample(self, logits: torch.Tensor, batch: SamplingBatch) -> SampleOutput:
        edit_logits(logits, batch)
        columns, logprobs = batch.columns, None
        if batch.logprobs is not None:  # first: drawing scales the logits in place
            scaled = self._logprob_logits(logits, batch.logprobs, columns)
        next_ids, bad = self.choose(logits, batch)
        if batch.logprobs is not None:
            logprobs = _compute_logprobs(scaled, next_ids, batch.logprobs)
        if columns.penalties is not None:
            columns.penalties.record(next_ids)
        return SampleOutput(next_ids=next_ids, bad=bad, logprobs=logprobs)

    def choose(
        self, logits: torch.Tensor, batch: SamplingBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B] int64, and whether a row is bad [B] bool, of edited logits, which are overwritten."""
        choose = self._choose_in_kernels if self._suits_kernel(logits, batch) else self._choose
        return choose(logits, batch)

    def _choose(
        self, logits: torch.Tensor, batch: SamplingBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`choose` in plain torch, by sorting."""
        best, next_ids = logits.max(dim=-1)  # a NaN is its row's maximum
        bad, columns = ~torch.isfinite(best), batch.columns
        if columns.all_greedy:
            return next_ids, bad
        drawn = self._draw(logits, batch)
        if not columns.any_greedy:
            return drawn, bad
        assert columns.top_k is not None, "a batch that is drawn from has its columns"
        return torch.where(columns.top_k[:, 0] == 1, next_ids, drawn), bad

    def _suits_kernel(self, logits: torch.Tensor, batch: SamplingBatch) -> bool:
        """Do kernels choose, without a sort? Sorting a small vocabulary is cheaper than launching the four that filter."""
        if not logits.is_cuda or not has_triton():
            return False
        columns = batch.columns
        is_plain = columns.all_greedy or not (_is_filtered(columns) or columns.seeded_list)
        return is_plain or logits.shape[1] >= _MIN_KERNEL_VOCAB

    def _choose_in_kernels(
        self, logits: torch.Tensor, batch: SamplingBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`choose` without a sort."""
        from sglang.srt.layers.triton_ops.choose import Draw, choose_tokens
        from sglang.srt.layers.triton_ops.choose_kept import choose_kept

        columns = batch.columns
        if columns.all_greedy:
            return choose_tokens(logits)
        assert columns.top_k is not None, "a batch that is drawn from has its columns"
        self._num_draws += 1
        if _is_filtered(columns) or columns.seeded_list:
            return choose_kept(logits, kept_draw(batch, self._draw_seed()))
        return choose_tokens(logits, Draw(columns.temperature, columns.top_k, self._draw_seed()))

    def _draw_seed(self) -> int:
        """A seed for every step, 31 bits: a counter would make neighbouring starts draw alike."""
        mixed = (self._seed * 0x9E3779B97F4A7C15 + self._num_draws) & _MASK64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
        return (mixed ^ (mixed >> 31)) & 0x7FFFFFFF

    def _logprob_logits(
        self, logits: torch.Tensor, request: LogprobRequest, columns: SamplingColumns
    ) -> torch.Tensor:
        """A copy [n, V] of the lines that want logprobs, divided by their temperature."""
        scaled = logits.clone() if request.line is None else logits[request.line]
        if columns.temperature is None or self._return_original_logprob:
            return scaled
        temperature = columns.temperature
        return scaled.div_(temperature if request.line is None else temperature[request.line])

    def _draw(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """Ids [B] int64 drawn at random; scales `logits` in place."""
        columns = batch.columns
        if columns.temperature is not None:
            logits.div_(columns.temperature)
        if columns.max_top_k <= _MAX_PARTIAL_TOP_K:
            return self._draw_from_sorted(logits, batch, columns.max_top_k)
        if columns.needs_top_k or columns.needs_top_p:
            return self._draw_from_sorted(logits, batch, logits.shape[-1])
        probs = torch.softmax(logits, dim=-1)
        if columns.needs_min_p:
            assert columns.min_p is not None, "min_p is a column of every drawn batch"
            probs.masked_fill_(probs < probs.amax(dim=-1, keepdim=True) * columns.min_p, 0.0)
        return self._race(probs, None, batch)

    def _draw_from_sorted(
        self, logits: torch.Tensor, batch: SamplingBatch, width: int
    ) -> torch.Tensor:
        """Draw from the `width` most likely tokens, after the filters."""
        probs = torch.softmax(logits, dim=-1)
        if width < logits.shape[-1]:
            probs, token_ids = probs.topk(width, dim=-1)  # [B, K], best first
        else:
            probs, token_ids = probs.sort(dim=-1, descending=True, stable=True)
        _filter_sorted(probs, batch.columns)
        choice = self._race(probs, token_ids, batch)
        return token_ids.gather(1, choice.unsqueeze(1)).squeeze(1)

    def _race(
        self, probs: torch.Tensor, token_ids: torch.Tensor | None, batch: SamplingBatch
    ) -> torch.Tensor:
        """Index [B] of the winner in `probs` [B, K]; `token_ids` [B, K] names its tokens (None: 0 .. K-1)."""
        columns = batch.columns
        seeded = columns.seeded
        if seeded is not None and len(columns.seeded_list) == probs.shape[0]:
            ids = _token_range(probs) if token_ids is None else token_ids
            noise = seeded_noise(columns.seeds, batch.seed_positions(), ids)
            return (probs / noise).argmax(dim=-1)
        # Line by line from one stream: what a line draws depends on the lines before it, as it may.
        noise = torch.empty_like(probs).exponential_(1.0, generator=self._generator(probs.device))
        noise.clamp_(min=torch.finfo(noise.dtype).tiny)
        if seeded is not None:
            ids = _token_range(probs) if token_ids is None else token_ids[seeded]
            noise[seeded] = seeded_noise(columns.seeds, batch.seed_positions(), ids)
        return (probs / noise).argmax(dim=-1)

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device)
        if generator is None:
            generator = torch.Generator(device=device)
            generator.manual_seed(self._seed)
            self._generators[device] = generator
        return generator


def create_sampler() -> Sampler:
    """A sampler with the default settings, for model files that hold one."""
    return Sampler()


@dataclasses.dataclass
class SampleOutput:
    """Result of one step, on the device."""

    next_ids: torch.Tensor  # [B] int64
    bad: torch.Tensor  # [B] bool: not finite, or nothing allowed
    logprobs: SampleLogprobs | None
    nan: torch.Tensor | None = None  # [B] bool: a NaN before the edits; None when not looked for


@dataclasses.dataclass
class SampleLogprobs:
    """Logprobs of the lines that asked, on the device; natural log."""

    request: LogprobRequest
    chosen: torch.Tensor  # [n] float32
    top_values: torch.Tensor | None  # [n, K] float32, best first
    top_ids: torch.Tensor | None  # [n, K] int64
    given: torch.Tensor | None  # [n, G] float32

    def download(self, platform: Platform) -> Callable[[], dict[int, RowLogprobs]]:
        """Queue copies to the host. The function returned waits for them; keys are lines of the sampled batch."""
        names = [name for name in _ON_THE_DEVICE if getattr(self, name) is not None]
        wait = platform.download(*(getattr(self, name) for name in names))
        return lambda: self._rows_of(
            **{name: host.tolist() for name, host in zip(names, wait(), strict=True)}
        )

    def _rows_of(
        self,
        chosen: list[float],
        top_values: list[list[float]] | None = None,
        top_ids: list[list[int]] | None = None,
        given: list[list[float]] | None = None,
    ) -> dict[int, RowLogprobs]:
        request, rows = self.request, {}
        for j, line in enumerate(request.lines):
            row = rows[line] = RowLogprobs(output=chosen[j])
            top_count, given_count = request.top_counts[j], request.given_counts[j]
            if top_count and top_values is not None and top_ids is not None:
                row.output_top = (top_values[j][:top_count], top_ids[j][:top_count])
            if given_count is not None:
                row.output_ids = given[j][:given_count] if given is not None else []
        return rows


_ON_THE_DEVICE = ("chosen", "top_values", "top_ids", "given")


def kept_draw(batch: SamplingBatch, seed: int) -> KeptDraw:
    """What `choose_kept` needs of a batch that is drawn from; `seed` is the step's."""
    from sglang.srt.layers.triton_ops.choose_kept import KeptDraw

    columns = batch.columns
    assert columns.top_k is not None and columns.top_p is not None and columns.min_p is not None
    seeds = positions = None
    if columns.seeded is not None:
        assert columns.seeds is not None, "seeded lines have seeds"
        seeds, positions = columns.seeds, batch.seed_positions()
        num_rows = columns.top_k.shape[0]
        if len(columns.seeded_list) < num_rows:
            absent = seeds.new_full((num_rows,), -1)
            seeds = absent.index_copy(0, columns.seeded, seeds)
            positions = absent.index_copy_(0, columns.seeded, positions)
    return KeptDraw(
        columns.temperature,
        columns.top_k,
        columns.top_p,
        columns.min_p,
        seed,
        seeds,
        positions,
        is_filtered=_is_filtered(columns),
    )


def _is_filtered(columns: SamplingColumns) -> bool:
    return columns.needs_top_k or columns.needs_top_p or columns.needs_min_p


def seeded_noise(
    seeds: torch.Tensor | None, positions: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Exp(1) noise [S, K] float32 that depends on nothing but (seed, position, token id).

    Args:
        seeds, positions: [S] int64; all 64 bits of a seed count, positions are non-negative.
        token_ids: [S, K] or [1, K] int64.

    A 32-bit integer mixer m (two rounds of xor-shift and multiply) makes two keys per line from the seed's halves,
    a = m(m(m(lo ^ c0) ^ hi) ^ pos) and b = m(m(m(hi ^ c1) ^ lo) ^ (pos + c2)); a token's bits are h = m(m(token ^ a) + b). With
    u = (h + 1/2) / 2^32 the noise is -log(1 - u), which keeps its relative precision near zero, where races are won.
    """
    assert seeds is not None, "seeded lines have seeds"
    low, high = seeds & _MASK32, (seeds >> 32) & _MASK32
    positions = positions & _MASK32
    key_a = _mix(_mix(_mix(low ^ 0x243F6A88) ^ high) ^ positions)
    key_b = _mix(_mix(_mix(high ^ 0x85A308D3) ^ low) ^ ((positions + 0x13198A2E) & _MASK32))
    bits = _mix((_mix(token_ids ^ key_a[:, None]) + key_b[:, None]) & _MASK32)
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-32
    # The largest bits round up to one, which would make infinite noise.
    return uniform.clamp_(max=1.0 - 2.0**-24).neg_().log1p_().neg_()


_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit values with good avalanche; both factors are below 2^31, so int64 cannot overflow."""
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & _MASK32
    return x ^ (x >> 15)


def _token_range(probs: torch.Tensor) -> torch.Tensor:
    return torch.arange(probs.shape[-1], device=probs.device).unsqueeze(0)


def edit_logits(logits: torch.Tensor, batch: SamplingBatch) -> None:
    """Penalties, bias and masks, in this order, in place in `logits` [B, V] float32."""
    columns = batch.columns
    in_kernels = logits.is_cuda and has_triton()
    if columns.penalties is not None:
        penalize = _penalize_in_kernels if in_kernels else PenaltyBatch.apply
        penalize(columns.penalties, logits)
    if columns.bias is not None:
        bias = columns.bias
        logits.index_put_((bias.line, bias.token), bias.value, accumulate=True)
    if batch.forbidden is not None:
        # A number would be copied from the host, and the copy waited for.
        logits.index_put_(batch.forbidden, logits.new_full((), -torch.inf))
    if batch.grammar is not None:
        _apply_grammar_mask(logits, batch.grammar, in_kernels)


def _penalize_in_kernels(penalties: PenaltyBatch, logits: torch.Tensor) -> None:
    """As `PenaltyBatch.apply`, one pass for each kind."""
    from sglang.srt.layers.triton_ops.edit_logits import penalize_outputs, penalize_repetition

    if penalties.repetition is not None:
        penalize_repetition(logits, penalties.repetition)
    if penalties.outputs is not None:
        penalize_outputs(logits, penalties.outputs)


def _apply_grammar_mask(logits: torch.Tensor, mask: GrammarMask, in_kernels: bool) -> None:
    """Forbid tokens whose bit is clear; tokens beyond the mask are forbidden too."""
    if in_kernels:
        from sglang.srt.layers.triton_ops.edit_logits import forbid_unset

        forbid_unset(logits, mask.packed, mask.line)
        return
    forbidden = unpack_mask(mask.packed, logits.shape[-1]).logical_not_()
    if mask.line is None:
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        logits[mask.line] = logits[mask.line].masked_fill_(forbidden, -torch.inf)


def unpack_mask(packed: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Bits of `packed` [n, W] int32 as bool [n, vocab_size]; token t is bit t % 32 of word t // 32."""
    shifts = torch.arange(32, dtype=torch.int32, device=packed.device)
    bits = ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1).bool()
    missing = vocab_size - bits.shape[1]
    return nn.functional.pad(bits, (0, missing)) if missing > 0 else bits[:, :vocab_size]


def _filter_sorted(probs: torch.Tensor, columns: SamplingColumns) -> None:
    """Zero what top-k, top-p and min-p exclude from `probs` [B, K], sorted best first. The best stays."""
    if columns.needs_top_k:
        assert columns.top_k is not None, "top_k is a column of every drawn batch"
        rank = torch.arange(probs.shape[-1], device=probs.device)
        excluded = rank >= columns.top_k
    else:
        excluded = torch.zeros_like(probs, dtype=torch.bool)
    if columns.needs_top_p:
        assert columns.top_p is not None, "top_p is a column of every drawn batch"
        # A token stays while the ones before it have not reached top_p.
        excluded |= (probs.cumsum(dim=-1) - probs) >= columns.top_p
    if columns.needs_min_p:
        assert columns.min_p is not None, "min_p is a column of every drawn batch"
        excluded |= probs < probs[:, :1] * columns.min_p
    excluded[:, 0] = False
    probs.masked_fill_(excluded, 0.0)


def _compute_logprobs(
    scaled: torch.Tensor, next_ids: torch.Tensor, request: LogprobRequest
) -> SampleLogprobs:
    logprobs = torch.log_softmax(scaled, dim=-1)  # [n, V]
    chosen_ids = next_ids if request.line is None else next_ids[request.line]
    width = min(max(request.top_counts), logprobs.shape[-1])
    top_values = top_ids = None
    if width:
        top_values, top_ids = logprobs.topk(width, dim=-1)
    return SampleLogprobs(
        request=request,
        chosen=logprobs.gather(1, chosen_ids.unsqueeze(1)).squeeze(1),
        top_values=top_values,
        top_ids=top_ids,
        given=None if request.given is None else logprobs.gather(1, request.given),
    )
