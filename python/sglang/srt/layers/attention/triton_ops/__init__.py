"""Attention kernels in Triton. `plan` decides on the host and needs no Triton; `decode` and `extend` launch kernels."""
