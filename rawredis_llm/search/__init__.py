"""Ring 1: the language of Redis' search module, as values. Nothing here does I/O."""
