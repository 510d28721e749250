"""State space layers: the short convolution in plain torch; the mixers are not implemented."""
