"""The version of the package, and nothing else: read by packaging, the CLI and `/server_info`."""

__version__ = "0.1.0"
