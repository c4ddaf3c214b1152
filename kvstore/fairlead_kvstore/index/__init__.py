"""The index outside of the process that reads engines: in Redis, and as replicas in gateways.

- `format`: the index in Redis as bytes; `redis_keys`: its keys
- `sink`: consumers of changes; `writer`, `writer_state`: the leader that writes a model's index
- `recovery`: the state that the next indexer continues from
- `replica`: `IndexReplica`, which gateways query
- `bootstrap`, `subscriber`: the load of a replica from Redis, and its updates
- `instance_status`: the status of instances, next to the index
"""
