"""The server's flags by topic, one dataclass per file, and what is derived from them.

`fields` declares a flag, `checks` compares values, `resolve` settles every "auto", `reference` writes the documentation page.
"""
