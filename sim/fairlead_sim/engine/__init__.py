"""The core of the simulated engine: no clock, no I/O, no HTTP.

- ``sequence``: the values that go into the scheduler and come out of it
- ``scheduler``: continuous batching, one step at a time
- ``block_pool``: the prefix cache
- ``tokenizer``, ``chat_template``: the fixed vocabulary, and conversations in it
- ``kv_event_publisher``: KV events as bytes, and their ZMQ sockets
- ``metrics``: the Prometheus page
"""
