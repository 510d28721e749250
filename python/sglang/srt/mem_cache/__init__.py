"""KV cache: host bookkeeping (manager, radix tree, page allocator) and the device pools.

Only `memory_pool` needs torch; the other modules are plain Python and numpy.
"""
