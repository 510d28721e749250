"""Noise of a draw inside kernels: the numbers of `sampler.seeded_noise`, as -log of them.

A token's noise follows from two keys of its row and from its id alone, so that every kernel that looks at a token finds the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def noise_keys(seed, position):
    """Two 32-bit keys of a seed, of which all 64 bits count, and a position; both int64."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    place = (position & 0xFFFFFFFF).to(tl.uint32)
    key_a = _mix(_mix(_mix(low ^ 0x243F6A88) ^ high) ^ place)
    key_b = _mix(_mix(_mix(high ^ 0x85A308D3) ^ low) ^ (place + 0x13198A2E))
    return key_a, key_b


@triton.jit
def gumbel(token, key_a, key_b):
    """-log(q) with q ~ Exp(1): adding it to log p and taking the largest is the race p / q. token: int32."""
    bits = _mix(_mix(token.to(tl.uint32, bitcast=True) ^ key_a) + key_b)
    uniform = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    uniform = tl.minimum(uniform, 0.999999940395355)  # 1 - 2^-24
    # -log(1 - u) by its series where 1 - u would lose what counts: small numbers win.
    series = 0.25 + uniform * (0.2 + uniform * 0.16666666666666666)
    series = 1.0 + uniform * (0.5 + uniform * (0.3333333333333333 + uniform * series))
    exact = -tl.log(1.0 - uniform)
    return -tl.log(tl.where(uniform < 0.0625, uniform * series, exact))


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x21F0AAAD
    x = x ^ (x >> 15)
    x = x * 0x735A2D97
    return x ^ (x >> 15)
