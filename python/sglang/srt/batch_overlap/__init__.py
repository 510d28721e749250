"""Computing one part of a batch while another part communicates. Compatibility: nothing overlaps."""
