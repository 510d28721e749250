"""The kernel that gathers pages against its form in torch, in Triton's interpreter; run by `test_packaged_attention.py`."""

from __future__ import annotations

import numpy as np
import torch

from sglang.srt.layers.attention.page_index import PagedRequests, gather_in_torch
from sglang.srt.layers.attention.triton_ops.pages import gather_pages

PAGE = 4
rows = torch.tensor([2, 0, 1, 0])
lens = np.array([4100, 3, 0, 9])
table = torch.randint(0, 10**6, (3, 5000), dtype=torch.int32)
firsts = np.array([3, 0, 0, 1])
counts = -(-lens // PAGE) - firsts
bounds = np.zeros((2, len(lens) + 1), np.int32)
bounds[0, 1:] = np.cumsum(counts)
bounds[1, :-1] = firsts
requests = PagedRequests(table, rows, lens, np.ones_like(lens), PAGE)
pages = torch.full((int(counts.sum()),), -1, dtype=torch.int32)
gather_pages(table, rows, torch.from_numpy(bounds), PAGE, int(counts.max()), pages)
expected = gather_in_torch(requests, bounds, counts)
assert expected[:2].tolist() == [int(table[2, 12]) // PAGE, int(table[2, 16]) // PAGE]
print("equal" if torch.equal(pages, expected) else f"{pages} {expected}")
