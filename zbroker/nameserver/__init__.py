"""The NameServer: in memory, shares nothing, tells clients which broker has which topic."""
