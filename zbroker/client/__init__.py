"""The SDK: minds that decide, one I/O thread a client, and two faces.

Read in this order: `places` (where a request goes), `door` (one endpoint, and how lost frames are
noticed), `session` (requests), `finder` (routes), `batches`, `lane` and `producing` (sending),
`assigned` and `consuming` (reading), `thread` (the only ZeroMQ here), `outbox` and `inbox` (the
locks between callers and the thread), `blocking` and `asyncio` (the faces).
"""
