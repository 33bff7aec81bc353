"""Ring 2, for threads: sockets, locks and waits, and nothing that knows what is stored."""
