"""The index in Redis.

- `format`: the index in Redis as bytes; `redis_keys`: its keys
- `writer`, `writer_state`: the leader that writes a model's index
- `recovery`: the state that the next indexer continues from, each gateway that starts, and the
  command line
"""
