"""The OpenAI-compatible routes: protocol, chat template and one handler per route."""
