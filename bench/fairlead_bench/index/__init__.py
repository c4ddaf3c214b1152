"""Cost of the index, compared with a Redis hash for each block.

benchmark: the command line and the order of the run
event_streams, event_publisher: KV events of simulated engines
index_processes, mirror_process: the measured processes
mirror_lookup: lookups in a replica
per_block_hash_baseline: the baseline
result_rows: goals and comparisons
redis_cost, block_store_cost: programs that measure one part each
"""
