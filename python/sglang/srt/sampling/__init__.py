"""What a request asks of the sampler."""
