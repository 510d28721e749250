"""Counts tokens over the samples of a request."""

from __future__ import annotations

from typing import Any

from sglang.srt.entrypoints.openai.protocol import PromptTokensDetails, Usage


class UsageCounter:
    """Takes the latest `meta_info` of every sample; prompts count once, whatever the number of samples."""

    def __init__(self, samples_per_prompt: int, report_cached: bool) -> None:
        self._samples_per_prompt = samples_per_prompt
        self._report_cached = report_cached
        self._latest: dict[int, dict[str, Any]] = {}

    def update(self, index: int, meta_info: dict[str, Any]) -> None:
        """`index` is the position of the sample in the expanded batch."""
        self._latest[index] = meta_info

    def total(self) -> Usage:
        """Counts over everything seen so far."""
        prompts = {
            index // self._samples_per_prompt: m
            for index, m in sorted(self._latest.items(), reverse=True)
        }
        return self._usage(list(prompts.values()), list(self._latest.values()))

    def of(self, index: int) -> Usage:
        """Counts of one sample alone."""
        meta_info = self._latest[index]
        return self._usage([meta_info], [meta_info])

    def _usage(self, prompts: list[dict[str, Any]], samples: list[dict[str, Any]]) -> Usage:
        prompt_tokens = sum(m["prompt_tokens"] for m in prompts)
        completion_tokens = sum(m["completion_tokens"] for m in samples)
        cached = sum(m.get("cached_tokens") or 0 for m in prompts) if self._report_cached else 0
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached) if cached else None,
        )
