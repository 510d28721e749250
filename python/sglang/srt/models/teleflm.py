"""Tele-FLM 52B; published as code, architecture `TeleFLMForCausalLM` (arXiv 2404.16645).

    h0 = i * embed(token);  logits = head(h) * o / s

Differs from Llama by muP's factors, with `use_mup`: `input_mult` i, `output_mult` o and `mup_scale_factor` s.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.models.llama import LlamaForCausalLM, LlamaModel


class TeleFLMModel(LlamaModel):
    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embed_tokens(input_ids)
        return embedded * self.config.input_mult if self.config.use_mup else embedded


class TeleFLMForCausalLM(LlamaForCausalLM):
    model_cls = TeleFLMModel

    def logit_scale(self, config: Any) -> float | None:
        return config.output_mult / config.mup_scale_factor if config.use_mup else None


EntryClass = TeleFLMForCausalLM
