"""Parts that several models share: norms, attention, MLPs, the causal language model, weight maps."""
