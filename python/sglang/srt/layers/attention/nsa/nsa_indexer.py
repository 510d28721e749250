"""The indexer that chooses what sparse attention looks at. Compatibility: not implemented."""

from __future__ import annotations

import torch

from sglang.srt.utils.absent import absent_class

Indexer = absent_class("Indexer", "DeepSeek sparse attention", torch.nn.Module)
