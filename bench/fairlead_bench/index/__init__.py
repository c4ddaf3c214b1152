"""Cost of the index.

benchmark: the command line, the measured processes, goals
event_streams, event_publisher: KV events of simulated engines
reader_process: a process that reads engines as a gateway does
"""
