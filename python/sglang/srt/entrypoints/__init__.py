"""The ways in: `Engine` for Python callers, the HTTP server for everybody else."""
