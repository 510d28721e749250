"""Expert placement, as far as model files ask about it. Experts stay where their ids say."""
