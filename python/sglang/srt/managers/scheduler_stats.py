"""What the scheduler says about itself: log lines that tools read, and the numbers behind `/server_info` and `/metrics`."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

from sglang.srt.managers.planner import PlannedStep, Planner

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MemoryUsage:
    """Memory after load, in bytes."""

    weight: int
    kvcache: int
    graph: int = 0  # captured graphs; 0 without any


class SchedulerStats:
    """Counts tokens and steps. All reading is O(1)."""

    def __init__(self, memory: MemoryUsage, max_running: int) -> None:
        self._memory = memory
        self._max_running = max_running
        self._decode_steps = 0
        self._decode_tokens = 0
        self._window_start = time.monotonic()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self.last_gen_throughput = 0.0

    def log_step(self, step: PlannedStep, planner: Planner, interval: int) -> None:
        """One line per prefill step, one per `interval` decode steps."""
        if step.plan.mode == "decode":
            self._count_decode(step, planner, interval)
            return
        new_tokens = step.plan.num_tokens
        self._prompt_tokens += new_tokens + step.num_cached_tokens
        self._cached_tokens += step.num_cached_tokens
        logger.info(
            "Prefill batch. #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, "
            "#running-req: %d, #queue-req: %d",
            step.num_new_seqs,
            new_tokens,
            step.num_cached_tokens,
            token_usage(planner),
            len(planner.running),
            len(planner.waiting),
        )

    def _count_decode(self, step: PlannedStep, planner: Planner, interval: int) -> None:
        self._decode_steps += 1
        self._decode_tokens += len(step.reqs)
        if self._decode_steps % interval:
            return
        now = time.monotonic()
        self.last_gen_throughput = self._decode_tokens / max(now - self._window_start, 1e-9)
        self._window_start, self._decode_tokens = now, 0
        logger.info(
            "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, cuda graph: %s, "
            "gen throughput (token/s): %.2f, #queue-req: %d",
            len(planner.running),
            planner.cache.num_used,
            token_usage(planner),
            self._memory.graph > 0,
            self.last_gen_throughput,
            len(planner.waiting),
        )

    def internal_state(self, planner: Planner, num_compiling: int) -> dict[str, Any]:
        """The values of one entry of `internal_states`."""
        cache = planner.cache
        return {
            "last_gen_throughput": self.last_gen_throughput,
            "memory_usage": {
                "weight": round(self._memory.weight / 2**30, 3),
                "kvcache": round(self._memory.kvcache / 2**30, 3),
                "token_capacity": cache.capacity,
                "graph": round(self._memory.graph / 2**30, 3),
            },
            "effective_max_running_requests_per_dp": self._max_running,
            "num_running_reqs": planner.num_with_rows,
            "num_queue_reqs": len(planner.waiting) + num_compiling,
            "num_grammar_queue_reqs": num_compiling,
            "num_used_tokens": cache.num_used,
            "token_usage": token_usage(planner),
            "max_total_num_tokens": cache.capacity,
            "utilization": planner.num_with_rows / max(self._max_running, 1),
            "cache_hit_rate": self._cached_tokens / max(self._prompt_tokens, 1),
            "num_retracted_reqs": planner.num_retracted,
            "num_paused_reqs": 0,
        }


def token_usage(planner: Planner) -> float:
    """Share of the pool that is held by running requests (the prefix cache can be evicted)."""
    return planner.cache.num_used / max(planner.cache.capacity, 1)
