"""Proof that a checkpoint computes here what it computes in transformers.

    from sglang.verify.proof import prove
    from sglang.verify.report import markdown_table
    print(markdown_table(prove("path/to/checkpoint")))

`reference` is transformers, `subject` this engine driven in process, `forms` the ways to compute a sequence (whole and chunked prefill, cached
prefixes, mixed decode, retraction ...), `comparison` the bound, `proof` runs forms. Importing this package loads nothing heavy.
"""
