"""Every tiny model against transformers: logits at all positions for whole, chunked and decoded prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.configs import CASES
from models.forward import HandRunner, Share, assert_close, load_model
from models.tiny import build_model, write_checkpoint

from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.verify.references import OwnReference

VOCAB = 512


def make_tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (count,), generator=generator).tolist()


@torch.inference_mode()
def reference_logits(reference: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    ids = torch.tensor([tokens])
    if isinstance(reference, OwnReference):
        return reference(ids)[0]
    return reference(ids, use_cache=False).logits[0].float()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_reference(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = write_checkpoint(name, tmp_path)
    reference = build_model(name)
    model_impl = "transformers" if case.is_fallback else "auto"
    model = load_model(folder, context_length=case.context_length, model_impl=model_impl)
    assert (type(model).__name__ == "TransformersForCausalLM") == case.is_fallback
    runner = HandRunner(model, folder)
    first, second = (make_tokens(n, seed) for seed, n in enumerate(case.prompt_lens))
    want_first = reference_logits(reference, first)
    want_second = reference_logits(reference, second)

    got = runner.step(ForwardMode.EXTEND, [Share(0, 0, first[:-1]), Share(1, 0, second[:-1])])
    assert_close(got[0], want_first[:-1], "whole prefill, request 0")
    assert_close(got[1], want_second[:-1], "whole prefill, request 1")

    last = [Share(0, len(first) - 1, first[-1:]), Share(1, len(second) - 1, second[-1:])]
    got = runner.step(ForwardMode.DECODE, last)
    assert_close(got[0], want_first[-1:], "decode, request 0")
    assert_close(got[1], want_second[-1:], "decode, request 1")

    got_head = runner.step(ForwardMode.EXTEND, [Share(2, 0, first[:17])])[0]
    got_tail, got_other = runner.step(
        ForwardMode.EXTEND, [Share(2, 17, first[17:]), Share(3, 0, second)]
    )
    assert_close(torch.cat([got_head, got_tail]), want_first, "chunked prefill")
    assert_close(got_other, want_second, "beside a chunk")
