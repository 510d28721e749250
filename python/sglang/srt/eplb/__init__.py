"""Expert placement, as far as model files ask about it. Compatibility: experts stay where their ids say."""
