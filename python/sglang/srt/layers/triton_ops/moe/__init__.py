"""Triton kernels of a layer of experts: routing, sorting the choices by expert, products of groups and of single choices, the sum.

None of them waits for the host, and shapes depend on the number of tokens alone, so that graphs can hold them.
Legend: T tokens, k choices of each, n = T * k choices in all, E experts of this rank, D model width, I inner width of this rank.
"""

from __future__ import annotations
