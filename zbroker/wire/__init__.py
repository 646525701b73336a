"""The contract between the two ends of a socket: bytes and typed values, no ZeroMQ, no I/O.

Read PROTOCOL.md first; then `batch` (the unit of everything), `ops` (one row an operation), `codec`
(headers) and `frames` (the envelope).
"""
