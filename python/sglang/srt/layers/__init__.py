"""Layers that model files are built from."""
