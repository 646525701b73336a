"""The SDK: minds that decide, one I/O thread a client, and two faces.

Read in this order: `places` (where a request goes), `door` (one endpoint, and how lost frames are
noticed), `session` (requests), `finder` (routes), `batches`, `lane`, `topic_lane` and `producing`
(sending), `assigned`, `fetching` and `consuming` (reading), `membership`, `leasing`, `committing`
and `sharing` (being a member of a group), `flow` (operations of several requests), `thread` (the
only ZeroMQ here), `outbox` and `inbox` (the locks between callers and the thread), `polling` (what
a pull consumer takes), `blocking`, `pull` and `asyncio` (the faces).
"""
