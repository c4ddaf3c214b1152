"""Cost of the index.

benchmark: the command line, the order of the run, lookups in a replica, goals
event_streams, event_publisher: KV events of simulated engines
index_processes, mirror_process: the measured processes
"""
