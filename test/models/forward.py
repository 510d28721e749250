"""Runs a loaded model on batches built by hand: real pools, the torch-native backend, logits of every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import get_tensor_model_parallel_world_size
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.kv_pool import create_kv_pool
from sglang.srt.model_loader import get_model

NUM_ROWS, MAX_LEN = 4, 128


class Share(NamedTuple):
    """One request's part of a step: the tokens at positions start, start + 1, ..."""

    row: int
    start: int
    token_ids: Sequence[int]


def load_model(folder: Path, **flags: Any) -> torch.nn.Module:
    """The model of a folder on the host, through the real configuration and loader."""
    return get_model(
        model_config=ModelConfig(str(folder), **flags),
        load_config=LoadConfig(),
        device_config="cpu",
    )


class HandRunner:
    """A model with its cache. Slots are dealt in a scrambled order, so that nothing depends on their order."""

    def __init__(self, model: Any, folder: Path) -> None:
        config = ModelConfig(str(folder))
        self.model = model
        self.model.logits_processor.return_full_logits = True
        self.backend = TorchNativeAttnBackend(config.facts.attention_chunk_size)
        self.rows = ReqToTokenPool(NUM_ROWS, MAX_LEN, "cpu")
        self.kv = create_kv_pool(
            config,
            get_tensor_model_parallel_world_size(),
            size=NUM_ROWS * MAX_LEN + 1,
            page_size=1,
            dtype=torch.float32,
            device="cpu",
        )
        order = torch.randperm(NUM_ROWS * MAX_LEN, generator=torch.Generator().manual_seed(0)) + 1
        self.slots = order.view(NUM_ROWS, MAX_LEN)
        self.rows.req_to_token[:NUM_ROWS] = self.slots.to(self.rows.req_to_token.dtype)

    @torch.inference_mode()
    def step(self, mode: ForwardMode, shares: list[Share]) -> list[torch.Tensor]:
        """Logits `[tokens, V]` of every token, per request."""
        batch = self.build(mode, shares)
        self.backend.init_forward_metadata(batch)
        output = self.model.forward(batch.input_ids, batch.positions, batch)
        return list(output.full_logits.split([len(share.token_ids) for share in shares]))

    def build(self, mode: ForwardMode, shares: list[Share]) -> ForwardBatch:
        new = [len(share.token_ids) for share in shares]
        starts = [share.start for share in shares]
        positions = [s + i for s, n in zip(starts, new, strict=True) for i in range(n)]
        seq_lens = torch.tensor([s + n for s, n in zip(starts, new, strict=True)])
        rows = [share.row for share in shares for _ in share.token_ids]
        batch = ForwardBatch(
            forward_mode=mode,
            batch_size=len(shares),
            input_ids=torch.tensor([t for share in shares for t in share.token_ids]),
            positions=torch.tensor(positions),
            req_pool_indices=torch.tensor([share.row for share in shares]),
            seq_lens=seq_lens,
            seq_lens_cpu=seq_lens,
            seq_lens_sum=int(seq_lens.sum()),
            out_cache_loc=self.slots[rows, positions],
            attn_backend=self.backend,
            req_to_token_pool=self.rows,
            token_to_kv_pool=self.kv,
        )
        if mode.is_extend():
            batch.extend_seq_lens = torch.tensor(new, dtype=torch.int32)
            batch.extend_prefix_lens = torch.tensor(starts, dtype=torch.int32)
            batch.extend_start_loc = batch.extend_seq_lens.cumsum(0) - batch.extend_seq_lens
            batch.extend_seq_lens_cpu = new
            batch.extend_prefix_lens_cpu = starts
            batch.extend_num_tokens = sum(new)
        return batch


def assert_close(ours: torch.Tensor, reference: torch.Tensor, what: str) -> None:
    """Largest logit difference at most 1e-4 of the largest logit (or of one)."""
    bound = 1e-4 * max(1.0, reference.abs().max().item())
    worst = (ours - reference).abs().max().item()
    assert worst <= bound, f"{what}: logits differ by {worst:.3g}, allowed {bound:.3g}"
