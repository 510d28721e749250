"""DeepEP's all-to-all between ranks. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.layers.moe.token_dispatcher import BaseDispatcher
from sglang.srt.utils.absent import absent_class

DeepEPDispatcher = absent_class(
    "DeepEPDispatcher", "DeepEP all-to-all between ranks", BaseDispatcher
)
