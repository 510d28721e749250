"""DeepSeek's sparse attention. Compatibility: not implemented; checkpoints that need it are refused."""
