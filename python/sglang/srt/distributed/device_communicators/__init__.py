"""Memory that devices share. Compatibility: collectives use ordinary memory."""
