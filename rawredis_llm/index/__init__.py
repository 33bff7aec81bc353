"""Ring 1: the parts of `VectorIndex`, each of which builds on the one before it."""
