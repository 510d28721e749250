"""What a checkpoint's config says: typed facts (`hf_config`), the model configuration, and name aliases."""
