"""The kernel of sums through peer memory: each rank writes its part into every other rank's inbox and adds up what it finds in its own.

A word of an inbox is 64 bits: 32 of data, 32 of the number of the call. Words are written and read whole, so a reader that sees
the number of its call has the data too: one way over the link, no fence, no flag to wait for separately.

Block b of every call owns part b of the inbox and counts its calls. The parts exist twice, for even and odd calls. That is enough: to
enter call n + 2 a rank must have found all words of call n + 1, whose writers had finished call n, and with it their reading.
The count lives on the device, so that replays of a captured graph go on counting.

The next kernel may begin while a sum waits for other ranks (`utils/dependent_launch`): its programs then hold their first weights in
registers. They cannot keep a program of the sum from running, since none of them is started before every program of the sum has been; nor
can this kernel keep out one of the kernel before, for the same reason. So what another rank waits for is always on a processor or
ahead in the stream. What the protocol needs, the end of this rank's earlier calls, is what `wait_for_earlier` waits for: nothing of an
inbox, a count or an input is touched before it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.utils.dependent_launch import launch_dependents, wait_for_earlier


@triton.jit
def _unpack(word, KIND: tl.constexpr):
    """The float32 values in an int32 word: one float32 (KIND 0; the second is zero), or two of bfloat16 (1) or float16 (2), the
    first in the low half."""
    if KIND == 0:
        low = word.to(tl.float32, bitcast=True)
        high = tl.zeros_like(low)
    elif KIND == 1:
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _round_to_bits(value, KIND: tl.constexpr):
    """A float32 value as the 16 bits of its type, in the low half of an int32."""
    if KIND == 1:
        bits = value.to(tl.bfloat16).to(tl.int16, bitcast=True)
    else:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True)
    return bits.to(tl.int32) & 65535


@triton.jit
def _pack(low, high, KIND: tl.constexpr):
    """The reverse of `_unpack`; rounds to nearest."""
    if KIND == 0:
        word = low.to(tl.int32, bitcast=True)
    else:
        word = _round_to_bits(low, KIND) | (_round_to_bits(high, KIND) << 16)
    return word


@triton.jit
def _inbox_at(address):
    """Inboxes begin where allocations do, so that two words are written and read at once; each word stays whole."""
    return tl.multiple_of(address.to(tl.pointer_type(tl.int64)), 16)


@triton.jit(do_not_specialize=["num_words", "patience", "eps"])
def peer_kernel(
    x,  # int32 words of this rank's part
    out,  # int32 words: the sum, or with NORM the norm
    residual,  # int32 words, with NORM
    weight,  # int32 words of one row, with WEIGHT
    total,  # int32 words: sum + residual, with NORM
    inboxes,  # int64 [WORLD]: addresses of the inboxes as this rank sees them
    counts,  # int32 [blocks]: calls that each block has finished
    gave_up,  # int32 [1]: set when a block has run out of patience
    num_words,
    patience,  # how often to look for words, -1 for without end
    eps,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    KIND: tl.constexpr,
    STEP: tl.constexpr,  # words of a block: a row with NORM
    BLOCK: tl.constexpr,  # the next power of two
    WHOLE: tl.constexpr,  # every block has STEP words, so that accesses are wide
    PART: tl.constexpr,  # words of a block's part of an inbox
    NUM_PARTS: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROUND: tl.constexpr,
    WIDTH: tl.constexpr,  # elements of a row
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    block = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    at = block * STEP + column
    inside = column < STEP
    if not WHOLE:
        inside &= at < num_words
    addresses = ()
    for peer in tl.static_range(WORLD):
        addresses = addresses + (tl.load(inboxes + peer),)
    if WEIGHT:
        factor = tl.load(weight + column, mask=column < STEP, other=0)
    wait_for_earlier(PDL)
    count = tl.load(counts + block)
    number = count + 1
    mine = tl.load(x + at, mask=inside, other=0)
    if NORM:
        old = tl.load(residual + at, mask=inside, other=0)
    word = (number.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
    place = (count & 1) * (WORLD * NUM_PARTS * PART) + block * PART + column
    for peer in tl.static_range(WORLD):
        if peer != RANK:
            inbox = _inbox_at(addresses[peer])
            target = inbox + place + RANK * (NUM_PARTS * PART)
            tl.store(target, word, mask=inside, cache_modifier=".wt")
    own = _inbox_at(addresses[RANK])
    low = tl.zeros([BLOCK], tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    for peer in tl.static_range(WORLD):  # in the order of ranks: the same sum on every rank
        if peer == RANK:
            part = mine
        else:
            source = own + place + peer * (NUM_PARTS * PART)
            found = tl.load(source, mask=inside, other=0, volatile=True)
            late = tl.max((inside & ((found >> 32).to(tl.int32) != number)).to(tl.int32), 0)
            looks = 0
            while (late > 0) & (looks != patience):
                found = tl.load(source, mask=inside, other=0, volatile=True)
                late = tl.max((inside & ((found >> 32).to(tl.int32) != number)).to(tl.int32), 0)
                looks += 1
            if late > 0:
                tl.store(gave_up, 1)
            part = found.to(tl.int32)
        part_low, part_high = _unpack(part, KIND)
        low += part_low
        high += part_high
    if NORM:
        # Rounded where the separate kernels round, so that results are theirs.
        low, high = _unpack(_pack(low, high, KIND), KIND)
        old_low, old_high = _unpack(old, KIND)
        summed = _pack(low + old_low, high + old_high, KIND)
        tl.store(total + at, summed, mask=inside)
        low, high = _unpack(summed, KIND)
        scale = 1.0 / tl.sqrt_rn(tl.sum(low * low + high * high, 0) / WIDTH + eps)
        low, high = low * scale, high * scale
        if ROUND:
            low, high = _unpack(_pack(low, high, KIND), KIND)
        if WEIGHT:
            factor_low, factor_high = _unpack(factor, KIND)
            low, high = low * factor_low, high * factor_high
    tl.store(out + at, _pack(low, high, KIND), mask=inside)
    tl.store(counts + block, number)
