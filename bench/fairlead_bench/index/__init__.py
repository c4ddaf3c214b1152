"""Cost of the index.

benchmark: the command line, the measured processes, lookups in a replica, goals
event_streams, event_publisher: KV events of simulated engines
mirror_process: a process that mirrors the index
"""
