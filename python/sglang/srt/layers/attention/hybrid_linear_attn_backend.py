"""Backends of models that mix attention with recurrent layers. Compatibility: not implemented, there is no pool of recurrent states."""

from __future__ import annotations

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.utils.absent import absent_class

MambaAttnBackendBase = absent_class(
    "MambaAttnBackendBase", "a pool of recurrent states", AttentionBackend
)
Mamba2AttnBackend = absent_class(
    "Mamba2AttnBackend", "a pool of recurrent states", MambaAttnBackendBase
)
HybridLinearAttnBackend = absent_class(
    "HybridLinearAttnBackend", "a mixture of attention and recurrent layers", AttentionBackend
)
