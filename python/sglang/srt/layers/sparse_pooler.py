"""Weights of vocabulary entries instead of a dense embedding. Compatibility: not implemented."""

from __future__ import annotations

import torch

from sglang.srt.utils.absent import absent_class

SparsePooler = absent_class("SparsePooler", "sparse embedding", torch.nn.Module)
