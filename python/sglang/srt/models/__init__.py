"""The model zoo: one file per architecture, shared parts in `common/`."""
