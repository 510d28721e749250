"""`PeerMemory`: sums of small tensors through memory that the GPUs of one machine map from each other.

For the messages of a decode step, some KiB, the communication library spends most of its time on its protocol. Here a sum is one
kernel (`peer_kernel.py`), alone or with the residual's addition and the norm that follow it. No multicast.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sglang.srt.distributed.agreement import all_can
from sglang.srt.distributed.rendezvous import avoid_multicast

if TYPE_CHECKING:
    from sglang.srt.distributed.group import GroupCoordinator

logger = logging.getLogger(__name__)

MAX_RANKS = 8
# Above it the library's rings move fewer bytes.
MAX_BYTES = 512 * 1024
# A block's part of an inbox, in words of 4 bytes of data; the widest row that is normed.
PART_WORDS = 8192
NUM_PARTS = 128
# Words that a block sums when there are no rows.
STEP_WORDS = 1024
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FOREVER = -1
# How often a test looks for the words of a rank, about a second.
_TEST_PATIENCE = 2_000_000
# Rows of the test's sums: odd and even calls of the later blocks.
TEST_ROWS = (1, 7, 64, 1)


class PeerMemory:
    """The inboxes of a group's ranks, and sums through them.

    Args:
        rank, world_size: of the group.
        addresses: int64 [world_size], where each rank's inbox lies for this rank's device.
        inbox: this rank's, int64 [`inbox_words(world_size)`], all zero before any rank's first call; kept alive here.

    All ranks must make the same calls in the same order, each on one stream at a time.
    """

    def __init__(
        self, rank: int, world_size: int, addresses: torch.Tensor, inbox: torch.Tensor
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._addresses = addresses
        self._inbox = inbox
        self._device = addresses.device
        self._counts = torch.zeros(NUM_PARTS, dtype=torch.int32, device=self._device)
        self._gave_up = torch.zeros(1, dtype=torch.int32, device=self._device)
        self._patience = _FOREVER

    def takes(self, x: torch.Tensor) -> bool:
        """Is it a contiguous tensor on this device, of whole words, small enough? Depends on nothing that differs between ranks."""
        size = x.numel() * x.element_size()
        return (
            x.device == self._device
            and x.dtype in _KINDS
            and 0 < size <= MAX_BYTES
            and size % 4 == 0
            and x.is_contiguous()
            and x.storage_offset() * x.element_size() % 4 == 0
        )

    def takes_rows(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None
    ) -> bool:
        """Can the rows [..., D] be summed, added to `residual` and normed in one kernel?"""
        width = x.shape[-1]
        words = width * x.element_size() // 4
        return (
            self.takes(x)
            and residual.shape == x.shape
            and residual.dtype == x.dtype
            and residual.storage_offset() * x.element_size() % 4 == 0
            and (weight is None or (weight.dtype == x.dtype and weight.numel() == width))
            and width * x.element_size() % 4 == 0
            and words <= PART_WORDS
            and x.numel() // width <= NUM_PARTS
        )

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in a new tensor: float32 inside, rounded once."""
        out = torch.empty_like(x)
        self._launch(x, out, step=STEP_WORDS)
        return out

    def all_reduce_add_norm(
        self,
        x: torch.Tensor,  # [..., D], this rank's part
        residual: torch.Tensor,  # [..., D]
        weight: torch.Tensor | None,  # [D]
        eps: float,
        round_before_weight: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(rms_norm(s), s)`, `s` the sum over ranks plus `residual`, each rounded to the dtype as the separate operations do."""
        out, total = torch.empty_like(x), torch.empty_like(x)
        self._launch(
            x,
            out,
            step=x.shape[-1] * x.element_size() // 4,
            residual=residual.contiguous(),
            weight=weight,
            total=total,
            eps=eps,
            round_before_weight=round_before_weight,
        )
        return out, total

    def _launch(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        step: int,  # words of a block
        residual: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        total: torch.Tensor | None = None,
        eps: float = 0.0,
        round_before_weight: bool = False,
    ) -> None:
        from sglang.srt.distributed.device_communicators.peer_kernel import peer_kernel
        from sglang.srt.utils.dependent_launch import launch_options

        words = _words(x)
        block = 1 << (step - 1).bit_length()
        peer_kernel[(-(-words.numel() // step),)](
            words,
            _words(out),
            words if residual is None else _words(residual),
            words if weight is None else _words(weight),
            words if total is None else _words(total),
            self._addresses,
            self._counts,
            self._gave_up,
            words.numel(),
            self._patience,
            eps,
            RANK=self._rank,
            WORLD=self._world_size,
            KIND=_KINDS[x.dtype],
            STEP=step,
            BLOCK=block,
            WHOLE=words.numel() % step == 0,
            PART=PART_WORDS,
            NUM_PARTS=NUM_PARTS,
            NORM=residual is not None,
            WEIGHT=weight is not None,
            ROUND=round_before_weight,
            WIDTH=1 if residual is None else x.shape[-1],
            num_warps=min(16, max(4, block // 256)),
            **launch_options(x.device),
        )

    # --- test

    def compile(self) -> None:
        """Run the kernel once without waiting for words; ranks take different times to compile it."""
        self._try_sums(0)
        self._gave_up.zero_()

    def why_wrong(self) -> str | None:
        """Sums whose result is known, waiting for other ranks a second at most. Every rank has compiled."""
        is_right = self._try_sums(_TEST_PATIENCE)
        if int(self._gave_up):
            return "a test found nothing from another rank"
        return None if is_right else "a test found wrong sums"

    def _try_sums(self, patience: int) -> bool:
        self._patience = patience
        is_right = True
        for dtype in (torch.bfloat16, torch.float32):
            for rows in TEST_ROWS:
                found = self.all_reduce(self._pattern(rows, self._rank, dtype)).float()
                parts = [self._pattern(rows, rank, dtype) for rank in range(self._world_size)]
                is_right &= torch.equal(found, torch.stack(parts).float().sum(0))
        self._patience = _FOREVER
        return is_right

    def _pattern(self, rows: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
        """Small integers [rows, 768], so that sums are exact in every type; another value on each rank."""
        index = torch.arange(rows * 768, device=self._device).view(rows, 768)
        return ((index * (rank + 3) + 5 * rank) % 13).to(dtype)


def connect_peer_memory(group: GroupCoordinator, device: torch.device) -> PeerMemory | None:
    """The peer memory of the group, or None with a line in the log where one rank cannot have it. Call on every rank, with the
    communication library's group initialised."""
    inboxes: list[torch.Tensor] = []
    found: list[PeerMemory] = []
    steps: list[Callable[[], str | None]] = [
        lambda: _why_unreachable(group, device),
        lambda: inboxes.append(_allocate(group, device)),
        lambda: found.append(_map(group, device, inboxes[0])),
        lambda: found[0].compile(),
        lambda: found[0].why_wrong(),
    ]
    for step in steps:  # no rank begins one before every rank has ended the one before
        reason = all_can(group, _reason_of(step))
        if reason is not None:
            logger.info("Small all-reduces go through the communication library: %s", reason)
            return None
    logger.info("Small all-reduces go through peer memory")
    return found[0]


def inbox_words(world_size: int) -> int:
    """Words of 64 bits: for even and odd calls, from each rank, for each block."""
    return 2 * world_size * NUM_PARTS * PART_WORDS


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.int32)


def _reason_of(step: Callable[[], str | None]) -> str | None:
    """What a step of the set-up has against it, its error included: there always is the library to fall back on."""
    try:
        return step()
    except (RuntimeError, ValueError, OSError, ImportError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _why_unreachable(group: GroupCoordinator, device: torch.device) -> str | None:
    if group.world_size > MAX_RANKS:
        return f"{group.world_size} ranks, at most {MAX_RANKS} are served"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    for other in group.gather_hosts(device.index):
        if other != device.index and not torch.cuda.can_device_access_peer(device.index, other):
            return f"GPU {device.index} cannot reach the memory of GPU {other}"
    return None


def _allocate(group: GroupCoordinator, device: torch.device) -> torch.Tensor:
    avoid_multicast()
    from torch.distributed import _symmetric_memory as symmetric

    return symmetric.empty(inbox_words(group.world_size), dtype=torch.int64, device=device)


def _map(group: GroupCoordinator, device: torch.device, inbox: torch.Tensor) -> PeerMemory:
    """Exchange and map the inboxes; a collective. Raises RuntimeError where the driver or the machine does not let it."""
    from torch.distributed import _symmetric_memory as symmetric

    assert group.device_group is not None
    handle = symmetric.rendezvous(inbox, group.device_group.group_name)
    addresses = [
        handle.get_buffer(rank, inbox.shape, inbox.dtype).data_ptr()
        for rank in range(group.world_size)
    ]
    if addresses[group.rank_in_group] != inbox.data_ptr():
        raise RuntimeError("the inbox is not where torch has mapped it")
    inbox.zero_()
    table = torch.tensor(addresses, dtype=torch.int64, device=device)
    torch.cuda.synchronize(device)
    return PeerMemory(group.rank_in_group, group.world_size, table, inbox)
