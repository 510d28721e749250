"""Experts over expert-parallel ranks."""
