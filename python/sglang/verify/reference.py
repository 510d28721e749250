"""The reference: a checkpoint run by transformers, in float32 with eager attention, one sequence at a time. Where transformers has no
class of the architecture, `references` has a plain decoder of our own.

Nothing is cached: every answer comes from one forward pass over the whole sequence, so no cache of transformers can be wrong with us.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.utils.hf_transformers_utils import download_from_hf, read_config_dict
from sglang.verify.references import find_reference, load_reference


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A prompt with its greedy continuation, and what the model thinks at every position of both.

    `logits` is float32 [n + k - 1, V] for n prompt and k continuation tokens; row p predicts the token at p + 1.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logits: torch.Tensor

    @property
    def scale(self) -> float:
        """The largest magnitude of a logit."""
        return float(self.logits.abs().max())

    def head(self, num_tokens: int) -> Continuation:
        """The same with the first `num_tokens` of its tokens."""
        logits = self.logits[: len(self.prompt_ids) + num_tokens - 1]
        return Continuation(self.prompt_ids, self.output_ids[:num_tokens], logits)


class ReferenceModel:
    """A causal language model of transformers, or of `references`.

    Args:
        folder: checkpoint folder.
        rope_length: rotary kinds that look at the length of the sequence (dynamic NTK, LongRoPE) choose for the whole pass. A
            server must choose once, for its context length; the reference then runs every sequence padded at its end to this
            length, which changes nothing else because attention is causal. None: sequences run as they are.

    Raises whatever transformers raises for a folder that it cannot load.
    """

    def __init__(
        self,
        folder: str,
        *,
        rope_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        raw = read_config_dict(folder)
        self.is_own = not trust_remote_code and find_reference(raw) is not None
        self.model: Any
        if self.is_own:
            self.model = load_reference(folder, raw, dtype, device)
        else:
            from transformers import AutoModelForCausalLM

            self.model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="eager",
                trust_remote_code=trust_remote_code,
            )
            self.model.eval().to(device)
        facts = read_facts(self.model.config)
        self.vocab_size = facts.vocab_size
        is_switched = facts.rope is not None and facts.rope.kind in ("dynamic", "longrope")
        self._pad_to = rope_length if is_switched and rope_length is not None else 0

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """float32 [n, V] for n tokens, on the CPU."""
        padding = [0] * max(self._pad_to - len(token_ids), 0)
        ids = torch.tensor([[*token_ids, *padding]], device=self.model.device)
        answer = self.model(ids) if self.is_own else self.model(ids, use_cache=False).logits
        return answer[0, : len(token_ids)].float().cpu()

    def greedy(
        self,
        prompt_ids: Sequence[int],
        num_tokens: int,
        draft: Sequence[int] = (),
        tie: float = 0.0,
    ) -> Continuation:
        """The `num_tokens` most likely tokens after the prompt, ties to the lowest id.

        `draft` is a guess of them. It saves time and cannot change the result but for ties: a guess is kept exactly as far as each of its
        tokens is the most likely one after all tokens before it, or less likely by at most `tie` of the largest logit (at least of 1),
        which rounding decides. That is what a greedy continuation is.
        """
        prompt, tokens = list(prompt_ids), list(draft[:num_tokens])
        while True:
            # The last token of a complete continuation predicts nothing that was asked for.
            logits = self.logits(prompt + tokens[: num_tokens - 1])
            rows = logits[len(prompt) - 1 :]
            best = rows.argmax(dim=-1).tolist()
            least = rows.max(dim=-1).values - tie * max(1.0, float(rows.abs().max()))
            wrong = (
                place
                for place, token in enumerate(tokens[: len(best)])
                if token != best[place] and not bool(rows[place, token] >= least[place])
            )
            agreed = next(wrong, min(len(tokens), len(best)))
            if agreed == num_tokens:
                return Continuation(tuple(prompt), tuple(tokens), logits)
            tokens = tokens[:agreed] + [best[agreed]]


def fetch_checkpoint(model: str, revision: str | None = None) -> str:
    """The folder of a model; of a hub id, what loading and tokenizing need. Raises ConfigError when there is none."""
    patterns = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
    folder = download_from_hf(model, [*patterns, "*.safetensors"], revision)
    if not any(Path(folder).glob("*.safetensors")):
        folder = download_from_hf(model, [*patterns, "*.bin"], revision)
    return folder
