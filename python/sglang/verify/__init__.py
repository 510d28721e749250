"""Proof that a checkpoint computes here what it computes in transformers.

    results = prove("path/to/checkpoint")      # one FormResult per way of computing a sequence
    print(markdown_table(results))

`reference` is transformers, `subject` is this engine driven in process, `forms` are the ways (whole and chunked prefill, cached
prefixes, mixed decode, retraction ...), `comparison` is the bound, `report` the tables. Importing this package loads nothing heavy.
"""
