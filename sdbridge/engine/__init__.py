"""The engine: the child process that turns frames into generated frames, and the plumbing to it."""
