"""Which kernels steps ask for, against those that were launched ahead, by Triton's own specialisation. Nothing is compiled.

Run by `test_kernel_forms.py` in a process of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from rehearsal_cases import Driver
from triton.runtime import driver

from sglang.srt.layers import sampler as sampler_module
from sglang.srt.layers import sampling_forms
from sglang.srt.layers.attention import finite_values
from sglang.srt.layers.attention.triton_ops.finite_values import move_to_keys_in_place
from sglang.srt.layers.moe import fused_experts, tiles
from sglang.srt.layers.moe.fused_experts import run_fused
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.kernel_forms import launch_expert_forms
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.sampler import Sampler
from sglang.srt.layers.triton_ops.norm_rope import norm_rope_store
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.model_executor.kernel_rehearsal import KernelRehearsal
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_batch import SamplingTable

# Launched by every forward, whatever the number of tokens.
OF_EVERY_STEP = {"_add_up_kernel"}
VOCAB = 5000


def noted(call: Callable[[], Any]) -> set[tuple[str, str, str]]:
    rehearsal = KernelRehearsal()
    with rehearsal.pretend():
        call()
    return set(rehearsal._found)


def say(what: str, asked: set[tuple[str, str, str]], ahead: set[tuple[str, str, str]]) -> None:
    missing = {name for _, name, _ in asked - ahead} - OF_EVERY_STEP
    print(f"{what}: {len(asked) > 0}, missing {sorted(missing)}")


def experts(
    what: str, counts: Iterable[int], top_k: int, num_experts: int, **settings: Any
) -> None:
    """`counts` are numbers of tokens of steps."""
    layers = [
        FusedMoE(num_experts, 96, 40, layer_id, top_k, params_dtype=torch.bfloat16, **settings)
        for layer_id in range(2)
    ]
    first, second = layers[0].quant_method.get_matrices(layers[0])

    def steps() -> None:
        for count in counts:
            x = torch.zeros(count, 96, dtype=torch.bfloat16)
            ids = torch.zeros(count, top_k, dtype=torch.int32)
            run_fused(x, first, second, ids.float(), ids, layers[0].moe_runner_config)

    most = max(counts)
    ahead = noted(lambda: launch_expert_forms(torch.nn.ModuleList(layers[:1]), most))
    both = noted(lambda: launch_expert_forms(torch.nn.ModuleList(layers), most))
    assert ahead == both, "layers that are alike have the same kernels"
    say(f"experts {what}", noted(steps), ahead)


def all_experts() -> None:
    fused_experts._is_gpu = lambda device: True
    few = [*range(1, 50), *range(50, 1500, 47), 4000]
    experts("by the rule", few, 2, 8)
    experts("weighted before", [*range(1, 40), 700, 3000], 4, 20, apply_router_weight_on_input=True)
    experts("unsummed", [*range(1, 40), 700, 3000], 1, 20, no_combine=True)
    tiles.TUNED[8, 96, 40, True, 2, 2] = {
        8: (1, (1, 64, 1, 4, 1), (2, 64, 1, 4, 1)),
        100: (16, (16, 32, 1, 4, 2), (16, 32, 1, 4, 2)),
        1000: (64, (32, 32, 1, 4, 2), (16, 32, 1, 4, 2)),
        5000: (128, (32, 32, 1, 4, 3), (16, 32, 1, 4, 2)),
    }
    tiles.choose_tiles.cache_clear()
    experts("as measured", few, 2, 8)


def random_spec(draws: bool, seeded: bool, penalized: bool, temperature: float) -> SamplingSpec:
    return SamplingSpec(
        temperature=random.choice([1.0, temperature]),
        top_k=random.choice([-1, 40]) if draws and random.random() < 0.8 else 1,
        top_p=random.choice([1.0, 0.9]),
        min_p=random.choice([0.0, 0.1]),
        seed=random.randrange(1 << 60) if seeded and random.random() < 0.6 else None,
        frequency_penalty=0.5 * (penalized and random.random() < 0.5),
        repetition_penalty=1.2 if penalized and random.random() < 0.5 else 1.0,
    )


def samplings() -> None:
    """Random batches of 1 to 40 rows."""
    table, sampler = SamplingTable(40, VOCAB, "cpu"), Sampler()
    for step in range(64):
        rows = random.sample(range(40), random.choice([1, 2, 3, 16, 17, 40]))
        kind = (step & 1 > 0, step & 2 > 0, step & 4 > 0, 0.7 if step & 8 else 1.0)
        for row in rows:
            setup = RowSetup(row=row, sampling=random_spec(*kind), prompt_ids=[1], output_ids=[2])
            table.set_row(setup)
        works = [
            RowWork(
                row=row, start=0, num_tokens=1, token_ids=None, prefix_slots=None, new_slots=b"", sample=True
            )
            for row in rows
        ]  # fmt: skip
        masks = None
        if step & 16:
            bound = rows[: random.randint(1, len(rows))]
            masks = RowMasks(bound, np.full((len(bound), -(-VOCAB // 32)), -1, np.int32))
        batch = table.batch(rows, works, masks)
        logits = torch.zeros(len(rows), VOCAB)
        edit_in_kernels(logits, batch)
        sampler.choose(logits, batch)


def edit_in_kernels(logits: torch.Tensor, batch: Any) -> None:
    if batch.columns.penalties is not None:
        sampler_module._penalize_in_kernels(batch.columns.penalties, logits)
    if batch.grammar is not None:
        sampler_module._apply_grammar_mask(logits, batch.grammar, in_kernels=True)


def all_samplings() -> None:
    random.seed(1)
    Sampler._suits_kernel = lambda self, logits, batch: True
    sampling_forms.edit_logits = edit_in_kernels
    ahead = noted(lambda: sampling_forms.launch_sampling_forms(VOCAB, torch.device("cpu")))
    say("sampling", noted(samplings), ahead)


def slots_anywhere() -> None:
    """Positions and slots of an eager step are pieces of one upload, at an odd place after an odd number of tokens."""

    def step(num_tokens: int) -> None:
        q, k = torch.zeros(num_tokens, 128), torch.zeros(num_tokens, 64)
        pool = torch.zeros(2, 9, 2, 32)
        pieces = torch.zeros(4 * num_tokens, dtype=torch.int64).split(num_tokens)
        norm_rope_store(q, k, k, pieces[1], torch.zeros(9, 32), None, *pool, pieces[3])

    say("slots", noted(lambda: (step(3), step(5))), noted(lambda: step(4)))


def values_to_keys() -> None:
    """Of prompts of any number of tokens: k and v are columns of one projection."""
    finite_values.move_to_keys = move_to_keys_in_place
    layers = [RadixAttention(4, 32, 0.1, 2, layer_id=i) for i in range(2)]
    model = torch.nn.ModuleList([*layers, torch.nn.Linear(2, 2)])

    def prompts(num_tokens: int) -> None:
        _, k, v = torch.zeros(num_tokens, 8, 32).split([4, 2, 2], dim=1)
        finite_values.move_to_keys(k, v)

    ahead = noted(lambda: finite_values.launch_moves(model, torch.float32, torch.device("cpu")))
    say("values", noted(lambda: [prompts(n) for n in (2, 5, 16, 1000)]), ahead)


if __name__ == "__main__":
    driver.set_active(Driver())
    with torch.inference_mode():
        all_experts()
        all_samplings()
        slots_anywhere()
        values_to_keys()
