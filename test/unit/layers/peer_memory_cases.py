"""Sums through peer memory between processes, in Triton's interpreter; run by `test_peer_memory.py`.

Inboxes are shared memory that is mapped before the processes part, so that an address is the same in all of them. In the interpreter
it needs TRITON_INTERPRET=1 before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from sglang.srt.distributed.device_communicators import peer_memory
from sglang.srt.distributed.device_communicators.peer_memory import PeerMemory, inbox_words
from sglang.srt.layers.layernorm import RMSNorm

# Small parts and steps: the interpreter's time goes with the width of a block.
PART, STEP, PARTS = 64, 32, 12


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(peer_memory, "PART_WORDS", PART)
    monkeypatch.setattr(peer_memory, "STEP_WORDS", STEP)
    monkeypatch.setattr(peer_memory, "NUM_PARTS", PARTS)


def part(rank: int, call: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * call + rank)
    return (torch.randn(shape, generator=generator) * 3).to(dtype)


def sums_of_many_calls(peers: PeerMemory, rank: int, size: int) -> None:
    """Calls of changing sizes and kinds: blocks take part in some and not in others, as batches of a server do."""
    shapes = [(2, 32), (9, 32), (1, 34), (1, 32), (12, 32), (3, 32), (1, 2)]
    types = [torch.float32, torch.float16, torch.bfloat16]
    for call, shape in enumerate(shapes):
        for dtype in types if size == 2 else types[call % 3 : call % 3 + 1]:
            x = part(rank, call, shape, dtype)
            assert peers.takes(x)
            parts = torch.stack([part(r, call, shape, dtype) for r in range(size)])
            want = parts[0].float()
            for other in parts[1:]:
                want = want + other.float()
            # The interpreter cuts bfloat16 off where a GPU rounds.
            bound = 2**-7 if dtype == torch.bfloat16 else 0.0
            torch.testing.assert_close(peers.all_reduce(x), want.to(dtype), rtol=bound, atol=0.0)


def norms_like_the_separate_layers(peers: PeerMemory, rank: int, size: int) -> None:
    for call, (rows, width, is_early) in enumerate([(1, 48, False), (3, 64, True)]):
        for dtype in (torch.float32, torch.float16):
            norm = RMSNorm(width, eps=1e-5, cast_x_before_out_mul=is_early)
            norm.weight.data = part(7, call, (width,), dtype)
            residual = part(9, call, (rows, width), dtype)
            x = part(rank, call, (rows, width), dtype)
            total = sum(part(r, call, (rows, width), dtype).float() for r in range(size))
            want = norm(total.to(dtype), residual)
            assert peers.takes_rows(x, residual, norm.weight)
            found = peers.all_reduce_add_norm(x, residual, norm.weight, 1e-5, is_early)
            assert torch.equal(found[1], want[1])
            torch.testing.assert_close(found[0], want[0], rtol=2e-3, atol=2e-3)
            peers.all_reduce(x)  # another kind of call on the same parts


def the_test_of_the_start(peers: PeerMemory, rank: int, size: int) -> None:
    peers.compile()
    assert int(peers._gave_up) == 0
    mp_barrier.wait(60)
    assert peers.why_wrong() is None


BODIES = [sums_of_many_calls, norms_like_the_separate_layers, the_test_of_the_start]


@pytest.mark.parametrize(("body", "size"), [*((body, 2) for body in BODIES), (BODIES[0], 3)])
def test_ranks_of_processes(body, size, monkeypatch):
    global mp_barrier
    if body is the_test_of_the_start:
        monkeypatch.setattr(peer_memory, "TEST_ROWS", (1, 3, 1))
        monkeypatch.setattr(peer_memory, "PART_WORDS", 1024)
        monkeypatch.setattr(peer_memory, "STEP_WORDS", 1024)
    words = inbox_words(size)
    inboxes = torch.zeros(size, words, dtype=torch.int64).share_memory_()
    addresses = torch.tensor([inbox.data_ptr() for inbox in inboxes])
    context = mp.get_context("fork")
    mp_barrier = context.Barrier(size)

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        body(PeerMemory(rank, size, addresses, inboxes[rank]), rank, size)

    ranks = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * size


def test_a_rank_that_is_alone_gives_up_when_it_may():
    inboxes = torch.zeros(2, inbox_words(2), dtype=torch.int64)
    addresses = torch.tensor([inbox.data_ptr() for inbox in inboxes])
    peers = PeerMemory(0, 2, addresses, inboxes[0])
    peers._patience = 3
    peers.all_reduce(torch.ones(2, 32))
    assert int(peers._gave_up) == 1
    assert inboxes[1].count_nonzero() == 64, "its own words lie in the other's inbox"
    assert not inboxes[0].any()


def test_what_it_takes():
    inbox = torch.zeros(inbox_words(2), dtype=torch.int64)
    peers = PeerMemory(0, 2, torch.zeros(2, dtype=torch.int64), inbox)
    x = torch.zeros(2, 32, dtype=torch.float16)
    assert peers.takes(x) and peers.takes_rows(x, x, x[0])
    assert not peers.takes(x.double()) and not peers.takes(x.long())
    assert not peers.takes(x.t()), "not contiguous"
    assert not peers.takes(x[:0]) and not peers.takes(x.view(-1)[:3]), "no whole words"
    assert not peers.takes(x.view(-1)[1:5]), "does not begin at a word"
    assert not peers.takes(torch.empty(peer_memory.MAX_BYTES // 2 + 2, dtype=torch.float16))
    assert not peers.takes_rows(x, x.float(), x[0]) and not peers.takes_rows(x, x[:1], x[0])
    assert not peers.takes_rows(x, x, x[0].float()), "a weight of another type"
    wide = torch.zeros(1, 2 * PART + 2, dtype=torch.float16)
    assert peers.takes(wide) and not peers.takes_rows(wide, wide, None)
    many = torch.zeros(PARTS + 1, 2)
    assert peers.takes(many) and not peers.takes_rows(many, many, None)
