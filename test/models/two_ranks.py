"""Tiny models cut over two processes, by hidden dims or by experts: both give the reference's logits at every position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.multiprocessing as mp
from models.forward import HandRunner, Share, assert_close, load_model
from models.tiny import write_checkpoint

from sglang.srt import distributed
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.verify.reference import ReferenceModel

_CHUNK = 30
_JOIN_SECONDS = 120


def assert_two_ranks_agree(
    names: Sequence[str], token_ids: list[int], ep_size: int, folder: Path
) -> None:
    """Write the cases' checkpoints below `folder`, run them on two ranks, compare with the reference of each.

    `ep_size` 2 deals whole experts out, 1 cuts every expert. `token_ids`: more than 31.
    """
    for name in names:
        write_checkpoint(name, folder / name)
    context = mp.get_context("fork")
    jobs = [(rank, names, token_ids, ep_size, folder) for rank in (0, 1)]
    ranks = [context.Process(target=_rank, args=job) for job in jobs]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_JOIN_SECONDS)
    assert [process.exitcode for process in ranks] == [0, 0]
    for name in names:
        expected = ReferenceModel(str(folder / name)).logits(token_ids)
        for rank in (0, 1):
            assert_close(torch.load(_result(folder, name, rank)), expected, f"{name}, rank {rank}")


@torch.inference_mode()
def _rank(
    rank: int, names: Sequence[str], token_ids: list[int], ep_size: int, folder: Path
) -> None:
    """Logits of all tokens: a chunk, the rest behind it, the last one decoded."""
    torch.set_num_threads(1)
    url = f"file://{folder}/rendezvous"
    distributed.init_distributed_environment(2, rank, url, backend="gloo", timeout=60)
    distributed.initialize_model_parallel(2, expert_model_parallel_size=ep_size)
    last = len(token_ids) - 1
    for name in names:
        runner = HandRunner(load_model(folder / name), folder / name)
        steps = [
            runner.step(ForwardMode.EXTEND, [Share(0, 0, token_ids[:_CHUNK])]),
            runner.step(ForwardMode.EXTEND, [Share(0, _CHUNK, token_ids[_CHUNK:last])]),
            runner.step(ForwardMode.DECODE, [Share(0, last, token_ids[last:])]),
        ]
        torch.save(torch.cat([logits for (logits,) in steps]), _result(folder, name, rank))


def _result(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name}.{rank}.pt"
