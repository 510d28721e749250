"""Structured output: grammars compiled apart from the scheduler, matchers that follow a request."""
