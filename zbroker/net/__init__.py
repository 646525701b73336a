"""The only server-side ZeroMQ: ports, the one server loop, and the life of a child process."""
