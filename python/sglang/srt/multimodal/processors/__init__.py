"""Processors: what turns the media of a request and the prompt around them into the inputs of one family of models."""
