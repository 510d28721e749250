"""Attention backends: one object per server computes attention over the cache."""
