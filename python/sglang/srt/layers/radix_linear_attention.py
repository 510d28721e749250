"""The layer of linear attention. Compatibility: not implemented, there is no pool of recurrent states."""

from __future__ import annotations

import torch

from sglang.srt.utils.absent import absent_class

RadixLinearAttention = absent_class("RadixLinearAttention", "linear attention", torch.nn.Module)
