"""Which messages a reader wants: pure functions."""
