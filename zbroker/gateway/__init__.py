"""The gateway: one address for clients; forwards to the workers by the header alone."""
