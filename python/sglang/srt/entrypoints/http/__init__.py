"""The parts of the HTTP server: middleware, error envelopes, health, warm-up and the native routes."""
