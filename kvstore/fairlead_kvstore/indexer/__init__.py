"""The indexer: reads the KV events of a fleet's engines and writes the index.

- `cli`: its command line; `service`: the process, from start to shutdown
- `redis_memory`: the bound of its blocks by the memory of Redis
"""
