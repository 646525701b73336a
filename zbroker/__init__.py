"""zbroker."""
