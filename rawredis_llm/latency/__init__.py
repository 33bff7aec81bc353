"""Ring 3: how long calls take. A `Recorder` is an observer for a client; `table()` prints it."""
