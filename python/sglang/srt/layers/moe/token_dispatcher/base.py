"""The interface of dispatchers under the path that model files import."""

from __future__ import annotations

from sglang.srt.layers.moe.token_dispatcher import BaseDispatcher, CombineInput, DispatchOutput

__all__ = ["BaseDispatcher", "CombineInput", "DispatchOutput"]
