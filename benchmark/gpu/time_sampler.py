"""Choosing tokens beside sorting for them: microseconds of a step's sampler on the device, by kind of sampling, rows and vocabulary.

`kernels` is what a GPU runs, `plain` the same request through torch's operations, `host` what launching the kernels takes. Logits are
drawn from a normal distribution of the given spread: 1.3 is that of an untrained model, and trained ones are steeper (3 and more).
"""

from __future__ import annotations

import argparse
import time

import torch

from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.sampling_batch import SamplingBatch, SamplingTable

KINDS: dict[str, dict] = {
    "greedy": {"top_k": 1},
    "drawn": {"temperature": 0.7},
    "seeded": {"temperature": 0.7, "seed": 1},
    "top-k 50": {"temperature": 0.7, "top_k": 50},
    "top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "top-p, min-p": {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05},
    "all three": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
}


class KernelSampler(Sampler):
    def _suits_kernel(self, logits: torch.Tensor, batch: SamplingBatch) -> bool:
        return True


class PlainSampler(Sampler):
    def _suits_kernel(self, logits: torch.Tensor, batch: SamplingBatch) -> bool:
        return False


def batch_of(spec: dict, rows: int, vocab: int) -> SamplingBatch:
    table = SamplingTable(rows, vocab, "cuda")
    works = []
    for row in range(rows):
        sampling = SamplingSpec(**spec)
        table.set_row(RowSetup(row=row, sampling=sampling, prompt_ids=[], output_ids=[]))
        works.append(
            RowWork(
                row=row, start=0, num_tokens=1, token_ids=None, prefix_slots=None, new_slots=b"",
                sample=True, num_outputs=row,
            )
        )  # fmt: skip
    return table.batch(range(rows), works)


def time_steps(
    sampler: Sampler, logits: torch.Tensor, batch: SamplingBatch, count: int
) -> tuple[float, float]:
    """Microseconds of a step on the device and on the host. The plain sampler overwrites logits, so each step has its own."""
    copies = [logits.clone() for _ in range(count)]
    sampler(logits.clone(), batch)
    torch.cuda.synchronize()
    # The host must be ahead, or the device waits for it.
    torch.cuda._sleep(60_000_000)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    began = time.perf_counter()
    for copy in copies:
        sampler(copy, batch)
    host = time.perf_counter() - began
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) * 1e3 / count, host * 1e6 / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--vocab", type=int, nargs="+", default=[151_936, 128_256])
    parser.add_argument("--spread", type=float, nargs="+", default=[1.3, 3.0])
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    print(
        f"{'vocab':>7} {'spread':>6} {'rows':>5}  {'kind':13} {'kernels':>9} {'plain':>9} {'ratio':>6} {'host':>6}"
    )
    for vocab in args.vocab:
        for spread in args.spread:
            for rows in args.rows:
                torch.manual_seed(0)
                logits = torch.randn(rows, vocab, device="cuda") * spread
                for kind, spec in KINDS.items():
                    batch = batch_of(spec, rows, vocab)
                    ours, host = time_steps(KernelSampler(), logits, batch, args.steps)
                    plain, _ = time_steps(PlainSampler(), logits, batch, max(2, args.steps // 4))
                    print(
                        f"{vocab:7} {spread:6} {rows:5}  {kind:13} {ours:9.1f} {plain:9.1f} {plain / ours:6.1f} {host:6.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
