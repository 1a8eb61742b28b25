"""Usage: every request that reaches the engine becomes exactly one event."""
