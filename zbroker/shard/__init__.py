"""Broker semantics of one shard, as a mind: no socket, no thread, no clock.

A shard has two halves. *Decide* (the handlers, in `shard.py` by table, each in its concept's file)
looks at a request and the state and writes records. *Apply* (`state.py` by table) is the only place
where state changes: the same code for live traffic, for replay and later for slaves. Apply knows no
clock and no randomness; its time is the record's.

Reading order: `state`, `journal`, `answers`, `publish`, `fetch`, `progress`, `topics`, `directory`,
`shard`.
"""
