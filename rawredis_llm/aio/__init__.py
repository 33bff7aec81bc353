"""Ring 2, for tasks: one socket and an event loop, and nothing that knows what is stored."""
