"""Tools for testing models and servers. Importing this package loads nothing heavy."""
