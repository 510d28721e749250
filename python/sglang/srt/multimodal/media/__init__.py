"""Pictures, videos and sounds: from what a client wrote to arrays, within limits."""
