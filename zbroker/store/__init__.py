"""A log on a disk it was given: records, segments, indexes, recovery. No ZeroMQ, no wire, no clock.

Read FORMAT.md first; then `record` (the bytes), `disk` (what is promised), `segment` and
`commit_log` (append, sync, roll, retention), `zeroed_segment` (the next one, made ahead),
`queue_index` and `segment_index` (where an offset is), `checkpoint` (state written down),
`recovery`, and `check` (every invariant by name).
"""
