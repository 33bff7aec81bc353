"""What the caches are made of: identity, entries, upkeep, guards. Must not import a client."""
