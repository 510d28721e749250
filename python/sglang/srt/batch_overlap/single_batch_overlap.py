"""Parts of one layer at the same time on several streams. Compatibility: every question is answered with no."""

from __future__ import annotations

from sglang.srt.utils.absent import absent_function


class SboFlags:
    """Which parts overlap: none."""

    @classmethod
    def enable_combine_down_gemm_two_stream_overlap(cls) -> bool:
        return False

    @classmethod
    def enable_combine_shared_two_stream_overlap(cls) -> bool:
        return False

    @classmethod
    def enable_dispatch_shared_one_stream_overlap(cls) -> bool:
        return False

    @classmethod
    def fuse_shared_experts_inside_sbo(cls) -> bool:
        return False


compute_overlap_args = absent_function("compute_overlap_args", "overlap inside a batch")
