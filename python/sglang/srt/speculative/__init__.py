"""Speculative decoding: so far only the names of its algorithms."""
