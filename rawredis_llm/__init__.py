"""What an LLM application keeps in Redis, over Redis' own protocol."""
