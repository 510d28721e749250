"""A plug-in package for tests of faults; SGLANG_EXTERNAL_MODEL_PACKAGE names it."""
