"""The index in Redis.

- `format`: the index in Redis as bytes; `redis_keys`: its keys
- `writer`, `writer_state`: the leader that writes a model's index
- `recovery`: the state that the next indexer continues from, and each gateway that starts
- `loaded_index`: all of it, for `fairlead index`
"""
