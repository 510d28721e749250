"""Metrics and request logs."""
