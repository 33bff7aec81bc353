"""Ring 0: pure values and bytes. No socket, no asyncio, no sleep, nothing of the other rings."""
