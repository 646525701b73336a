"""The supervisor: starts the processes of one data folder, restarts them, and stops them.

`plan` and `restart` decide and are pure; `folder`, `children` and `log` touch the world; `process`
joins them. No ZeroMQ here: this process must outlive everything that ZeroMQ's users can do to it.
"""
