"""Conversation templates: from messages to the text of a prompt, for models whose tokenizer has no template of its own."""
