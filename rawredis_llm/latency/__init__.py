"""Ring 3: how long calls take, and where the time goes."""
