"""XVERSE 7B, 13B and 65B; published as code, architecture `XverseForCausalLM`.

Llama's layers and names: attention without biases, rotary positions over whole heads, a head of its own.
"""

from __future__ import annotations

from sglang.srt.models.llama import LlamaForCausalLM


class XverseForCausalLM(LlamaForCausalLM):
    """Llama under another name."""


EntryClass = XverseForCausalLM
