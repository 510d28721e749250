"""Images, video and audio: the values that carry them, how they enter a model's embeddings, helpers of vision models."""
