"""The worker process: one shard, its disk hand, and two doors in one loop."""
