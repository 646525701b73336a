"""A log on a disk it was given: records, segments, indexes, recovery. No ZeroMQ, no wire, no clock.

Read FORMAT.md first; then `record` (the bytes), `segment` and `commit_log` (append, sync, roll,
retention), `queue_index` (where an offset is), `recovery` and `check`.
"""
